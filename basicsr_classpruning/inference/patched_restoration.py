"""One image being restored patch by patch: every patch by its own candidate, all of a tile's in one forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from basicsr_classpruning.inference.engines import Engines
from basicsr_classpruning.inference.patch_plan import PatchPlan, route_patches
from basicsr_classpruning.inference.patched import CELL, PART, PatchedNetwork
from basicsr_classpruning.inference.prices import prices_in_macs
from basicsr_classpruning.inference.restoration import Means, Restoration, RestoreStats
from basicsr_classpruning.inference.shared_budget import Routing, Survey
from basicsr_classpruning.inference.tiling import TileGrid
from basicsr_classpruning.routing.budget import least_errors
from basicsr_classpruning.routing.errors import errors_in_image, expected_errors


class PatchedRestoration(Restoration):
    """Patches are routed over the whole image, then its tiles are restored.

    Tiles are what is in memory at once: their overlaps are halos, in which each patch takes the same candidate in all
    tiles that hold it.

    Args:
        means, image, grid: as of every restoration; tiles start and end at multiples of ``PART``.
        patched: the network.
        patch: side of a patch in input pixels, a multiple of ``PART``.
        engines: of the candidates that run nothing of the base network.
        classes: what restores the patches ``(T,)``, if not what routing finds, which takes its time all the same.
        routing: what restores them, where they were routed before.
    """

    def __init__(
        self,
        means: Means,
        image: np.ndarray,
        grid: TileGrid,
        patched: PatchedNetwork,
        patch: int,
        engines: Engines,
        classes: np.ndarray | None = None,
        routing: Routing | None = None,
    ) -> None:
        super().__init__(means, image, grid)
        self._engines = engines
        self._patched, self._patch = patched, patch
        start = time.perf_counter()
        means.workers.run(patched.prepare, self._tiles(np.array([0]))[:1])
        self.plan = PatchPlan(patched, means.prices, grid, patch)
        self.enough = False
        if routing is not None:
            self.classes, self.enough, self._seconds = routing.classes, routing.enough, routing.seconds
        else:
            self.errors: np.ndarray = self.plan.sums(self._error_map())
            """Predicted ones, summed over each patch's parts, ``(T, K)``."""
            found = self._route()
            self.classes = found if classes is None else classes
        self._cells = self.plan.in_cells(self.classes)
        self._running = self.plan.running_cells(self.classes)
        self._seconds += time.perf_counter() - start

    @property
    def parts(self) -> TileGrid:
        return self.plan.parts

    def survey(self) -> Survey:
        return Survey(self._expected() / len(self.classes), self.plan.patch**2, self.plan, self._seconds)

    def stats(self) -> RestoreStats:
        info = self._means.network.info
        patches = len(self.classes)
        share = np.bincount(self.classes, minlength=len(info.macs)) / patches
        dense = info.macs_dense * self.plan.pixels * self._planes
        in_macs = PatchPlan(self._patched, prices_in_macs(self._means.network), self._grid, self.plan.patch)
        return RestoreStats(
            average_macs=in_macs.cost(self.classes) * dense / patches,
            macs_dense=dense / patches,
            spent=self.plan.cost(self.classes),
            dense=self.plan.prices.dense * self.plan.dense_pixels * self._planes,
            enough=self.enough,
            class_share=dict(zip(info.candidates, share.tolist())),
            class_map=self.classes.reshape(self.plan.shape),
            tiles=patches,
            pixels=self.plan.pixels,
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
            down, right = self.plan.place_of_tile(number, PART)
            total[:, down, right] += errors
            count[down, right] += 1
        return total / count

    def _predicted_errors(self, number: int) -> np.ndarray:
        """``(K, h, w)`` of one tile's parts. A tile of several planes is routed as one: by their mean."""
        router = self._means.network.router
        assert router is not None
        with torch.inference_mode():
            return router.error_map(self._tiles(np.array([number]))).float().mean(dim=0).cpu().numpy()

    def _expected(self) -> np.ndarray:
        prices = self.plan.prices
        return expected_errors(errors_in_image(self.errors), prices.of_patches, prices.runs_base)

    def _route(self) -> np.ndarray:
        """Classes ``(T,)`` of patches, from the sums of their parts' errors ``(T, K)``."""
        network, budget = self._means.network, self._means.budget
        assert network.router is not None
        if budget is None:
            means = torch.from_numpy(errors_in_image(self.errors / self.plan.sizes[:, None])).to(self._device)
            return network.router.route(means, network.info.costs.tolist(), None).cpu().numpy()
        expected = self._expected()
        (classes,) = route_patches([self.plan], [expected], budget)
        self.enough = bool((classes == least_errors(expected, self.plan.prices.of_patches)).all())
        return classes

    # ---------------------------------------------------------------------------------------------------- restoring

    def _restored_row(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        yield from zip(map(int, numbers), self._means.workers.map(self._restore, numbers))

    @torch.inference_mode()
    def _restore(self, number: int) -> np.ndarray:
        x = self._tiles(np.array([number]))
        return self._untiled(torch.cat([self._restore_plane(plane, int(number)) for plane in x.split(1)]), 1)[0]

    def _restore_plane(self, x: Tensor, number: int) -> Tensor:
        """Restores one tile ``(1, C, h, w)``: with candidates that run nothing of the base network, and with all others
        together on top of them."""
        cells = self._cells[self.plan.place_of_tile(number, CELL)]
        runs = self.plan.prices.runs_base[cells]
        if runs.all():
            return self._run_base(x, number)
        restored: Tensor | None = None
        for index in np.unique(cells[~runs]).tolist():
            found = self._engines[index](x)
            where = self._enlarged(cells == index)
            restored = found if restored is None else torch.where(where, found, restored)
        assert restored is not None
        if not runs.any():
            return restored
        return torch.where(self._enlarged(runs), self._run_base(x, number), restored)

    def _run_base(self, x: Tensor, number: int) -> Tensor:
        return self._patched(x, self._running[self.plan.place_of_tile(number, CELL)])

    def _enlarged(self, cells: np.ndarray) -> Tensor:
        """A map of a tile's cells as one of its restored pixels."""
        side = CELL * self._means.network.sizes.scale
        return torch.from_numpy(cells.repeat(side, 0).repeat(side, 1)).to(self._device)
