"""Which candidate each tile gets, so that the average MACs meet a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from basicsr_classpruning.errors import UsageError

TOLERANCE = 0.01
"""How far outside the range of the costs a budget may lie, relative to it; within it, a budget is a limit."""

_EXCHANGED = 100  # tiles up to which exchanges are looked for
_TANGENTS = 8
_LEAST_TOTAL = 1e-3  # of an image's error, in its unit: 30 dB above what the reference candidate leaves
_LEAST_GAIN = 1e-12  # of an exchange, relative to the largest error: less is rounding, and would never end


def solve_budget(errors: np.ndarray, costs: np.ndarray, sizes: np.ndarray, budget: float) -> np.ndarray:
    """Classes of the least total error whose average cost is within the budget.

    With a price lambda on cost, each tile takes the class of least ``error + lambda * cost``: a point of the lower
    convex hull of its (cost, error) points. Walking all tiles' hulls by falling slope visits the solutions of every
    lambda in turn, so the walk stops at the last one within the budget, exactly. What is left of the budget is filled
    greedily, by single steps that fit and by exchanges between two tiles.

    A budget is a limit: a hull ends at its tile's class of least error, and no more is spent on worse.

    Args:
        errors: ``(T, K)``, additive over tiles: predicted or measured errors, relative ones (`relative_errors`).
        costs: ``(K,)``: average cost of each class, in any unit, everything included (unpruned layers, classifier).
        sizes: ``(T,)``, positive: weight of each tile in the average (its pixels).
        budget: largest average cost, in the unit of ``costs``.

    Returns:
        ``(T,)`` classes. Their average cost is at most the budget (or the least cost, where that is 1 % more; from
        1 % below the largest cost on, all that helps). Where tiles are not very few, it is not more than 1 % below the
        budget either, unless every tile has its class of least error (`least_errors`).

    Raises:
        UsageError: the budget is outside the range of ``costs`` by more than 1 %.
    """
    check_budget(budget, float(costs.min()), float(costs.max()))
    order = np.argsort(costs, kind='stable')
    merits, costs = -np.asarray(errors, np.float64)[:, order], np.asarray(costs, np.float64)[order]
    total = float(sizes.sum())
    allowed = budget * total
    if costs[-1] * total <= allowed * (1 + TOLERANCE):
        return order[merits.argmax(axis=1)]
    tile, before, after, slope = _hull_steps(merits, costs, sizes)
    walk = np.lexsort((after, tile, -slope))
    tile, before, after = tile[walk], before[walk], after[walk]
    spent = costs[0] * total + np.cumsum(sizes[tile] * (costs[after] - costs[before]))
    taken = int(np.searchsorted(spent, allowed * (1 + 1e-9), side='right'))
    classes = np.zeros(len(merits), np.int64)
    np.maximum.at(classes, tile[:taken], after[:taken])
    return order[_fill(classes, merits, costs, sizes, allowed)]


def solve_for_mean_psnr(
    solve: Callable[[list[np.ndarray]], list[np.ndarray]], errors: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Classes of the parts of images that share a budget, for the greatest mean PSNR of the images.

    PSNR is a logarithm: where one image gains much from little, as a noisy one does, the sum of errors would give it
    everything. A logarithm lies below its tangent, so solving with errors relative to what each image had in the
    solution before never lowers the mean PSNR (minorise and maximise).

    Args:
        solve: finds the classes ``(T,)`` of each image of least total error, from weighted errors.
        errors: of each image ``(T, K)``, in units of its own, above 0 in total.
    """
    weights, best, found = [1.0] * len(errors), -np.inf, [np.zeros(len(each), np.int64) for each in errors]
    for _ in range(_TANGENTS):
        classes = solve([weight * each for weight, each in zip(weights, errors)])
        totals = [each[np.arange(len(each)), own].sum() for each, own in zip(errors, classes)]
        weights = [1 / max(total, _LEAST_TOTAL) for total in totals]
        if np.log(weights).mean() <= best + _LEAST_GAIN:
            break
        best, found = np.log(weights).mean(), classes
    return found


