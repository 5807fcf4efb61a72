"""Restores images with a network, as it is told once: tiles, candidates, budget, engine, threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from basicsr_classpruning.archs.forms import as_routed
from basicsr_classpruning.devices import device_of, pick_device
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.inference.engines import Engines
from basicsr_classpruning.inference.patched import PART, NotPatchable, PatchedNetwork, patchable_graph
from basicsr_classpruning.inference.patched_restoration import PatchedRestoration
from basicsr_classpruning.inference.prices import Prices, prices_in_macs
from basicsr_classpruning.inference.receptive_field import tile_margin
from basicsr_classpruning.inference.restoration import Means, Restoration, RestoreStats, TiledRestoration
from basicsr_classpruning.inference.shared_budget import Routing, Survey, route_together
from basicsr_classpruning.inference.tiling import TileGrid, check_tile, plan_tiles, usual_tile
from basicsr_classpruning.inference.timing import (
    Seconds,
    conditions_of,
    in_turn,
    kept_or_measured,
    prices_of,
    usual_maps,
)
from basicsr_classpruning.inference.workers import Workers
from basicsr_classpruning.routing.network import RoutedNetwork
from basicsr_classpruning.sizes import SizeRequirements

_USUAL_PATCH = 32
_MEASURED_TILE = 256  # largest side of the tiles that are timed, where budgets are in time
_SMALLER = 10  # pixels: than the largest tile, those of photographs are on average

PRECISIONS = ('auto', 'fp32', 'int8')


class Restorer:
    """Restores images of any size.

    Args:
        net: a ClassPruning network or a dense one, as `basicsr_classpruning.load` returns it, or a routed network.
        tile: largest side of a tile, in pixels of the image to be restored; by default as `usual_tile` says.
        overlap: smallest overlap of neighbouring tiles.
        patch: side of the patches that get a candidate of their own, in pixels of the image to be restored, a
            multiple of 8; by default whole tiles do.
        budget: largest average cost of each image, as a fraction of the dense network's; by default the network's own
            ``budget``, and if that is None, the classifier alone decides. No more is spent than helps.
        budget_in: what costs are: ``macs``, or ``time`` as it is measured on this machine once, and kept in a file.
        candidate: the one candidate that restores everything, e.g. ``'2:4'``; the classifier is not asked.
        precision: ``fp32`` or ``int8`` lets only such candidates be chosen, and the bypass; ``auto`` all.
        backend: ``auto``, ``dense`` or ``cpu``, see `engines.Engines`.
        batch: tiles that run together; by default 1 on a CPU, where each thread runs its own, and 16 on a GPU.
        threads: threads on the CPU, by default as many as torch uses. The result does not depend on it.
        device: ``auto`` (a GPU if there is one) or a name such as ``cpu`` and ``cuda:1``. The network is moved there.

    Raises:
        UsageError: a value that is not allowed, or one that the network does not have.
        UserError: the network cannot restore images.
    """

    def __init__(
        self,
        net: nn.Module | RoutedNetwork,
        *,
        tile: int | None = None,
        overlap: int = 8,
        patch: int | None = None,
        budget: float | None = None,
        budget_in: str = 'macs',
        candidate: str | None = None,
        precision: str = 'auto',
        backend: str = 'auto',
        batch: int | None = None,
        threads: int | None = None,
        device: str = 'auto',
    ) -> None:
        if budget is not None and candidate is not None:
            raise UsageError('budget and candidate: only one of them can be given')
        if budget_in not in ('macs', 'time'):
            raise UsageError(f'{budget_in}: allowed are macs and time', key='budget_in')
        for name, value in (('batch', batch), ('threads', threads)):
            if value is not None and value < 1:
                raise UsageError(f'{value}: allowed are 1 and more', key=name)
        if precision not in PRECISIONS:
            raise UsageError(f'{precision!r}: allowed are {", ".join(PRECISIONS)}', key='precision')
        self.network = as_routed(net).of_precision(precision)
        self.network.module.to(pick_device(device))
        check_channels(self.network)
        self.info = self.network.info
        self.margin = tile_margin(self.network.dense, overlap)
        on_cpu = device_of(self.network.module).type == 'cpu'
        tile = usual_tile(overlap, self.info.sizes, patch) if tile is None else tile
        self.tile, self.overlap, self.batch = tile, overlap, batch or (1 if on_cpu else 16)
        check_tile(tile, overlap, self.info.sizes)
        self.patch = patch
        self.workers = Workers((threads or torch.get_num_threads()) if on_cpu else 1)
        self.pinned = self._pinned_index(candidate)
        self._patched = self._patched_network(backend)
        self.engines = Engines(self.network, backend, self.pinned)
        self.prices = prices_in_macs(self.network)
        self._means = Means(self.network, self.margin, self.workers, self.pinned, None, self.prices)
        if budget_in == 'time' and self.network.router is not None and self.pinned is None:
            settings = {
                'tile': tile,
                'overlap': overlap,
                'patch': patch,
                'batch': self.batch,
                'backend': backend,
                'threads': self.workers.count,
                'device': str(device_of(self.network.module)),
            }
            self.prices = kept_or_measured(conditions_of(self.network, settings), self._measured_prices)
        self.budget = self._budget(budget)
        self._means = replace(self._means, budget=self.budget, prices=self.prices)

    def _pinned_index(self, candidate: str | None) -> int | None:
        if candidate is None:
            return 0 if self.network.router is None else None
        return self.network.index(candidate)

    def _patched_network(self, backend: str) -> PatchedNetwork | None:
        """What restores patches, where they are wanted and there is something to choose."""
        if self.patch is None or self.pinned is not None:
            return None
        return patched_network(self.network, self.patch, self.tile, backend)

    def _budget(self, budget: float | None) -> float | None:
        if self.network.router is None and budget is not None:
            raise UsageError(f'{budget:g}: the network is dense and has no candidates', key='budget')
        if self.pinned is not None:
            return None
        budget = self.network.budget if budget is None else budget
        if budget is not None:
            self.prices.check(budget, self._patched is not None)
        return budget

    def _measured_prices(self) -> Prices:
        """Seconds of an input pixel, of an image of a few tiles: as one candidate restores it, and as all do together.

        Its tiles are about as large as those of photographs: it is a little smaller than two rows of the largest.
        """
        side = min(self.tile, _MEASURED_TILE)
        height, width = (
            max(side, tiles * (side - self.overlap - _SMALLER) + self.overlap)
            for tiles in (2, max(2, self.workers.count))
        )
        shape = (height, width, 3 if self.info.channels == 3 else 1)
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        pixels = shape[0] * shape[1]
        last = len(self.network.subnetworks) - 1
        grid = plan_tiles(*shape[:2], self.tile, self.overlap, self.info.sizes)
        first = self.start(image)
        parts = len(first.classes)

        def seconds(restoration: Restoration) -> float:
            for _ in restoration.bands():
                pass
            return restoration.stats().seconds

        def given(classes: np.ndarray) -> float:
            return seconds(self.start(image, classes))

        def dense() -> float:
            pinned = replace(self._means, pinned=last)
            return seconds(TiledRestoration(pinned, image, grid, self.engines, self.batch))

        ways = {str(index): partial(given, np.full(parts, index)) for index in range(last + 1)}
        others: dict[str, Seconds] = {'routing': lambda: self.start(image).stats().seconds, 'dense': dense}
        runs_base = self.prices.runs_base
        mixed: dict[str, np.ndarray] = {}
        if isinstance(first, PatchedRestoration) and not runs_base.all():
            maps = usual_maps(first.plan.shape, np.flatnonzero(runs_base), int(np.flatnonzero(~runs_base)[0]))
            mixed = {f'mixed {number}': classes for number, classes in enumerate(maps)}
            others |= {name: partial(given, classes) for name, classes in mixed.items()}
        found = in_turn({**ways, **others})
        each = {name: elapsed / pixels for name, elapsed in found.items()}
        routed = np.array([each[name] for name in ways])
        patches = self._patched is not None
        cells = plan_cells(*shape[:2], self.tile, self.overlap, self.info.sizes) if patches else grid
        reference = each['dense'] * self.info.macs_dense / self.info.macs[last]  # a ladder may end below the dense one
        of_tile = reference * pixels / grid.pixels
        prices = prices_of(routed, each['routing'], of_tile, runs_base, cells.pixels / pixels, patches)
        if not isinstance(first, PatchedRestoration):
            return prices
        return first.plan.with_measured_ring(prices, [(mixed[name], each[name] / reference) for name in mixed])

    def start(
        self, image: np.ndarray, classes: np.ndarray | None = None, routing: Routing | None = None
    ) -> Restoration:
        """Cuts an image ``(H, W, C)`` into tiles and routes them; nothing is restored yet.

        ``classes`` ``(T,)`` of tiles or patches take the place of what routing finds; with a ``routing``, of
        ``route_together``, they are not routed again.
        """
        height, width = image.shape[:2]
        if self._patched is not None and self.patch is not None:
            grid = plan_cells(height, width, self.tile, self.overlap, self.info.sizes)
            return PatchedRestoration(
                self._means, image, grid, self._patched, self.patch, self.engines, classes, routing
            )
        grid = plan_tiles(height, width, self.tile, self.overlap, self.info.sizes)
        return TiledRestoration(self._means, image, grid, self.engines, self.batch, classes, routing)

    def route_together(self, surveys: Sequence[Survey]) -> list[Routing]:
        """Routes images that share the budget, from their ``start(image).survey()``, for their greatest mean PSNR.

        Raises UsageError where there is no budget.
        """
        if self.budget is None:
            raise UsageError('images can share a budget only where there is one', key='budget')
        return route_together(surveys, self.prices, self.budget)

    def restore(self, image: np.ndarray) -> tuple[np.ndarray, RestoreStats]:
        """Restores an image.

        Args:
            image: ``(H, W)`` or ``(H, W, C)``, grey or RGB, ``uint8``, ``uint16`` or floats in [0, 1].

        Returns:
            The restored image, ``scale`` times the size, in the type and with the channels of ``image`` (floats
            are not clipped), and what it cost.
        """
        restoration = self.start(image if image.ndim == 3 else image[..., None])
        restored = np.concatenate(list(restoration.bands()))
        return (restored if image.ndim == 3 else restored[..., 0]), restoration.stats()


def check_channels(network: RoutedNetwork) -> None:
    """Raises UserError for a network that takes neither grey nor RGB images."""
    if network.channels not in (1, 3):
        raise UserError(f'the network takes {network.channels} channels; allowed are 1 (grey) and 3 (RGB)')


def usual_patch(network: RoutedNetwork, tile: int | None = None) -> int | None:
    """Side of patches where nobody says another; None where the network runs in tiles of this side only."""
    if network.router is None or network.router.stride != PART or (tile is not None and tile < _USUAL_PATCH):
        return None
    try:
        patchable_graph(network)
    except NotPatchable:
        return None
    return _USUAL_PATCH


def patched_network(network: RoutedNetwork, patch: int, tile: int, backend: str = 'dense') -> PatchedNetwork:
    """What restores patches of a size in tiles of a size. Raises UsageError where this network or size cannot."""
    if patch < PART or patch % PART or patch > tile:
        raise UsageError(f'{patch}: allowed are multiples of {PART} up to the tile ({tile})', key='patch')
    assert network.router is not None
    if network.router.stride != PART:
        raise UsageError(f'{patch}: its classifier does not tell parts of {PART} pixels apart', key='patch')
    try:
        return PatchedNetwork(network, backend)
    except NotPatchable as error:
        raise UsageError(f'{patch}: {error}; without patches, whole tiles are routed', key='patch') from None


def plan_cells(height: int, width: int, tile: int, overlap: int, sizes: SizeRequirements) -> TileGrid:
    """A grid of tiles that start and end at multiples of ``PART``, for images that are restored patch by patch."""
    return plan_tiles(height, width, tile, overlap, replace(sizes, multiple=math.lcm(sizes.multiple, PART)))
