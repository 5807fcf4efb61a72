"""One image being restored: cut into tiles, routed, restored band by band."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from basicsr_classpruning.devices import device_of
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.inference.engines import Engines
from basicsr_classpruning.inference.prices import Prices
from basicsr_classpruning.inference.shared_budget import Routing, Survey
from basicsr_classpruning.inference.tiling import Blender, TileGrid, batches
from basicsr_classpruning.inference.workers import Workers
from basicsr_classpruning.routing.budget import least_errors, solve_budget
from basicsr_classpruning.routing.errors import errors_in_image, expected_errors
from basicsr_classpruning.routing.network import RoutedNetwork

_SCORED = 16  # tiles that are classified together


@dataclass(frozen=True)
class RestoreStats:
    """What restoring an image cost."""

    average_macs: float
    """Mean MACs of a tile, the classifier's included if it was asked."""
    macs_dense: float
    """MACs of a tile with the dense network."""
    spent: float
    """Cost as budgets count it: as a fraction of the dense network's MACs, or of its time."""
    dense: float
    """What the dense network costs for the image, as budgets count it: MACs, or seconds as they were measured."""
    enough: bool
    """Whether everything got the candidate that is expected to leave the least error: more would not help."""
    class_share: dict[str, float]
    """Share of the tiles that each candidate restored; empty for a dense network."""
    class_map: np.ndarray
    """``(tile rows, tile columns)`` index of each tile's candidate."""
    tiles: int
    pixels: int
    """Of the image, before restoring."""
    seconds: float
    """Wall clock of routing and restoring; reading and writing files are not counted."""

    @property
    def saved(self) -> float:
        """1 − average MACs / dense MACs."""
        return 1 - self.average_macs / self.macs_dense


@dataclass(frozen=True)
class Means:
    """With what images are restored."""

    network: RoutedNetwork
    margin: int | None
    """See ``tile_margin``."""
    workers: Workers
    pinned: int | None
    """Place of the one candidate that restores everything; None where the router decides."""
    budget: float | None
    """Largest average cost of an image, as a fraction of the dense network's; None: the router's price decides."""
    prices: Prices
    """What budgets count."""


