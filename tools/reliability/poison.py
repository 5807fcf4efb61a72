"""A loss that goes wrong in one call, for ``custom_imports`` of a training."""

from __future__ import annotations

from typing import Any

from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

ADDED = {'NaN': float('nan'), 'infinite': float('inf'), 'exploded': 1e20}


@LOSS_REGISTRY.register()
class PoisonedLoss(nn.Module):
    """Another loss, with something added in one of its calls.

    Args:
        loss: options of the other loss.
        call: which call, from 1.
        poison: a key of ``ADDED``, or ``NaN gradient``.
        target: a budget's, which the model asks for.
    """

    def __init__(self, loss: dict[str, Any], call: int, poison: str, target: float | None = None) -> None:
        super().__init__()
        self.inner = build_loss(loss)
        self.call, self.poison = call, poison
        self.calls = 0
        self.target = target

    def forward(self, *arguments: Tensor) -> Tensor:
        value = self.inner(*arguments)
        self.calls += 1
        if self.calls == self.call and self.poison == 'NaN gradient':
            value.register_hook(lambda gradient: gradient * float('nan'))
        elif self.calls == self.call:
            value = value + ADDED[self.poison]
        return value
