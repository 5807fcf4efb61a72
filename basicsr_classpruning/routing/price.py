"""A price on cost: how much error all MACs of the dense network are worth, and what is chosen at it."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_LOG_PRICE = -1.4
"""Until the price is learnt, all MACs of the dense network are worth about 1 dB."""
_SOFTNESS = 0.1  # difference in cost that makes one candidate e times as probable as another


def probabilities(errors: Tensor, costs: Tensor, log_price: Tensor) -> Tensor:
    """Class probabilities ``(B, K)``, differentiable in errors and price; the likeliest class is the best trade.

    Args:
        errors: relative ones, ``(B, K)``; see ``routing.errors``.
        costs: ``(K,)`` MACs as fractions of the dense network's.
        log_price: logarithm of what the dense network's MACs cost, in the unit of the errors.
    """
    return torch.softmax((-errors / log_price.exp() - costs) / _SOFTNESS, dim=1)


@torch.no_grad()
def log_price_for(errors: Tensor, costs: Tensor, target: float) -> float:
    """The least logarithm of a price at which images with such relative errors ``(N, K)`` have average costs of at
    most ``target``."""
    low, high = -12.0, 12.0
    price = errors.new_empty(())
    for _ in range(50):
        middle = (low + high) / 2
        average = costs[probabilities(errors, costs, price.fill_(middle)).argmax(dim=1)].mean()
        low, high = (middle, high) if average > target else (low, middle)
    return high
