"""The N:M pattern: what a sparse layer may keep."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_M = 32
UNITS = (1, 2, 4)


class PatternError(ValueError):
    """A pattern that is none.

    Args:
        text: what is wrong, and what is allowed.
        field: ``block`` or ``unit`` where it is that; empty where N or M do not fit.
    """

    def __init__(self, text: str, field: str = '') -> None:
        super().__init__(f'{field} {text}'.lstrip())
        self.text, self.field = text, field


@dataclass(frozen=True)
class Pattern:
    """An N:M pattern: of every ``m`` consecutive input channels at most ``n`` weights are non-zero.

    Groups run along the input channels of a convolution ``(O, C, kh, kw)`` or a linear layer ``(O, C)``. One mask
    belongs to one output channel and one kernel tap, unless it is shared more widely. A mask keeps or drops whole
    units, by default single channels. Where ``m`` does not divide the channels, the last group is shorter and keeps its
    share, see ``kept_of_rest``; its last unit may be shorter too.
    """

    n: int
    """Weights kept in a group, 1 to m, a multiple of the unit."""
    m: int
    """Size of a group in input channels, 1 to 32, a multiple of the unit."""
    block: int = 1
    """Consecutive output channels that share a mask; 1 is the paper's fine-grained pattern."""
    share_taps: bool = False
    """Whether all kernel taps of an output channel (block) share a mask."""
    unit: int = 1
    """Neighbouring input channels that are kept or dropped together: 1, 2 or 4."""

    def __post_init__(self) -> None:
        if not 1 <= self.m <= MAX_M:
            raise PatternError(f'{self}: M must be between 1 and {MAX_M}')
        if not 1 <= self.n <= self.m:
            raise PatternError(f'{self}: N must be between 1 and M')
        if self.block < 1:
            raise PatternError(f'{self.block} of pattern {self}: must be at least 1', 'block')
        if self.unit not in UNITS or not isinstance(self.unit, int):
            raise PatternError(f'{self.unit!r} is not allowed; 1, 2 or 4', 'unit')
        if self.m % self.unit:
            raise PatternError(f'{self.unit} is not allowed with {self}; it must divide M', 'unit')
        if self.n % self.unit:
            allowed = ', '.join(str(n) for n in range(self.unit, self.m + 1, self.unit))
            raise PatternError(f"'{self}' is not allowed with unit {self.unit}; N one of {allowed}")

    @classmethod
    def parse(cls, text: str, block: int = 1, share_taps: bool = False, unit: int = 1) -> Pattern:
        """Reads ``'N:M'``. Raises ValueError where the text is anything else, or the rest does not fit it."""
        match = re.fullmatch(r'(\d{1,3}):(\d{1,3})', text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f'{text!r} is not a pattern: write N:M with 1 <= N <= M <= {MAX_M}, for example "2:4"')
        return cls(int(match[1]), int(match[2]), block, share_taps, unit)

    @property
    def density(self) -> float:
        """Share of the weights kept, above 0 and at most 1; in a layer with a shorter last group about that."""
        return self.n / self.m

    def kept_of_rest(self, channels: int) -> int:
        """Weights kept in the shorter last group of a layer of ``channels`` input channels; 0 where there is none.

        So many that the layer's total is nearest to N/M of its weights; of two as near, the larger. At least one unit
        where the layer has no other group, and never with more units dropped than in a full group. A shorter last unit
        is kept only where all before it are: so the number kept is the same at all output channels and kernel taps.
        """
        full, rest = divmod(channels, self.m)
        possible = [*range(0, rest, self.unit), rest]  # with 0, 1, … units kept
        fewest = max(len(possible) - 1 - (self.m - self.n) // self.unit, 0 if full else 1)
        possible = possible[fewest:]
        return min(possible, key=lambda kept: (abs(kept * self.m - self.n * rest), -kept))

    def kept(self, channels: int) -> int:
        """Weights kept of ``channels`` input channels, at one output channel and one kernel tap."""
        return channels // self.m * self.n + self.kept_of_rest(channels)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned."""
        return self.n == self.m

    @property
    def described(self) -> str:
        """N:M and what a mask decides about at once, as options name it."""
        wider = [('block', self.block, self.block > 1), ('share_taps', 'true', self.share_taps)]
        wider.append(('unit', self.unit, self.unit > 1))
        return ', '.join([str(self), *(f'{name} {value}' for name, value, said in wider if said)])

    def __str__(self) -> str:
        return f'{self.n}:{self.m}'
