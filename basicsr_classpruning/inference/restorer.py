"""Restores pictures with a network: tile by tile, each with the candidate that it was routed to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from basicsr_classpruning.archs.forms import as_routed
from basicsr_classpruning.devices import device_of, pick_device
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.inference.engines import Engines
from basicsr_classpruning.inference.receptive_field import tile_margin
from basicsr_classpruning.inference.tiling import Blender, TileGrid, batches, check_tile, plan_tiles
from basicsr_classpruning.inference.workers import Workers
from basicsr_classpruning.routing.budget import check_budget, solve_budget
from basicsr_classpruning.routing.errors import errors_in_image
from basicsr_classpruning.routing.network import RoutedNetwork

_SCORED = 16  # tiles that are classified together


@dataclass(frozen=True)
class RestoreStats:
    """What restoring a picture cost."""

    average_macs: float
    """Mean MACs of a tile, the classifier's included if it was asked."""
    macs_dense: float
    """MACs of a tile with the dense network."""
    class_share: dict[str, float]
    """Share of the tiles that each candidate restored; empty for a dense network."""
    class_map: np.ndarray
    """``(tile rows, tile columns)`` index of each tile's candidate."""
    tiles: int
    pixels: int
    """Of the picture, before restoring."""
    seconds: float
    """Wall clock of routing and restoring; reading and writing files are not counted."""

    @property
    def saved(self) -> float:
        """1 − average MACs / dense MACs."""
        return 1 - self.average_macs / self.macs_dense


class Restorer:
    """Restores pictures of any size.

    Args:
        net: a ClassPruning network or a dense one, as `basicsr_classpruning.load` returns it, or a routed network.
        tile: largest side of a tile, in pixels of the picture to be restored.
        overlap: smallest overlap of neighbouring tiles.
        budget: wanted average MACs of each picture as a fraction of the dense ones; by default the network's own
            ``budget``, and if that is None, the classifier alone decides.
        candidate: the one candidate that restores everything, e.g. ``'2:4'``; the classifier is not asked.
        backend: ``auto``, ``dense`` or ``cpu``, see `engines.Engines`.
        batch: tiles that run together; by default 1 on a CPU, where each thread runs its own, and 16 on a GPU.
        threads: threads on the CPU, by default as many as torch uses. The result does not depend on it.
        device: ``auto`` (a GPU if there is one) or a name such as ``cpu`` and ``cuda:1``. The network is moved there.

    Raises:
        UsageError: a value that is not allowed, or one that the network does not have.
        UserError: the network cannot restore pictures.
    """

    def __init__(
        self,
        net: nn.Module | RoutedNetwork,
        *,
        tile: int = 96,
        overlap: int = 8,
        budget: float | None = None,
        candidate: str | None = None,
        backend: str = 'auto',
        batch: int | None = None,
        threads: int | None = None,
        device: str = 'auto',
    ) -> None:
        if budget is not None and candidate is not None:
            raise UsageError('budget and candidate: only one of them can be given')
        for name, value in (('batch', batch), ('threads', threads)):
            if value is not None and value < 1:
                raise UsageError(f'{value}: allowed are 1 and more', key=name)
        self.network = as_routed(net)
        self.network.module.to(pick_device(device))
        check_channels(self.network)
        self.info = self.network.info
        self.margin = tile_margin(self.network.dense, overlap)
        on_cpu = device_of(self.network.module).type == 'cpu'
        self.tile, self.overlap, self.batch = tile, overlap, batch or (1 if on_cpu else 16)
        check_tile(tile, overlap, self.info.sizes)
        self.workers = Workers((threads or torch.get_num_threads()) if on_cpu else 1)
        self.pinned = self._pinned_index(candidate)
        self.engines = Engines(self.network, backend, self.pinned)
        self.budget = self._budget(budget)

    def _pinned_index(self, candidate: str | None) -> int | None:
        if candidate is None:
            return 0 if self.network.router is None else None
        return self.network.index(candidate)

    def _budget(self, budget: float | None) -> float | None:
        if self.network.router is None and budget is not None:
            raise UsageError(f'{budget:g}: the network is dense and has no candidates', key='budget')
        if self.pinned is not None:
            return None
        budget = self.network.budget if budget is None else budget
        if budget is not None:
            check_budget(budget, self.info.costs[0], self.info.costs[-1])
        return budget

    def start(self, picture: np.ndarray) -> Restoration:
        """Cuts a picture ``(H, W, C)`` into tiles and routes them; nothing is restored yet."""
        grid = plan_tiles(picture.shape[0], picture.shape[1], self.tile, self.overlap, self.info.sizes)
        return Restoration(self, picture, grid)

    def restore(self, picture: np.ndarray) -> tuple[np.ndarray, RestoreStats]:
        """Restores a picture.

        Args:
            picture: ``(H, W)`` or ``(H, W, C)``, grey or RGB, ``uint8``, ``uint16`` or floats in [0, 1].

        Returns:
            The restored picture, ``scale`` times the size, in the type and with the channels of ``picture`` (floats
            are not clipped), and what it cost.
        """
        restoration = self.start(picture if picture.ndim == 3 else picture[..., None])
        restored = np.concatenate(list(restoration.bands()))
        return (restored if picture.ndim == 3 else restored[..., 0]), restoration.stats()

    # ------------------------------------------------------------------------------------------------------ routing

    def route(self, errors: np.ndarray) -> np.ndarray:
        """Classes ``(T,)`` of an image's tiles, all of one size, from their predicted errors ``(T, K)``."""
        relative = errors_in_image(errors)
        if self.budget is not None:
            return solve_budget(relative, self.info.costs, np.ones(len(relative)), self.budget)
        assert self.network.router is not None
        where = device_of(self.network.module)
        costs = self.info.costs.tolist()
        return self.network.router.route(torch.from_numpy(relative).to(where), costs, None).cpu().numpy()


