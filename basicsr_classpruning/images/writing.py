"""Writes pictures from rows as they are made, whole or not at all.

PNG, TIFF, BMP and JPEG are written band by band, so that memory does not grow with the picture; WebP's encoder needs
the whole picture (and allows 16,383 pixels a side at most). Rows are ``(h, W, C)`` arrays, ``uint8`` or ``uint16``,
C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import numpy as np

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images.encoders import jpeg, webp
from basicsr_classpruning.images.encoders.bmp import write_bmp
from basicsr_classpruning.images.encoders.jpeg import write_jpeg
from basicsr_classpruning.images.encoders.layout import STRIP, Layout
from basicsr_classpruning.images.encoders.png import write_png
from basicsr_classpruning.images.encoders.tiff import write_tiff
from basicsr_classpruning.images.encoders.webp import write_webp
from basicsr_classpruning.images.picture import Encoding, Picture
from basicsr_classpruning.safe_files import write_atomically

_SIDE_LIMITS = {
    'JPEG': jpeg.SIDE_LIMIT,
    'WEBP': webp.SIDE_LIMIT,
    'PNG': 2**31 - 1,
    'TIFF': 2**31 - 1,
    'BMP': 2**31 - 1,
}


def check_writable(encoding: Encoding, height: int, width: int, path: str | os.PathLike) -> None:
    """Raises UserError if a picture of this size does not fit into the format: asked before the work is done."""
    limit = _SIDE_LIMITS[encoding.format]
    if max(height, width) > limit:
        raise UserError(
            f'{path}: {encoding.format} holds at most {limit} pixels a side, the result has {width} x {height}'
        )
    if encoding.format == 'BMP' and height * width * 4 >= 2**32:
        raise UserError(f'{path}: BMP holds at most 4 GB, the result has {width} x {height} pixels')


def write_rows(
    path: str | os.PathLike, encoding: Encoding, height: int, width: int, rows: Iterable[np.ndarray]
) -> None:
    """Writes a picture of the given size from consecutive bands of rows, atomically.

    Raises:
        UserError: the file cannot be written, or the picture does not fit into the format.
    """
    check_writable(encoding, height, width, path)

    def write(stream: IO[bytes]) -> None:
        iterator = iter(rows)
        first = next(iterator)
        layout = Layout(height, width, first.shape[2], first.dtype, encoding)
        _WRITERS[encoding.format](stream, layout, _strips(first, iterator))

    write_atomically(path, write)


def write_picture(path: str | os.PathLike, picture: Picture) -> None:
    """Writes a whole picture, atomically. Raises UserError."""
    pixels = picture.pixels
    if picture.alpha is not None:
        pixels = np.concatenate([pixels, picture.alpha[..., None]], axis=2)
    write_rows(path, picture.encoding, pixels.shape[0], pixels.shape[1], [pixels])


def _strips(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Cuts bands of any height into strips of `STRIP` rows; the last one may be lower."""
    waiting = first
    while True:
        whole = len(waiting) // STRIP * STRIP
        for top in range(0, whole, STRIP):
            yield np.ascontiguousarray(waiting[top : top + STRIP])
        waiting = waiting[whole:]
        band = next(rest, None)
        if band is None:
            break
        waiting = np.concatenate([waiting, band])
    if len(waiting):
        yield np.ascontiguousarray(waiting)


_WRITERS: dict[str, Callable[[IO[bytes], Layout, Iterator[np.ndarray]], None]] = {
    'PNG': write_png,
    'TIFF': write_tiff,
    'BMP': write_bmp,
    'JPEG': write_jpeg,
    'WEBP': write_webp,
}