class Restoration(ABC):
    """One image being restored: routed when made, restored band by band as `bands` is consumed.

    Args:
        means: with what.
        image: ``(H, W, C)``.
        grid: its tiles.
    """

    classes: np.ndarray
    """Place of the candidate of each tile or patch, counted row by row."""

    def __init__(self, means: Means, image: np.ndarray, grid: TileGrid) -> None:
        if image.shape[2] not in (1, 3):
            raise UserError(f'a picture with {image.shape[2]} channels; allowed are 1 (grey) and 3 (RGB)')
        self._means, self._image, self._grid = means, image, grid
        self._range = 1.0 if np.issubdtype(image.dtype, np.floating) else float(np.iinfo(image.dtype).max)
        self._device = device_of(means.network.module)
        self._seconds = 0.0

    @property
    @abstractmethod
    def parts(self) -> TileGrid:
        """Where the parts of the image lie that ``classes`` speaks of."""

    @abstractmethod
    def survey(self) -> Survey:
        """What has to be known to route the image together with others."""

    @abstractmethod
    def stats(self) -> RestoreStats:
        """What the image cost; complete once `bands` has ended."""

    @abstractmethod
    def _restored_row(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Restores tiles; yields their numbers and themselves, ``(C, h * scale, w * scale)``, in any order."""

    def bands(self) -> Iterator[np.ndarray]:
        """Yields the restored image from top to bottom, ``(h, W * scale, C)``, in the type of the image."""
        start = time.perf_counter()
        scale, margin = self._means.network.info.scale, self._means.margin
        blender = Blender(self._grid, scale, self._image.shape[2], margin)
        columns = len(self._grid.cols.starts)
        for row in range(len(self._grid.rows.starts)):
            for number, tile in self._restored_row(np.arange(row * columns, (row + 1) * columns)):
                blender.add(number - row * columns, tile)
            for band in map(self._to_picture, blender.finish_row()):
                self._seconds += time.perf_counter() - start
                yield band
                start = time.perf_counter()

    @property
    def _planes(self) -> int:
        """How often the network runs on each tile: once for each channel that it does not know of."""
        return self._image.shape[2] if self._means.network.info.channels == 1 else 1

    def _tiles(self, numbers: np.ndarray) -> Tensor:
        """Tiles as the network wants them.

        A one-channel network restores each channel of a colour image as an image of its own, ``(T * 3, 1, h, w)``;
        a three-channel network is given a grey image three times, ``(T, 3, h, w)``.
        """
        tiles = np.stack([self._grid.cut(self._image, int(number)) for number in numbers]).transpose(0, 3, 1, 2)
        x = torch.from_numpy(tiles.astype(np.float32)).div_(self._range).to(self._device)
        if self._means.network.info.channels == 1:
            return x.reshape(-1, 1, *x.shape[2:])
        return x.expand(-1, 3, -1, -1)

    def _untiled(self, y: Tensor, count: int) -> np.ndarray:
        """The network's answers to ``count`` tiles, ``(T, C, h * scale, w * scale)`` float32, C of the image."""
        channels = self._image.shape[2]
        if channels == 1 and y.shape[1] > 1:
            y = y.mean(dim=1, keepdim=True)
        return y.float().reshape(count, channels, *y.shape[2:]).cpu().numpy()

    def _to_picture(self, band: np.ndarray) -> np.ndarray:
        if not np.isfinite(band).all():
            raise UserError('the network gives values that are no numbers (NaN or infinite)')
        if np.issubdtype(self._image.dtype, np.floating):
            return band.astype(self._image.dtype)
        return np.rint(band.clip(0, 1) * self._range).astype(self._image.dtype)


class TiledRestoration(Restoration):
    """Each tile is restored by one candidate.

    Args:
        means, image, grid: as of every restoration.
        engines: of the candidates that may be chosen.
        batch: tiles that run together.
        classes: what restores the tiles ``(T,)``, if not what routing finds, which takes its time all the same.
        routing: what restores them, where they were routed before.
    """

    def __init__(
        self,
        means: Means,
        image: np.ndarray,
        grid: TileGrid,
        engines: Engines,
        batch: int,
        classes: np.ndarray | None = None,
        routing: Routing | None = None,
    ) -> None:
        super().__init__(means, image, grid)
        self._engines, self._batch = engines, batch
        self._enough = False
        start = time.perf_counter()
        if means.pinned is not None:
            self.classes = np.full(len(grid), means.pinned)
        elif routing is not None:
            self.classes, self._enough, self._seconds = routing.classes, routing.enough, routing.seconds
        else:
            groups = batches(np.arange(len(grid)), _SCORED)
            self._errors = np.concatenate(list(means.workers.map(self._predicted_errors, groups)))
            found = self._route()
            self.classes = found if classes is None else classes
        self._seconds += time.perf_counter() - start

    @property
    def parts(self) -> TileGrid:
        return self._grid

    def survey(self) -> Survey:
        return Survey(self._expected() / len(self._grid), self._tile_pixels, None, self._seconds)

    def _expected(self) -> np.ndarray:
        prices = self._means.prices
        return expected_errors(errors_in_image(self._errors), prices.of_tiles, prices.runs_base)

    def _route(self) -> np.ndarray:
        """Classes ``(T,)`` of tiles of one size, from their predicted errors ``(T, K)``."""
        network, budget = self._means.network, self._means.budget
        if budget is not None:
            costs, expected = self._means.prices.of_tiles, self._expected()
            classes = solve_budget(expected, costs, np.ones(len(expected)), budget)
            self._enough = bool((classes == least_errors(expected, costs)).all())
            return classes
        assert network.router is not None
        relative, macs = errors_in_image(self._errors), network.info.costs.tolist()
        return network.router.route(torch.from_numpy(relative).to(self._device), macs, None).cpu().numpy()

    @property
    def _tile_pixels(self) -> int:
        return self._grid.tile_size[0] * self._grid.tile_size[1] * self._planes

    def bands(self) -> Iterator[np.ndarray]:
        start = time.perf_counter()
        for index in np.unique(self.classes):
            self._engines.prepare(int(index), self._means.workers.run(self._tiles, np.arange(1)))
        self._seconds += time.perf_counter() - start
        yield from super().bands()

    def _restored_row(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        groups = [
            group
            for index in np.unique(self.classes[numbers])
            for group in batches(numbers[self.classes[numbers] == index], self._batch)
        ]
        for group, tiles in zip(groups, self._means.workers.map(self._restore, groups)):
            yield from zip(map(int, group), tiles)

    def stats(self) -> RestoreStats:
        info = self._means.network.info
        pixels = self._tile_pixels
        classifier = info.macs_classifier if self._means.pinned is None else 0
        share = np.bincount(self.classes, minlength=len(info.macs)) / len(self._grid)
        return RestoreStats(
            average_macs=(float(share @ np.array(info.macs)) + classifier) * pixels,
            macs_dense=info.macs_dense * pixels,
            spent=self._spent(share),
            dense=self._means.prices.dense * len(self._grid) * pixels,
            enough=self._enough,
            class_share=dict(zip(info.candidates, share.tolist())),
            class_map=self.classes.reshape(len(self._grid.rows.starts), -1),
            tiles=len(self._grid),
            pixels=self._image.shape[0] * self._image.shape[1],
            seconds=self._seconds,
        )

    def _spent(self, share: np.ndarray) -> float:
        prices = self._means.prices
        classifier = prices.classifier if self._means.pinned is None else 0.0
        return (float(share @ prices.candidates) + classifier) / prices.dense

    @torch.inference_mode()
    def _predicted_errors(self, numbers: np.ndarray) -> np.ndarray:
        """``(T, K)`` of tiles. A tile of several planes is routed as one: by their mean."""
        router = self._means.network.router
        assert router is not None
        errors = router.predicted_errors(self._tiles(numbers)).float()
        return errors.reshape(len(numbers), -1, errors.shape[1]).mean(dim=1).cpu().numpy()

    def _restore(self, numbers: np.ndarray) -> np.ndarray:
        """Restores tiles of one class."""
        return self._untiled(self._engines[int(self.classes[numbers[0]])](self._tiles(numbers)), len(numbers))
