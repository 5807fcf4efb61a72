"""Images that share a budget: what one of them does not need, another one gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from basicsr_classpruning.inference.patch_plan import PatchPlan, route_patches
from basicsr_classpruning.inference.prices import Prices
from basicsr_classpruning.routing.budget import least_errors, solve_budget, solve_for_mean_psnr


@dataclass(frozen=True)
class Survey:
    """What has to be known of an image to route it together with others; the image itself is not kept."""

    expected: np.ndarray
    """Errors ``(T, K)`` of its tiles or patches, relative to the image's, which they add up to."""
    pixels: int
    """Of a tile, where whole tiles are routed."""
    plan: PatchPlan | None
    """Where patches are."""
    seconds: float = 0.0
    """What finding this took."""


@dataclass(frozen=True)
class Routing:
    """Which candidates restore an image, where that is known before."""

    classes: np.ndarray
    """``(T,)`` of its tiles or patches."""
    enough: bool
    """See ``RestoreStats``."""
    seconds: float
    """What finding it took, which counts as time of the image."""


def route_together(surveys: Sequence[Survey], prices: Prices, budget: float) -> list[Routing]:
    """Routes images for their greatest mean PSNR, at an average cost of all their pixels within the budget."""
    expected, pixels = [survey.expected for survey in surveys], [survey.pixels for survey in surveys]
    plans = [survey.plan for survey in surveys if survey.plan is not None]
    routings = []
    for survey, own in zip(surveys, share_budget(expected, pixels, plans, prices, budget)):
        costs = prices.of_tiles if survey.plan is None else prices.of_patches
        enough = bool((own == least_errors(survey.expected, costs)).all())
        routings.append(Routing(own, enough, survey.seconds))
    return routings


def share_budget(
    errors: Sequence[np.ndarray], pixels: Sequence[int], plans: Sequence[PatchPlan], prices: Prices, budget: float
) -> list[np.ndarray]:
    """Classes ``(T,)`` of the tiles or patches of images that share a budget.

    Args:
        errors: of each image ``(T, K)``, in a unit of its own: expected or measured ones.
        pixels: of a tile of each image.
        plans: of each image's patches; none where whole tiles are routed.
        prices: what the budget counts.
        budget: largest average cost of the images' pixels, as a fraction of the dense network's.
    """
    sizes = np.concatenate([np.full(len(each), float(size)) for each, size in zip(errors, pixels)])
    cuts = np.cumsum([len(each) for each in errors])[:-1]

    def solve(weighed: list[np.ndarray]) -> list[np.ndarray]:
        if plans:
            return route_patches(plans, weighed, budget)
        return np.split(solve_budget(np.concatenate(weighed), prices.of_tiles, sizes, budget), cuts)

    return solve_for_mean_psnr(solve, errors)
