"""The ladder of candidates, read from its text form and checked in one place."""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.sparsity.pattern import MAX_M, Pattern, PatternError

if TYPE_CHECKING:
    from basicsr_classpruning.routing.network import Subnetwork

_PATTERN = f"N:M with 1 <= N <= M <= {MAX_M}, for example '8:16'"
_INT8 = '-int8'


class LadderError(ValueError):
    """A ladder that is none.

    Args:
        place: which part of the ladder's options is wrong, such as ``candidates[0]`` or ``layers.body``.
        text: what is wrong, and what is allowed.
    """

    def __init__(self, place: str, text: str) -> None:
        super().__init__(f'{place}: {text}')
        self.place, self.text = place, text


class Candidate(ABC):
    """One rung of a ladder: something that restores images, at a cost.

    A kind of candidates is a subclass, registered with ``register_candidate``. ``SparseCandidate`` takes its weights
    from the base network; any other kind makes a network of its own.
    """

    name: str
    """As it is written in options and shown to the user, for example ``'8:16'``."""
    density: float
    """Share of the base network that it runs, 0 to 1; a ladder's rungs go from the sparsest to the densest."""
    m: int | None = None
    """Size of the groups of input channels that its name speaks of, the same in all candidates of a ladder."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Candidate | None:
        """The candidate that a text names, or None where it names none of this kind. Raises ValueError with what is
        allowed where it nearly does."""

    @abstractmethod
    def build(self, dense: Subnetwork) -> nn.Module:
        """What restores images in the place of the base network, which is given as it is before it is pruned.

        It is a part of the ClassPruning network: its parameters are trained and stored with it. A ``SparseCandidate``
        has no such part. Raises UsageError where the candidate cannot take this network's place.
        """


_KINDS: list[type[Candidate]] = []
_Kind = TypeVar('_Kind', bound=type[Candidate])


def register_candidate(kind: _Kind) -> _Kind:
    """Makes a kind of candidates known to ``Ladder.parse``; of several that know a text, the first one registered."""
    _KINDS.append(kind)
    return kind


@register_candidate
@dataclass(frozen=True)
class SparseCandidate(Candidate):
    """A sparse subnetwork of the base network, or with ``M:M`` the dense one itself.

    With ``int8`` its layers multiply 8-bit integers, as far as they can (``network_g.fp32`` names those that do not);
    then ``M:M`` has weights of its own too.
    """

    pattern: Pattern
    int8: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return f'{self.pattern}{_INT8 if self.int8 else ""}'

    @property
    def density(self) -> float:  # type: ignore[override]
        return self.pattern.density

    @classmethod
    def parse(cls, text: str) -> SparseCandidate:
        """Reads ``'N:M'`` and ``'N:M-int8'``; being the first kind, it is asked last, and says what is allowed."""
        int8 = isinstance(text, str) and text.endswith(_INT8)
        return cls(Pattern.parse(text.removesuffix(_INT8) if int8 else text), int8)

    @property
    def m(self) -> int:  # type: ignore[override]
        return self.pattern.m

    def build(self, dense: Subnetwork) -> nn.Module:
        raise TypeError('a sparse candidate is taken from the base network')


@dataclass(frozen=True)
class Ladder:
    """The candidates of a network, from the sparsest to the densest. Made by ``parse``, which checks it."""

    candidates: tuple[Candidate, ...]
    layers: Mapping[str, tuple[Pattern, ...]] = field(default_factory=dict)
    """Regular expression → patterns of the sparse candidates in the layers that it matches."""

    @classmethod
    def parse(
        cls,
        texts: Sequence[str],
        block: int = 1,
        share_taps: bool = False,
        unit: int = 1,
        layers: Mapping[str, Sequence[str]] | None = None,
    ) -> Ladder:
        """Reads a ladder as options write it.

        Args:
            texts: candidates such as ``'8:16'``, from the sparsest to the densest, each once.
            block: output channels that share a mask.
            share_taps: whether all kernel taps of an output channel (block) share it too.
            unit: neighbouring input channels that are kept or dropped together.
            layers: regular expression → one ``N:M`` for each sparse candidate, of the candidates' M, never falling.

        Raises LadderError where it is none.
        """
        if not texts:
            raise LadderError('candidates', 'at least one pattern such as 2:4 is needed')
        like = {'block': block, 'share_taps': share_taps, 'unit': unit}
        candidates = [_parse_candidate(text, like, f'candidates[{i}]') for i, text in enumerate(texts)]
        patterns = [candidate.pattern for candidate in candidates if isinstance(candidate, SparseCandidate)]
        if not patterns:
            raise LadderError('candidates', f'{list(texts)} is not allowed; at least one N:M with N above 0 is needed')
        if len({candidate.m for candidate in candidates} - {None}) > 1:
            raise LadderError('candidates', f'{list(texts)} is not allowed; all candidates have the same M')
        in_order = sorted(dict.fromkeys(candidates), key=_rung)
        if candidates != in_order or any(_rung(a) >= _rung(b) for a, b in itertools.pairwise(candidates)):
            names = [candidate.name for candidate in in_order]
            raise LadderError('candidates', f'{list(texts)} is not allowed; sparsest first and each once: {names}')
        return cls(
            tuple(candidates), {regex: _layer_ladder(regex, own, patterns) for regex, own in (layers or {}).items()}
        )

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates as they are written."""
        return tuple(candidate.name for candidate in self.candidates)

    @property
    def sparse(self) -> tuple[SparseCandidate, ...]:
        """The candidates that are subnetworks of the base network, in their order."""
        return tuple(candidate for candidate in self.candidates if isinstance(candidate, SparseCandidate))

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Patterns of the sparse candidates, in their order."""
        return tuple(candidate.pattern for candidate in self.sparse)

    def index(self, candidate: Candidate | str | int) -> int:
        """Place of a candidate, given as itself, by its name or by its place. Raises UsageError for others."""
        if isinstance(candidate, Candidate) and candidate in self.candidates:
            return self.candidates.index(candidate)
        if isinstance(candidate, str) and candidate in self.names:
            return self.names.index(candidate)
        if isinstance(candidate, int) and 0 <= candidate < len(self.candidates):
            return candidate
        raise UsageError(f'candidate {candidate!r} is not one of this network: {", ".join(self.names)}')


def _rung(candidate: Candidate) -> tuple[float, bool]:
    """By what candidates are ordered: of two as dense, the one of 8-bit integers comes first."""
    return candidate.density, not getattr(candidate, 'int8', False)


def _parse_candidate(text: Any, like: Mapping[str, Any], place: str) -> Candidate:
    for kind in reversed(_KINDS):
        try:
            found = kind.parse(text)
        except ValueError:
            raise LadderError(place, f'{text!r} is not allowed; {_PATTERN}') from None
        if isinstance(found, SparseCandidate):
            return replace(found, pattern=_changed(found.pattern, place, like))
        if found is not None:
            return found
    raise AssertionError('SparseCandidate.parse reads a text or raises')


def _changed(pattern: Pattern, place: str, fields: Mapping[str, Any]) -> Pattern:
    try:
        return replace(pattern, **fields)
    except PatternError as error:
        raise LadderError(error.field or place, error.text) from None


def _layer_ladder(regex: str, texts: Sequence[str], general: Sequence[Pattern]) -> tuple[Pattern, ...]:
    """A layer's own patterns: one for each sparse candidate, of their M, never sparser than the one before."""
    place = f'layers.{regex}'
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise LadderError('layers', f'{regex!r} is no regular expression: {error}') from None
    m = general[0].m if general else 0
    if len(texts) != len(general):
        raise LadderError(place, f'{list(texts)} is not allowed; one N:{m} for each of the {len(general)} candidates')
    patterns: list[Pattern] = []
    for i, (text, like) in enumerate(zip(texts, general)):
        try:
            own = Pattern.parse(text)
        except ValueError:
            raise LadderError(f'{place}[{i}]', f'{text!r} is not allowed; {_PATTERN}') from None
        if own.m != m or (patterns and own.n < patterns[-1].n):
            raise LadderError(place, f'{list(texts)} is not allowed; N:{m}, sparsest first')
        patterns.append(_changed(like, f'{place}[{i}]', {'n': own.n}))
    return tuple(patterns)
