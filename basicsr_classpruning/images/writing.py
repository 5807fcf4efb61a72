"""Writes pictures from rows as they are made, whole or not at all.

PNG, TIFF, BMP and JPEG are written band by band, so that memory does not grow with the picture; WebP's encoder needs
the whole picture (and allows 16,383 pixels a side at most). Rows are ``(h, W, C)`` arrays, ``uint8``, ``uint16`` or, in
TIFF, ``float32``; C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images.encoders import jpeg, webp
from basicsr_classpruning.images.encoders.bmp import write_bmp
from basicsr_classpruning.images.encoders.jpeg import write_jpeg
from basicsr_classpruning.images.encoders.layout import STRIP, Frame, Layout
from basicsr_classpruning.images.encoders.png import write_apng, write_png
from basicsr_classpruning.images.encoders.tiff import write_pages, write_tiff
from basicsr_classpruning.images.encoders.webp import write_animated_webp, write_webp
from basicsr_classpruning.images.folder import READ_ONLY
from basicsr_classpruning.images.picture import Animation, Encoding, Picture
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


def result_encoding(encoding: Encoding) -> Encoding:
    """How the result of a picture stored like this is stored: in the same way, as far as there is an encoder."""
    if encoding.format in READ_ONLY:
        return replace(encoding, format='PNG', lossless=True)
    return encoding


@dataclass(frozen=True)
class Rows:
    """A picture to be written."""

    encoding: Encoding
    height: int
    width: int
    bands: Iterable[np.ndarray]
    """Consecutive rows, ``(h, W, C)``, of any height."""

    def frame(self) -> Frame:
        """What encoders take."""
        iterator = iter(self.bands)
        first = next(iterator)
        return Frame(
            Layout(self.height, self.width, first.shape[2], first.dtype, self.encoding), _strips(first, iterator)
        )


def write_rows(
    path: str | os.PathLike, encoding: Encoding, height: int, width: int, rows: Iterable[np.ndarray]
) -> None:
    """Writes a picture of the given size from consecutive bands of rows, atomically.

    Raises:
        UserError: the file cannot be written, or the picture does not fit into the format.
    """
    check_writable(encoding, height, width, path)

    def write(stream: IO[bytes]) -> None:
        frame = Rows(encoding, height, width, rows).frame()
        _WRITERS[encoding.format](stream, frame.layout, frame.strips)

    write_atomically(path, write)


def write_pictures(path: str | os.PathLike, pictures: Iterable[Rows], animation: Animation | None, pixels: int) -> None:
    """Writes several pictures into one file, atomically: pages of a TIFF, or frames of an animated PNG or WebP.

    Args:
        path: where the file goes.
        pictures: all of one format; frames of an animation of one size and kind, too.
        animation: how frames follow each other; None for TIFF.
        pixels: of all pictures together.

    Raises:
        UserError: the file cannot be written.
    """
    iterator = (rows.frame() for rows in pictures)
    first = next(iterator)
    frames = itertools.chain([first], iterator)

    def write(stream: IO[bytes]) -> None:
        if animation is None:
            big = pixels * first.layout.channels * first.layout.dtype.itemsize >= 2**31
            write_pages(stream, frames, big)
        elif first.layout.encoding.format == 'WEBP':
            write_animated_webp(stream, frames, animation)
        else:
            write_apng(stream, frames, animation)

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
