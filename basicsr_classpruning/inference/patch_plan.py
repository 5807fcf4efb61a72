"""The patches of images: what computing them costs, and which candidates they get, rings paid from the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from basicsr_classpruning.inference.patched import CELL, PART, PatchedNetwork
from basicsr_classpruning.inference.prices import Prices
from basicsr_classpruning.inference.tiling import Axis, TileGrid
from basicsr_classpruning.routing.budget import solve_budget

_NARROWINGS = 14  # of what is left of a budget when rings are paid
_NEAR = 0.002  # of the budget, where narrowing ends


class PatchPlan:
    """One image cut into patches, and its tiles.

    Args:
        patched: what runs them.
        prices: what that costs.
        grid: the image's tiles, which start and end at multiples of ``PART``.
        patch: side of a patch in input pixels, a multiple of ``PART``.
    """

    def __init__(self, patched: PatchedNetwork, prices: Prices, grid: TileGrid, patch: int) -> None:
        self._patched, self._grid, self._side = patched, grid, patch // PART
        self.prices, self.patch = prices, patch
        self._parts = grid.rows.padded // PART, grid.cols.padded // PART
        self.shape = -(-self._parts[0] // self._side), -(-self._parts[1] // self._side)
        """Rows and columns of patches."""
        self.sizes: np.ndarray = self.sums(np.ones((1, *self._parts)))[:, 0]
        """Parts of each patch, ``(T,)``: fewer at the image's right and lower border."""

    @property
    def parts(self) -> TileGrid:
        """Where the patches lie."""
        rows, columns = (
            Axis(axis.length, self._side * PART, tuple(range(0, count * self._side * PART, self._side * PART)))
            for axis, count in zip((self._grid.rows, self._grid.cols), self.shape)
        )
        return TileGrid(rows, columns)

    @property
    def pixels(self) -> int:
        """Of the image."""
        return self._grid.rows.length * self._grid.cols.length

    @property
    def dense_pixels(self) -> int:
        """Pixels that the dense network is taken to restore: of the image, as MACs are counted, or of its tiles, which
        take it its time."""
        return self._grid.pixels if self.prices.unit == 'time' else self.pixels

    def place_of_tile(self, number: int, unit: int) -> tuple[slice, slice]:
        """Where a tile lies in a map whose entries have ``unit`` input pixels a side: ``PART`` or ``CELL``."""
        top, left = (start // unit for start in self._grid.corner(number))
        height, width = (side // unit for side in self._grid.tile_size)
        return slice(top, top + height), slice(left, left + width)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums ``(T, N)`` over each patch's parts of values ``(N, rows, columns)``; missing parts count as 0."""
        rows, columns = (count * self._side for count in self.shape)
        padded = np.pad(values, [(0, 0), (0, rows - values.shape[1]), (0, columns - values.shape[2])])
        parts = padded.reshape(len(values), self.shape[0], self._side, self.shape[1], self._side)
        return parts.sum((2, 4)).reshape(len(values), -1).T

    def in_cells(self, classes: np.ndarray) -> np.ndarray:
        """The candidate of each cell, from those of the patches."""
        cells = self._side * PART // CELL
        rows, columns = (parts * PART // CELL for parts in self._parts)
        return classes.reshape(self.shape).repeat(cells, 0).repeat(cells, 1)[:rows, :columns]

    def running_cells(self, classes: np.ndarray) -> np.ndarray:
        """What runs in each cell, rings included."""
        return self._patched.with_ring(self.in_cells(classes))

    def cost(self, classes: np.ndarray) -> float:
        """Of all that is computed, rings and halos included: as a fraction of the dense network's; in MACs, of its for
        the image without halos."""
        wanted, cells = self.in_cells(classes), self.running_cells(classes)
        runs = np.append(self.prices.running, 0.0)[cells]  # the last one for NOTHING
        wanted_runs = self.prices.runs_base[wanted]
        runs[~wanted_runs] *= self.prices.ring
        computed = 0.0
        for number in range(len(self._grid)):
            place = self.place_of_tile(number, CELL)
            part = runs[place]
            # Rings of patches that lie in other tiles alone are not computed.
            running = part.sum() if wanted_runs[place].any() else 0.0
            computed += (running + self.prices.everywhere * part.size) * CELL**2
        return computed / (self.prices.dense * self.dense_pixels)

    def with_measured_ring(self, prices: Prices, measured: Sequence[tuple[np.ndarray, float]]) -> Prices:
        """Prices under which classes cost what they did when they were run, as near as one price of rings can be (by
        least squares of the relative errors); rings cost at least 1.

        Args:
            prices: without rings.
            measured: classes ``(T,)`` and their cost, as a fraction of the dense network's.
        """
        plans = [PatchPlan(self._patched, replace(prices, ring=ring), self._grid, self.patch) for ring in (1.0, 2.0)]
        once, twice = (np.array([plan.cost(classes) for classes, _ in measured]) for plan in plans)
        costs = np.array([cost for _, cost in measured])
        of_ring, more = (twice - once) / costs, (costs - once) / costs
        ring = 1 + float(of_ring @ more / (of_ring @ of_ring)) if of_ring.any() else 1.0
        return replace(prices, ring=max(1.0, ring))


def route_patches(plans: Sequence[PatchPlan], errors: Sequence[np.ndarray], budget: float) -> list[np.ndarray]:
    """Classes of the patches of images that share a budget, with rings and halos paid from it.

    Rings are known only when patches are routed: as much of the budget is given to the patches as leaves enough.

    Args:
        plans: of the images, all of one network.
        errors: relative ones ``(T, K)`` of each image's patches, which add up over all images.
        budget: largest average cost of the images' pixels, as a fraction of the dense network's.

    Returns:
        ``(T,)`` of each image. Where not even the cheapest candidate everywhere is within the budget, that.
    """
    sizes, together = np.concatenate([plan.sizes for plan in plans]), np.concatenate(errors)
    costs = plans[0].prices.of_patches
    cuts = np.cumsum([len(each) for each in errors])[:-1]
    pixels = sum(plan.dense_pixels for plan in plans)

    def solved(given: float) -> list[np.ndarray]:
        return np.split(solve_budget(together, costs, sizes, given), cuts)

    def cost(classes: Sequence[np.ndarray]) -> float:
        return sum(plan.cost(own) * plan.dense_pixels for plan, own in zip(plans, classes)) / pixels

    low = float(costs.min())
    given = high = max(min(budget, float(costs.max())), low)
    best: list[np.ndarray] | None = None
    for _ in range(_NARROWINGS):
        trial = solved(given)
        spent = cost(trial)
        if spent <= budget * (1 + 1e-9):
            low, best = given, trial
            if spent >= budget * (1 - _NEAR):
                break
        else:
            high = given
        if high - low <= _NEAR / 4 * budget:
            break
        given = (low + high) / 2
    return solved(float(costs.min())) if best is None else best