def least_errors(errors: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The class of least error of each tile ``(T,)``, of equals the cheapest: what no budget goes beyond."""
    order = np.argsort(costs, kind='stable')
    return order[np.asarray(errors)[:, order].argmin(axis=1)]


def check_budget(budget: float, least: float, most: float) -> None:
    """Raises UsageError if an average cost of ``budget`` cannot be reached to within 1 %."""
    if not least * (1 - TOLERANCE) <= budget * (1 + 1e-9) or not budget <= most * (1 + TOLERANCE):
        allowed = f'allowed is {least:.3g} to {most:.3g} of the dense MACs'
        raise UsageError(f'{budget:g} cannot be met: {allowed}', key='budget')


def deal_by_chance(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same shares of the classes, dealt to tiles by chance: what routing is worth without looking."""
    return rng.permutation(classes)


def _hull_steps(
    merits: np.ndarray, costs: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps along each tile's upper convex hull, from the cheapest class to the one of most merit.

    Returns tile, class before, class after and slope (merit per cost) of every step, all ``(S,)``. Slopes fall along
    a tile's steps.
    """
    tiles, classes = merits.shape
    current = np.zeros(tiles, np.int64)
    steps = []
    alive = np.arange(tiles)
    while alive.size:
        now = current[alive]
        rise = merits[alive] - merits[alive, now][:, None]
        run = costs[None] - costs[now][:, None]
        slopes = np.where((rise > 0) & (run >= 0), np.inf, -np.inf)  # as good as it gets where it costs nothing
        np.divide(rise, run, out=slopes, where=run > 0)
        # The steepest next point; of equals the farthest, so that slopes fall strictly.
        following = classes - 1 - np.argmax(slopes[:, ::-1], axis=1)
        slope = slopes[np.arange(len(alive)), following] / sizes[alive]
        rises = slope > 0
        alive, now, following, slope = (column[rises] for column in (alive, now, following, slope))
        steps.append((alive, now, following, slope))
        current[alive] = following
    tile, before, after, slope = (np.concatenate(column) for column in zip(*steps))
    return tile, before, after, slope


def _fill(classes: np.ndarray, merits: np.ndarray, costs: np.ndarray, sizes: np.ndarray, allowed: float) -> np.ndarray:
    """Spends what is left, as far as it helps: by single steps that fit, then by exchanges."""
    state = _Allocation(classes.copy(), merits, costs, sizes, allowed)
    while state.step_up() or state.exchange():
        pass
    return state.classes


class _Allocation:
    """Classes of all tiles, and the part of the budget that they leave."""

    def __init__(
        self, classes: np.ndarray, merits: np.ndarray, costs: np.ndarray, sizes: np.ndarray, allowed: float
    ) -> None:
        self.classes, self._merits, self._costs, self._sizes = classes, merits, costs, sizes
        self._left = allowed * (1 + 1e-9) - float((sizes * costs[classes]).sum())

    def _moves(self) -> tuple[np.ndarray, np.ndarray]:
        """Cost and gain, both ``(T, K)``, of giving a tile another class."""
        rows = np.arange(len(self.classes))
        cost = self._sizes[:, None] * (self._costs[None] - self._costs[self.classes][:, None])
        return cost, self._merits - self._merits[rows, self.classes][:, None]

    def _take(self, cost: np.ndarray, *moves: int) -> None:
        for move in moves:
            if move == cost.size:  # none
                continue
            tile, chosen = divmod(move, len(self._costs))
            self._left -= float(cost[tile, chosen])
            self.classes[tile] = chosen

    def step_up(self) -> bool:
        """Takes the most worthwhile step that helps and fits into what is left; False if there is none."""
        cost, gain = self._moves()
        fits = (cost > 0) & (cost <= self._left) & (gain > 0)
        if not fits.any():
            return False
        worth = np.where(fits, gain / np.where(fits, cost, 1), -np.inf)
        self._take(cost, int(np.argmax(worth)))
        return True

    def exchange(self) -> bool:
        """Moves one or two tiles to what helps most and fits; False if nothing does.

        Only where few tiles share a budget: with many, a single step is a small part of it.
        """
        if len(self.classes) > _EXCHANGED:
            return False
        cost, gain = self._moves()
        # One more move, which changes nothing, makes single moves of pairs.
        tile = np.append(np.arange(cost.size) // len(self._costs), -1)
        costs, gains = np.append(cost, 0.0), np.append(gain, 0.0)
        total = gains[:, None] + gains[None]
        helps = total > _LEAST_GAIN * np.abs(self._merits).max()
        possible = (tile[:, None] != tile[None]) & (costs[:, None] + costs[None] <= self._left) & helps
        if not possible.any():
            return False
        merit = np.where(possible, total, -np.inf)
        self._take(cost, *map(int, np.unravel_index(int(np.argmax(merit)), merit.shape)))
        return True