def check_channels(network: RoutedNetwork) -> None:
    """Raises UserError for a network that takes neither grey nor RGB images."""
    if network.channels not in (1, 3):
        raise UserError(f'the network takes {network.channels} channels; allowed are 1 (grey) and 3 (RGB)')


class Restoration:
    """One picture being restored: routed when made, restored band by band as `bands` is consumed."""

    def __init__(self, restorer: Restorer, picture: np.ndarray, grid: TileGrid) -> None:
        if picture.shape[2] not in (1, 3):
            raise UserError(f'a picture with {picture.shape[2]} channels; allowed are 1 (grey) and 3 (RGB)')
        self._restorer, self._picture, self.grid = restorer, picture, grid
        self._range = 1.0 if np.issubdtype(picture.dtype, np.floating) else float(np.iinfo(picture.dtype).max)
        self._device = device_of(restorer.network.module)
        start = time.perf_counter()
        if restorer.pinned is not None:
            self.classes = np.full(len(grid), restorer.pinned)
        else:
            groups = batches(np.arange(len(grid)), _SCORED)
            self.classes = restorer.route(np.concatenate(list(restorer.workers.map(self._predicted_errors, groups))))
        self._seconds = time.perf_counter() - start

    @property
    def rows(self) -> int:
        """Rows of tiles, one band each."""
        return len(self.grid.rows.starts)

    def bands(self) -> Iterator[np.ndarray]:
        """Yields the restored picture from top to bottom, ``(h, W * scale, C)``, in the type of the picture."""
        start = time.perf_counter()
        workers = self._restorer.workers
        for index in np.unique(self.classes):
            self._restorer.engines.prepare(int(index), workers.run(self._tiles, np.arange(1)))
        scale, margin = self._restorer.info.scale, self._restorer.margin
        blender = Blender(self.grid, scale, self._picture.shape[2], margin)
        columns = len(self.grid.cols.starts)
        for row in range(self.rows):
            numbers = np.arange(row * columns, (row + 1) * columns)
            groups = [
                group
                for index in np.unique(self.classes[numbers])
                for group in batches(numbers[self.classes[numbers] == index], self._restorer.batch)
            ]
            for group, tiles in zip(groups, workers.map(self._restore_tiles, groups)):
                for number, tile in zip(group, tiles):
                    blender.add(int(number) - row * columns, tile)
            for band in map(self._to_picture, blender.finish_row()):
                self._seconds += time.perf_counter() - start
                yield band
                start = time.perf_counter()

    def stats(self) -> RestoreStats:
        """What the picture cost; complete once `bands` has ended."""
        info = self._restorer.info
        planes = self._picture.shape[2] if info.channels == 1 else 1
        pixels = self.grid.tile_size[0] * self.grid.tile_size[1] * planes
        classifier = info.macs_classifier if self._restorer.pinned is None else 0
        share = np.bincount(self.classes, minlength=len(info.macs)) / len(self.grid)
        return RestoreStats(
            average_macs=(float(share @ np.array(info.macs)) + classifier) * pixels,
            macs_dense=info.macs_dense * pixels,
            class_share=dict(zip(info.candidates, share.tolist())),
            class_map=self.classes.reshape(self.rows, -1),
            tiles=len(self.grid),
            pixels=self._picture.shape[0] * self._picture.shape[1],
            seconds=self._seconds,
        )

    @torch.inference_mode()
    def _predicted_errors(self, numbers: np.ndarray) -> np.ndarray:
        """``(T, K)`` of tiles. A tile of several planes is routed as one: by their mean."""
        router = self._restorer.network.router
        assert router is not None
        errors = router.predicted_errors(self._tiles(numbers)).float()
        return errors.reshape(len(numbers), -1, errors.shape[1]).mean(dim=1).cpu().numpy()

    def _restore_tiles(self, numbers: np.ndarray) -> np.ndarray:
        """Restores tiles of one class: ``(T, C, h * scale, w * scale)`` float32, C of the picture."""
        y = self._restorer.engines[int(self.classes[numbers[0]])](self._tiles(numbers)).float()
        channels = self._picture.shape[2]
        if channels == 1 and y.shape[1] > 1:
            y = y.mean(dim=1, keepdim=True)
        return y.reshape(len(numbers), channels, *y.shape[2:]).cpu().numpy()

    def _tiles(self, numbers: np.ndarray) -> Tensor:
        """Tiles as the network wants them.

        A one-channel network restores each channel of a colour picture as a picture of its own, ``(T * 3, 1, h, w)``;
        a three-channel network is given a grey picture three times, ``(T, 3, h, w)``.
        """
        tiles = np.stack([self.grid.cut(self._picture, int(number)) for number in numbers]).transpose(0, 3, 1, 2)
        x = torch.from_numpy(tiles.astype(np.float32)).div_(self._range).to(self._device)
        if self._restorer.info.channels == 1:
            return x.reshape(-1, 1, *x.shape[2:])
        return x.expand(-1, 3, -1, -1)

    def _to_picture(self, band: np.ndarray) -> np.ndarray:
        if not np.isfinite(band).all():
            raise UserError('the network gives values that are no numbers (NaN or infinite)')
        if np.issubdtype(self._picture.dtype, np.floating):
            return band.astype(self._picture.dtype)
        return np.rint(band.clip(0, 1) * self._range).astype(self._picture.dtype)
