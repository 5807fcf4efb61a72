"""Detects a classifier that puts all images into one class."""

from __future__ import annotations

import torch
from torch import Tensor


class CollapseWatch:
    """Follows the share of each difficulty class as an exponential average over training steps.

    Args:
        classes: their number.
        memory: steps that the average remembers.
        limit: share of one class from which on the classifier counts as collapsed.
    """

    def __init__(self, classes: int, memory: int = 50, limit: float = 0.98) -> None:
        self.memory = memory
        self.limit = limit
        self.steps = 0
        self.shares = torch.full((classes,), 1 / classes)

    def update(self, share: Tensor) -> None:
        """Takes the share ``(K,)`` of each class in one step: of all processes, so that they agree on a collapse."""
        self.shares = torch.lerp(self.shares, share.detach().cpu(), 1 / self.memory)
        self.steps += 1

    @property
    def collapsed(self) -> bool:
        """Whether one class has taken nearly everything for long enough to be no accident."""
        return len(self.shares) > 1 and self.steps >= 4 * self.memory and bool(self.shares.max() >= self.limit)

    def restart(self) -> None:
        """Begins anew, after the classifier was reset."""
        self.steps = 0
        self.shares = torch.full_like(self.shares, 1 / len(self.shares))

    def state_dict(self) -> dict:
        return {'steps': self.steps, 'shares': self.shares}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state['steps']
        self.shares = state['shares']
