"""A picture that shows which tile was restored by which candidate."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from basicsr_classpruning.images.picture import Encoding, Picture
from basicsr_classpruning.inference.tiling import Axis, TileGrid

_LONGEST = 1600  # pixels of the map's longer side, at most
_SHORTEST = 320  # and at least: small pictures are enlarged, the legend needs room
_TINT = 0.45  # share of the candidate's colour
_ROW = 26  # height of a legend's line


def draw_class_map(picture: Picture, grid: TileGrid, classes: np.ndarray, labels: Sequence[str]) -> Picture:
    """Tints each tile of a picture with its candidate's colour, and adds a legend with shares.

    Args:
        picture: the input picture.
        grid: its tiles.
        classes: ``(T,)`` index of each tile's candidate.
        labels: the candidates, sparsest (dark) to densest (bright).
    """
    longest = max(picture.pixels.shape[:2])
    factor = float(np.clip(1.0, _SHORTEST / longest, _LONGEST / longest))
    colours = candidate_colours(len(labels))
    canvas = tint_tiles(picture.pixels, grid, classes, colours, factor)
    height, width = canvas.shape[:2]
    share = np.bincount(classes, minlength=len(labels)) / len(classes)
    legend = _legend(labels, share, colours, max(width, 200))
    pixels = np.full((height + len(legend), legend.shape[1], 3), 255, np.uint8)
    pixels[:height, :width] = canvas
    pixels[height:] = legend
    return Picture(pixels, None, Encoding('PNG'))


def tint_tiles(
    pixels: np.ndarray, grid: TileGrid, classes: np.ndarray, colours: np.ndarray, factor: float
) -> np.ndarray:
    """A picture, ``factor`` times its size, each tile in its candidate's colour: ``(h, w, 3)`` uint8 RGB.

    Args:
        pixels: ``(H, W, C)`` uint8, uint16 or float32, grey or RGB.
        grid: its tiles.
        classes: ``(T,)`` index of each tile's candidate.
        colours: of the candidates, as `candidate_colours` gives them.
        factor: how much larger the result is than ``pixels``.
    """
    height, width = pixels.shape[:2]
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    canvas = _as_rgb8(cv2.resize(pixels, size, interpolation=interpolation))
    rows, cols = (_borders(axis, factor) for axis in (grid.rows, grid.cols))
    for number, index in enumerate(classes):
        row, col = divmod(number, len(grid.cols.starts))
        part = canvas[rows[row] : rows[row + 1], cols[col] : cols[col + 1]]
        part[:] = (part * (1 - _TINT) + colours[index] * _TINT).astype(np.uint8)
    canvas[[y for y in rows[1:-1] if y < len(canvas)]] = 255
    canvas[:, [x for x in cols[1:-1] if x < canvas.shape[1]]] = 255
    return canvas


def candidate_colours(count: int) -> np.ndarray:
    """``(count, 3)`` RGB from dark to bright, told apart by colour-blind people too."""
    steps = np.linspace(20, 255, count).astype(np.uint8)[:, None]
    return cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS)[:, 0, ::-1].astype(np.float32)


def _borders(axis: Axis, factor: float) -> list[int]:
    """Where tiles meet on the map: in the middle of their overlaps."""
    middles = [(start + before + axis.tile) / 2 for before, start in zip(axis.starts, axis.starts[1:])]
    return [round(value * factor) for value in (0, *middles, axis.length)]


def _as_rgb8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        pixels = (pixels // 257).astype(np.uint8)
    elif pixels.dtype == np.float32:
        pixels = (pixels.clip(0, 1) * 255).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return pixels


def _legend(labels: Sequence[str], share: np.ndarray, colours: np.ndarray, width: int) -> np.ndarray:
    legend = np.full((_ROW * len(labels) + 8, width, 3), 255, np.uint8)
    for index, label in enumerate(labels):
        top = 4 + index * _ROW
        legend[top + 4 : top + _ROW - 4, 8:44] = colours[index]
        text = f'{label}   {share[index]:.0%} of the tiles'
        cv2.putText(legend, text, (54, top + 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return legend
