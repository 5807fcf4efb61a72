"""Schema of `network_g`: plain networks of BasicSR's registry, and ClassPruning's."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import ConfigDict, Field, model_validator

from basicsr_classpruning.archs.support import refusal
from basicsr_classpruning.config.fields import Allowed, Count, Regex, Registered, Section, refuse
from basicsr_classpruning.routing.ladder import Ladder, LadderError

CandidateName = Annotated[str, Allowed("a candidate N:M, e.g. '8:16'")]
_LADDER = Allowed("a list of candidates N:M, sparsest first, e.g. ['4:16', '8:16', '16:16']")


class PlainNetwork(Registered):
    """A network of BasicSR's architecture registry, or of `custom_imports`; other keys go to its constructor."""


class Classifier(Registered):
    """The network that predicts an image's difficulty class; other keys go to its constructor."""

    model_config = ConfigDict(extra='allow')

    type: str = 'BandClassifier'
    """Name in BasicSR's architecture registry."""


class ClassPruningNetwork(Section):
    """A base network with sparse candidates and a classifier that chooses among them."""

    type: Annotated[
        Literal['ClassPruning'],
        Allowed("'ClassPruning' (a dense network is trained with model_type GuardedSRModel)"),
    ]
    """`ClassPruning`."""
    base: PlainNetwork
    """The base network: any entry of BasicSR's architecture registry that restores single images."""
    value_range: Literal[1, 255] = 1
    """What white is to the base network: 255 for one that was trained on values of 0 to 255."""
    output: int | str | None = None
    """Which of several images that the base network returns is the restored one: its place in a list (0 is the first,
    -1 the last) or its key; null: found by running it."""
    candidates: Annotated[list[CandidateName], MinLen(1), _LADDER]
    """The sparse subnetworks, from sparsest to densest, all of one M, e.g. `['4:16', '8:16', '16:16']`: of every M
    consecutive input channels at most N weights are kept. `M:M` is the dense one; it need not be listed. `N:M-int8`
    multiplies 8-bit integers; it needs `weights: own`, and training starts from a checkpoint of `prune --int8`. `0:M`,
    as the first, is the bypass, which runs nothing of the base network and learns nothing."""
    block: Count = 1
    """Consecutive output channels that share a mask; 1 is the paper's fine-grained pattern, more is faster and a
    little worse."""
    share_taps: bool = False
    """Whether all kernel taps of an output channel (block) share a mask."""
    unit: Literal[1, 2, 4] = 1
    """Neighbouring input channels that are kept or dropped together; M and every N are multiples of it: with 4, `8:16`
    keeps two of four units."""
    skip: list[Regex] = Field(default_factory=list)
    """Regular expressions of layer names that stay dense, besides those that cannot be pruned."""
    fp32: list[Regex] | None = None
    """Regular expressions of layer names that candidates `N:M-int8` compute in float32, besides those that cannot
    multiply 8-bit integers. null: as in the checkpoint that training starts from."""
    classifier: Classifier = Classifier()
    """The network that predicts the difficulty class."""
    weights: Literal['shared', 'own'] = 'shared'
    """`shared`: one weight set with nested masks; `own`: each sparse candidate has its own weights."""
    layers: dict[Regex, Annotated[list[CandidateName], _LADDER]] | None = None
    """Per-layer patterns: for layers whose name matches the regular expression, one `N:M` for each candidate. null: as
    in the checkpoint that training starts from, if it was pruned with `--per-layer`; else `candidates` everywhere."""

    @model_validator(mode='after')
    def _agree(self) -> ClassPruningNetwork:
        reason = refusal(self.base.type)
        if reason is not None:
            raise refuse('base.type', f'{self.base.type!r} is not allowed: {reason}')
        try:
            Ladder.parse(self.candidates, self.block, self.share_taps, self.unit, self.layers)
        except LadderError as error:
            raise refuse(error.place, error.text) from None
        named = [name for name in self.candidates if name.endswith('-int8')]
        if named and self.weights != 'own':
            raise refuse('weights', f'{self.weights!r} is not allowed with {", ".join(named)}; own')
        return self
