"""The training strategy: which stage an iteration belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STAGES = ('supernet', 'classifier', 'joint')


@dataclass(frozen=True)
class Schedule:
    """Lengths of the stages in iterations, in the order in which they run; a stage of length 0 is left out."""

    supernet: int
    """Candidates learn: each mini-batch is split among them."""
    classifier: int
    """The classifier learns from the measured errors of the candidates, which stay as they are."""
    joint: int
    """Both learn: images are routed as the classifier says."""

    @classmethod
    def from_options(cls, train: Mapping) -> Schedule:
        """Reads ``train.stages``; without it all iterations are supernet training."""
        stages = train.get('stages') or {'supernet': int(train['total_iter'])}
        return cls(*(int(stages.get(name) or 0) for name in STAGES))

    def stage(self, iteration: int) -> str:
        """Name of the stage of an iteration, counted from 1; iterations beyond the end belong to the last stage."""
        end = 0
        last = STAGES[0]
        for name in STAGES:
            length = getattr(self, name)
            end += length
            if length:
                last = name
            if iteration <= end and length:
                return name
        return last
