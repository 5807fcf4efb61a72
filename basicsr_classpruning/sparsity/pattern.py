"""The N:M pattern: what a sparse layer may keep."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_M = 32


@dataclass(frozen=True)
class Pattern:
    """An N:M pattern: of every ``m`` consecutive input channels at most ``n`` weights are non-zero.

    Groups run along the input channels of a convolution ``(O, C, kh, kw)`` or a linear layer ``(O, C)``. One mask
    belongs to one output channel and one kernel tap, unless it is shared more widely. Where ``m`` does not divide the
    channels, the last group is shorter and keeps its share, see ``kept_of_rest``.
    """

    n: int
    """Weights kept in a group, 1 to m."""
    m: int
    """Size of a group in input channels, 1 to 32."""
    block: int = 1
    """Consecutive output channels that share a mask; 1 is the paper's fine-grained pattern."""
    share_taps: bool = False
    """Whether all kernel taps of an output channel (block) share a mask."""

    def __post_init__(self) -> None:
        if not 1 <= self.m <= MAX_M:
            raise ValueError(f'{self}: M must be between 1 and {MAX_M}')
        if not 1 <= self.n <= self.m:
            raise ValueError(f'{self}: N must be between 1 and M')
        if self.block < 1:
            raise ValueError(f'block {self.block} of pattern {self}: must be at least 1')

    @classmethod
    def parse(cls, text: str, block: int = 1, share_taps: bool = False) -> Pattern:
        """Reads ``'N:M'``. Raises ValueError where the text is anything else."""
        match = re.fullmatch(r'(\d{1,3}):(\d{1,3})', text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f'{text!r} is not a pattern: write N:M with 1 <= N <= M <= {MAX_M}, for example "2:4"')
        return cls(int(match[1]), int(match[2]), block, share_taps)

    @property
    def density(self) -> float:
        """Share of the weights kept, above 0 and at most 1; in a layer with a shorter last group about that."""
        return self.n / self.m

    def kept_of_rest(self, channels: int) -> int:
        """Weights kept in the shorter last group of a layer of ``channels`` input channels; 0 where there is none.

        So many that the layer's total is nearest to N/M of its weights; of two as near, the larger. At least 1 where
        the layer has no other group.
        """
        full, rest = divmod(channels, self.m)
        nearest = (2 * self.n * rest + self.m) // (2 * self.m)
        return max(nearest, 1) if rest and not full else nearest

    def kept(self, channels: int) -> int:
        """Weights kept of ``channels`` input channels, at one output channel and one kernel tap."""
        return channels // self.m * self.n + self.kept_of_rest(channels)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned."""
        return self.n == self.m

    def __str__(self) -> str:
        return f'{self.n}:{self.m}'
