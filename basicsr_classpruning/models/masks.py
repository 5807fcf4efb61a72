"""When the masks of shared weights are renewed, and which weights may be averaged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MaskSchedule:
    """Masks by magnitude are renewed in the first two thirds of a training, and stay in the last.

    Weights averaged over steps of other masks are no weights of the masks at the end: a weight that is kept now was
    on its way to 0 before. So only what comes after the last renewal is averaged.
    """

    interval: int
    """Iterations between two renewals; 0: the masks of the start stay."""
    total: int
    """Iterations of the training."""

    @property
    def last(self) -> int:
        """The iteration of the last renewal; 0 where there is none."""
        return self.total * 2 // 3 // self.interval * self.interval if self.interval else 0

    def renewed_in(self, iteration: int) -> bool:
        """Whether an iteration, from 1, begins with new masks."""
        return 0 < iteration <= self.last and iteration % self.interval == 0

    def steps_since(self, iteration: int) -> int:
        """The steps, this one included, over which weights are averaged after an iteration: before the last renewal
        the present weights alone."""
        return max(iteration - self.last + 1, 1) if self.last else iteration
