"""Cuts an image into overlapping tiles of one size and blends the restored tiles without seams.

Everything is separable: a grid is two axes, and a tile's weights are the product of its weights along each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.sizes import SizeRequirements

_STEP = 8  # tile sides are multiples of this, so that images of many sizes share few tile shapes
_SLICE = 16  # input rows that are handed out together
_ANY = SizeRequirements(scale=1, multiple=1)

_USUAL_TILE, _USUAL_TILE_OF_PATCHES = 96, 192


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of an image, in input pixels."""

    length: int
    """Pixels of the image."""
    tile: int
    """Pixels of every tile."""
    starts: tuple[int, ...]
    """First pixel of each tile, rising. The last tile may end beyond ``length``: the image is padded there."""

    @property
    def padded(self) -> int:
        """Pixels covered by tiles; at least ``length``."""
        return self.starts[-1] + self.tile

    def weights(self, index: int, scale: int, margin: int | None) -> np.ndarray:
        """Blending weights ``(tile * scale,)`` of one tile; at each output pixel the tiles' weights add up to 1.

        Over an overlap the weight passes linearly from one tile to the next. Pixels nearer to a tile's edge than
        ``margin``, which differ from what the whole image would give, get no weight if the overlap is wide enough
        to leave them out on both sides; otherwise (or with None: the network sees farther) the outer quarters.
        """
        raw = {i: self._ramp(i, scale, margin) for i in range(len(self.starts)) if self._meets(index, i)}
        total = np.zeros(self.tile * scale)
        for other, ramp in raw.items():
            shift = (self.starts[other] - self.starts[index]) * scale
            inside = slice(max(shift, 0), min(shift, 0) + len(total))
            total[inside] += ramp[max(-shift, 0) : len(total) - max(shift, 0)]
        return (raw[index] / total).astype(np.float32)

    def _meets(self, index: int, other: int) -> bool:
        return abs(self.starts[index] - self.starts[other]) < self.tile

    def _ramp(self, index: int, scale: int, margin: int | None) -> np.ndarray:
        """Weights before they are normalised, all positive somewhere: rising, 1, falling."""
        position = np.arange(self.tile * scale) + 0.5
        ramp = np.ones(self.tile * scale)
        if index > 0:
            ramp = np.minimum(ramp, self._rise(position / scale, index, margin))
        if index < len(self.starts) - 1:
            ramp = np.minimum(ramp, self._rise((self.tile * scale - position) / scale, index + 1, margin))
        return ramp

    def _rise(self, distance: np.ndarray, second: int, margin: int | None) -> np.ndarray:
        """Weight at a distance from the edge, where tiles ``second - 1`` and ``second`` overlap."""
        overlap = self.starts[second - 1] + self.tile - self.starts[second]
        outside = margin if margin is not None and 2 * margin < overlap else overlap // 4
        return np.clip((distance - outside) / (overlap - 2 * outside), 0, 1) if overlap else np.ones_like(distance)


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one image, numbered row by row."""

    rows: Axis
    cols: Axis

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.cols.starts)

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width of every tile."""
        return self.rows.tile, self.cols.tile

    @property
    def pixels(self) -> int:
        """Of all tiles, overlaps counted as often as they are restored."""
        return len(self) * self.rows.tile * self.cols.tile

    def corner(self, number: int) -> tuple[int, int]:
        """First row and column of a tile in the image."""
        row, col = divmod(number, len(self.cols.starts))
        return self.rows.starts[row], self.cols.starts[col]

    def cut(self, image: np.ndarray, number: int) -> np.ndarray:
        """Tile of an ``(H, W, C)`` image, ``(h, w, C)``; beyond the image's edges it is mirrored."""
        top, left = self.corner(number)
        height, width = self.tile_size
        tile = image[top : top + height, left : left + width]
        if tile.shape[:2] != (height, width):
            down = mirrored(np.arange(top, top + height), self.rows.length)
            across = mirrored(np.arange(left, left + width), self.cols.length)
            tile = image[down[:, None], across]
        return tile


def plan_tiles(height: int, width: int, tile: int, overlap: int, sizes: SizeRequirements = _ANY) -> TileGrid:
    """Grid for an image.

    Args:
        height, width: of the image, at least 1.
        tile: largest side of a tile. Tiles are as much smaller as they can be without making their number larger, in
            steps of 8 pixels, so that little is computed twice.
        overlap: smallest overlap of neighbouring tiles.
        sizes: what the network takes; an image smaller than the tile runs whole, padded if it must be.

    Raises:
        UsageError: the overlap leaves nothing of the tile, or the tile is smaller than the network takes.
    """
    check_tile(tile, overlap, sizes)
    rows, columns = (_plan_axis(length, tile, overlap, sizes) for length in (height, width))
    if sizes.square:
        side = max(rows.tile, columns.tile)
        rows, columns = (_axis_of_tiles(length, side, overlap, sizes) for length in (height, width))
    return TileGrid(rows, columns)


