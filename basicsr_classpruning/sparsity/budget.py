"""Choosing candidates so that the average MACs meet a budget."""

from __future__ import annotations

import torch
from torch import Tensor

_BISECTIONS = 60


def solve_budget(scores: Tensor, costs: Tensor, budget: float, sizes: Tensor | None = None) -> Tensor:
    """Picks one candidate for each image or tile: the highest total score whose average cost meets the budget.

    The relaxed problem is solved by a price λ on the cost, found by bisection: every image takes the candidate with
    the best score − λ · cost. What images change at that very price is then taken one by one, as far as the budget
    goes. The result is within one image's step of the budget, the nearer side of it; budgets below the cheapest
    candidate's cost give the cheapest everywhere, those above the dearest's what scores highest.

    Args:
        scores: ``(T, K)``, higher is better.
        costs: ``(K,)``, ascending, as fractions of the dense MACs.
        budget: wanted average cost, a fraction of the dense MACs.
        sizes: ``(T,)`` weights in the averages, such as pixels; equal by default.

    Returns:
        Candidate of each image, ``(T,)`` int64 on the device of ``scores``.
    """
    device = scores.device
    scores, costs = scores.detach().double().cpu(), costs.detach().double().cpu()
    weights = torch.ones(len(scores)).double() if sizes is None else sizes.detach().double().cpu()
    weights = weights / weights.sum()
    scores = scores * weights[:, None]
    charges = weights[:, None] * costs  # (T, K): what each choice adds to the average cost

    def choose(price: float) -> Tensor:
        # Of equal values the cheaper candidate: argmax takes the first.
        return (scores - price * charges).argmax(dim=1)

    def average(classes: Tensor) -> float:
        return float(charges.gather(1, classes[:, None]).sum())

    rich = choose(0.0)
    if average(rich) <= budget:
        return rich.to(device)
    poor = charges.argmin(dim=1)
    low, high = 0.0, 1.0
    while average(choose(high)) > budget:
        low, high = high, high * 4
        if high > 1e30:  # even at any price: the cheapest candidate is above the budget
            return poor.to(device)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if average(choose(middle)) > budget else (low, middle)
    rich, poor = choose(low), choose(high)
    spent = average(poor)
    # Largest steps first leave the smallest remainder.
    step = (charges.gather(1, rich[:, None]) - charges.gather(1, poor[:, None]))[:, 0]
    classes = poor.clone()
    remaining = []
    for index in torch.argsort(step, descending=True, stable=True).tolist():
        if step[index] <= 0:
            break
        if spent + step[index] <= budget:
            classes[index] = rich[index]
            spent += float(step[index])
        else:
            remaining.append(index)
    if remaining and spent + step[remaining[-1]] - budget < budget - spent:
        classes[remaining[-1]] = rich[remaining[-1]]
    return classes.to(device)
