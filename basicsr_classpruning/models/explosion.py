"""Detects a loss that has exploded although it is still a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class ExplosionWatch:
    """Follows the size of the loss terms together as a running mean, and remembers the lowest level it had.

    A term may be below 0, as the logarithm of an error is: how far it is from 0 counts.

    Args:
        memory: steps that the mean remembers.
        limit: how many times the lowest level a term must be to count as exploded.
    """

    def __init__(self, memory: int = 20, limit: float = 1e4) -> None:
        self.memory = memory
        self.limit = limit
        self._restart(())

    def _restart(self, names: tuple[str, ...]) -> None:
        self.names, self.steps, self.mean, self.level = names, 0, 0.0, math.inf

    def exploded(self, losses: Mapping[str, float]) -> list[str]:
        """Names of the terms that have exploded. Other terms than in the step before begin a new level."""
        if tuple(losses) != self.names:
            self._restart(tuple(losses))
        return [name for name, loss in losses.items() if loss > self.limit * self.level]

    def update(self, losses: Mapping[str, float]) -> None:
        """Takes the finite terms of a step that was made."""
        self.steps += 1
        self.mean += (sum(map(abs, losses.values())) - self.mean) / min(self.steps, self.memory)
        self.level = min(self.level, self.mean)

    def state_dict(self) -> dict[str, Any]:
        return {'names': list(self.names), 'steps': self.steps, 'mean': self.mean, 'level': self.level}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.names, self.steps = tuple(state['names']), state['steps']
        self.mean, self.level = state['mean'], state['level']