def usual_tile(overlap: int, sizes: SizeRequirements, patch: int | None = None) -> int:
    """Largest side of a tile where nobody says another.

    Tiles of patches are larger: halos are computed at a tile's border alone. A network that needs larger ones gets the
    least.
    """
    usual = _USUAL_TILE if patch is None else _USUAL_TILE_OF_PATCHES
    return max(usual, patch or 0, _least_tile(overlap, sizes))


def _least_tile(overlap: int, sizes: SizeRequirements) -> int:
    return max(sizes.padded(1), sizes.multiple + _round_up(overlap, sizes.multiple))


def check_tile(tile: int, overlap: int, sizes: SizeRequirements = _ANY) -> None:
    """Raises UsageError if images cannot be cut like this."""
    if overlap < 0:
        raise UsageError(f'{overlap}: allowed are 0 and more', key='overlap')
    least = _least_tile(overlap, sizes)
    if tile < least:
        raise UsageError(f'{tile}: with an overlap of {overlap} this network needs at least {least}', key='tile')


def _plan_axis(length: int, tile: int, overlap: int, sizes: SizeRequirements) -> Axis:
    padded = sizes.padded(length)
    tile = tile // sizes.multiple * sizes.multiple
    if padded <= tile:
        return Axis(length, padded, (0,))
    overlap = _round_up(overlap, sizes.multiple)
    number = math.ceil((padded - overlap) / (tile - overlap))
    least = math.ceil((padded + (number - 1) * overlap) / number)
    tile = max(min(_round_up(least, math.lcm(_STEP, sizes.multiple)), tile), sizes.padded(1))
    return _axis_of_tiles(length, tile, overlap, sizes)


def _axis_of_tiles(length: int, tile: int, overlap: int, sizes: SizeRequirements) -> Axis:
    """As many tiles of a side as are needed; one that is larger than the image is mirrored beyond its edge."""
    span = sizes.padded(length) - tile
    if span <= 0:
        return Axis(length, tile, (0,))
    number = 1 + math.ceil(span / (tile - _round_up(overlap, sizes.multiple)))
    starts = (span * i // (number - 1) // sizes.multiple * sizes.multiple for i in range(number))
    return Axis(length, tile, tuple(starts))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def mirrored(positions: np.ndarray, length: int) -> np.ndarray:
    """Positions beyond an axis of ``length`` pixels, mirrored back into it at its edge pixels; any distance."""
    period = max(2 * (length - 1), 1)
    positions = np.abs(positions) % period
    return np.minimum(positions, period - positions) if length > 1 else np.zeros_like(positions)


class Blender:
    """Adds up restored tiles, one row of tiles after the other, and hands out finished rows.

    Its memory is one row of tiles: the image's width times a tile's height.
    """

    def __init__(self, grid: TileGrid, scale: int, channels: int, margin: int | None) -> None:
        self._grid, self._scale = grid, scale
        self._down = [grid.rows.weights(i, scale, margin) for i in range(len(grid.rows.starts))]
        self._across = [grid.cols.weights(i, scale, margin) for i in range(len(grid.cols.starts))]
        self._sum = np.zeros((channels, grid.rows.tile * scale, grid.cols.padded * scale), np.float32)
        self._row = 0

    def add(self, column: int, tile: np.ndarray) -> None:
        """Adds a tile ``(C, h * scale, w * scale)`` of the current row of tiles."""
        left = self._grid.cols.starts[column] * self._scale
        weights = self._down[self._row][:, None] * self._across[column]
        self._sum[:, :, left : left + tile.shape[2]] += tile * weights

    def finish_row(self) -> Iterator[np.ndarray]:
        """Ends the current row of tiles; yields the rows that no later tile touches, ``(h, W * scale, C)`` float32.

        In slices of a few rows, views of the sum: what the reader makes of them takes little memory. They must all be
        read before the next tile is added.
        """
        rows, scale = self._grid.rows, self._scale
        start = rows.starts[self._row]
        last = self._row == len(rows.starts) - 1
        done = ((rows.length if last else min(rows.starts[self._row + 1], rows.length)) - start) * scale
        for top in range(0, done, _SLICE * scale):
            part = self._sum[:, top : min(top + _SLICE * scale, done), : self._grid.cols.length * scale]
            yield part.transpose(1, 2, 0)
        kept = self._sum.shape[1] - done
        self._sum[:, :kept] = self._sum[:, done:].copy()
        self._sum[:, kept:] = 0
        self._row += 1


def batches(numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cuts tile numbers into batches of at most ``size``, always in the same way."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
