"""One image being restored patch by patch: every patch by its own candidate, all of a tile's in one forward pass."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basicsr_classpruning.inference.engines import Engines
from basicsr_classpruning.inference.patched import CELL, PART, PatchedNetwork
from basicsr_classpruning.inference.restoration import Means, Restoration, RestoreStats
from basicsr_classpruning.inference.tiling import Axis, TileGrid
from basicsr_classpruning.routing.budget import solve_budget
from basicsr_classpruning.routing.errors import errors_in_image

_NARROWINGS = 12  # of what is left of a budget when rings are paid
_NEAR = 0.002  # of the budget, where narrowing ends
_BASE = -1  # in place of a candidate: all that run the base network, together


class PatchedRestoration(Restoration):
    """Patches are routed over the whole image, then its tiles are restored.

    Tiles are what is in memory at once: their overlaps are halos, in which each patch takes the same candidate in all
    tiles that hold it.

    Args:
        means, image, grid: as of every restoration; tiles start and end at multiples of ``PART``.
        patched: the network.
        patch: side of a patch in input pixels, a multiple of ``PART``.
        engines: of the candidates that run nothing of the base network.
    """

    def __init__(
        self,
        means: Means,
        image: np.ndarray,
        grid: TileGrid,
        patched: PatchedNetwork,
        patch: int,
        engines: Engines,
    ) -> None:
        super().__init__(means, image, grid)
        self._engines = engines
        self._patched, self._side = patched, patch // PART
        start = time.perf_counter()
        means.workers.run(patched.prepare, self._tiles(np.array([0]))[:1])
        errors = self._error_map()
        self._part_grid = errors.shape[1:]
        self._shape = tuple(-(-parts // self._side) for parts in self._part_grid)
        parts_of_patches = self._sums(np.ones((1, *self._part_grid)))[0]
        self.classes = self._route(self._sums(errors).T, parts_of_patches)
        self._running = self._running_cells(self.classes)
        self._seconds = time.perf_counter() - start

    @property
    def parts(self) -> TileGrid:
        """The patches."""
        rows, columns = (
            Axis(length, self._side * PART, tuple(range(0, count * self._side * PART, self._side * PART)))
            for length, count in zip(self._image.shape, self._shape)
        )
        return TileGrid(rows, columns)

    def stats(self) -> RestoreStats:
        info = self._means.network.info
        patches = len(self.classes)
        pixels = self._image.shape[0] * self._image.shape[1]
        share = np.bincount(self.classes, minlength=len(info.macs)) / patches
        dense = info.macs_dense * pixels * self._planes
        return RestoreStats(
            average_macs=self._cost(self._running) * dense / patches,
            macs_dense=dense / patches,
            class_share=dict(zip(info.candidates, share.tolist())),
            class_map=self.classes.reshape(self._shape),
            tiles=patches,
            pixels=pixels,
            seconds=self._seconds,
        )

    # ------------------------------------------------------------------------------------------------------ routing

    @torch.inference_mode()
    def _error_map(self) -> np.ndarray:
        """Predicted errors of all parts, ``(K, rows, columns)``; where tiles overlap, their mean."""
        network, grid = self._means.network, self._grid
        assert network.router is not None
        rows, columns = grid.rows.padded // PART, grid.cols.padded // PART
        total, count = np.zeros((len(network.subnetworks), rows, columns)), np.zeros((rows, columns))
        found = self._means.workers.map(self._predicted_errors, range(len(grid)))
        for number, errors in enumerate(found):
            down, right = self._place_of_tile(number, PART)
            total[:, down, right] += errors
            count[down, right] += 1
        return total / count

    def _predicted_errors(self, number: int) -> np.ndarray:
        """``(K, h, w)`` of one tile's parts. A tile of several planes is routed as one: by their mean."""
        router = self._means.network.router
        assert router is not None
        with torch.inference_mode():
            return router.error_map(self._tiles(np.array([number]))).float().mean(dim=0).cpu().numpy()

    def _place_of_tile(self, number: int, unit: int) -> tuple[slice, slice]:
        """Where a tile lies in a map whose entries have ``unit`` input pixels a side."""
        top, left = (start // unit for start in self._grid.corner(number))
        height, width = (side // unit for side in self._grid.tile_size)
        return slice(top, top + height), slice(left, left + width)

    def _route(self, errors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Classes ``(T,)`` of patches, from the sums of their parts' errors ``(T, K)`` and their numbers of parts."""
        relative = errors_in_image(errors)
        network, budget = self._means.network, self._means.budget
        assert network.router is not None
        costs = network.info.costs
        if budget is None:
            means = torch.from_numpy(errors_in_image(errors / sizes[:, None])).to(self._device)
            return network.router.route(means, costs.tolist(), None).cpu().numpy()
        # Rings are paid from the budget: as much of it is given to the patches as leaves enough for them.
        low, high = float(costs[0]), float(min(budget, costs[-1]))
        given, chosen = high, None
        for _ in range(_NARROWINGS):
            trial = solve_budget(relative, costs, sizes, given)
            if self._cost(self._running_cells(trial)) <= budget:
                low, chosen = given, trial
            else:
                high = given
            if high - low <= _NEAR * budget:
                break
            given = (low + high) / 2
        return solve_budget(relative, costs, sizes, float(costs[0])) if chosen is None else chosen

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Sums ``(N, T)`` over each patch's parts of values ``(N, rows, columns)``."""
        (rows, columns), side = self._shape, self._side
        missing = [(0, count * side - parts) for count, parts in zip(self._shape, self._part_grid)]
        padded = np.pad(values, [(0, 0), *missing])
        return padded.reshape(-1, rows, side, columns, side).sum((2, 4)).reshape(len(values), -1)

    def _in_cells(self, classes: np.ndarray) -> np.ndarray:
        """The candidate of each cell, from those of the patches."""
        cells = self._side * PART // CELL
        rows, columns = (parts * PART // CELL for parts in self._part_grid)
        return classes.reshape(self._shape).repeat(cells, 0).repeat(cells, 1)[:rows, :columns]

    def _running_cells(self, classes: np.ndarray) -> np.ndarray:
        """What runs in each cell, rings included."""
        return self._patched.with_ring(self._in_cells(classes))

    def _cost(self, cells: np.ndarray) -> float:
        """MACs of all that is computed, as a fraction of the dense network's for the image without halos."""
        info = self._means.network.info
        runs = np.array([*info.macs, 0.0])  # the last one for NOTHING
        computed = 0.0
        for number in range(len(self._grid)):
            part = cells[self._place_of_tile(number, CELL)]
            computed += runs[part].sum() * CELL**2
            computed += (info.macs_classifier + self._others()) * part.size * CELL**2
        return computed / (info.macs_dense * self._image.shape[0] * self._image.shape[1])

    def _others(self) -> float:
        """MACs a pixel of the candidates that run nothing of the base network: over the whole image."""
        network = self._means.network
        return sum(macs for macs, one in zip(network.info.macs, network.subnetworks) if not one.runs_base)

    # ---------------------------------------------------------------------------------------------------- restoring

    def _restored_row(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        yield from zip(map(int, numbers), self._means.workers.map(self._restore, numbers))

    @torch.inference_mode()
    def _restore(self, number: int) -> np.ndarray:
        x = self._tiles(np.array([number]))
        return self._untiled(torch.cat([self._restore_plane(plane, int(number)) for plane in x.split(1)]), 1)[0]

    def _restore_plane(self, x: Tensor, number: int) -> Tensor:
        """Restores one tile ``(1, C, h, w)``: what restores most of its patches, and patches of the others on it."""
        patches = list(self._patches_of_tile(number))
        answers: dict[int, Tensor] = {}
        for index in {index for index, _ in patches}:
            if index != _BASE:
                answers[index] = self._engines[index](x)
            else:
                answers[index] = self._patched(x, self._running[self._place_of_tile(number, CELL)])
        most, _ = Counter(index for index, _ in patches).most_common(1)[0]
        restored = answers[most]
        if len(answers) > 1 and restored.data_ptr() == x.data_ptr():
            restored = restored.clone()
        for index, where in patches:
            if index != most:
                restored[where] = answers[index][where]
        return restored

    def _patches_of_tile(self, number: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Of each patch in a tile: who restores it (``_BASE``: all that run the base network, together), and where it
        lies in the restored tile ``(1, C, h, w)``."""
        subnetworks, scale = self._means.network.subnetworks, self._means.network.sizes.scale
        rows, columns = (
            [
                (first // side, slice(max(first - start, 0) * scale, min(first + side - start, length) * scale))
                for first in range(start // side * side, start + length, side)
            ]
            for start, length, side in zip(self._grid.corner(number), self._grid.tile_size, [self._side * PART] * 2)
        )
        classes = self.classes.reshape(self._shape)
        for row, down in rows:
            for column, right in columns:
                index = int(classes[row, column])
                yield (_BASE if subnetworks[index].runs_base else index), (..., down, right)
