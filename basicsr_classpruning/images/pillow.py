"""Pillow, given only the formats that are meant, and no limit but ours."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from basicsr_classpruning.errors import UserError

try:
    from PIL import AvifImagePlugin  # Pillow 11.3 and later
except ImportError:
    AvifImagePlugin = None  # type: ignore[assignment]

# Imported, so that Pillow knows these formats; no other of its readers ever sees a file.
_PLUGINS = (
    PngImagePlugin, JpegImagePlugin, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin, BmpImagePlugin, GifImagePlugin,
    AvifImagePlugin, PpmImagePlugin, TgaImagePlugin,
)  # fmt: skip
_FORMATS = ('PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP', 'GIF', *(('AVIF',) if AvifImagePlugin else ()), 'PPM')
_SLICE = 256  # rows converted at a time
_pillow_limit = threading.Lock()
warnings.filterwarnings('ignore', module=r'PIL\.')  # of damaged EXIF blocks, which do not matter here
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,
    AssertionError,
    AttributeError,
    ZeroDivisionError,
    struct.error,
    Image.DecompressionBombError,  # of a later frame
)
"""All that Pillow's readers raise on damaged files. An UnidentifiedImageError is an OSError."""


@contextlib.contextmanager
def opened(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[Image.Image]:
    """Opens a picture; its header is read, and nothing decoded. Raises one of `DAMAGED`."""
    # TGA has no mark by which it is known: Pillow would take other damaged files for it.
    is_tga = isinstance(source, (str, os.PathLike)) and os.fspath(source).lower().endswith('.tga')
    # The limit is ours, with its own message; Pillow's is a module variable.
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(source, formats=(*_FORMATS, 'TGA') if is_tga else _FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        yield image


def unreadable(path: str | os.PathLike[str], error: BaseException | str) -> UserError:
    """The error of a file that is no picture, or a damaged one."""
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.isfile(path) and not os.path.getsize(path)
        error = 'the file is empty' if empty else 'not one of the formats that are read'
    text = ' '.join(str(error).split()) or type(error).__name__
    return UserError(f'{path}: cannot be read as a picture ({text if len(text) <= 120 else text[:117] + "..."})')


def check_size(path: str | os.PathLike[str], size: tuple[int, int], max_pixels: int) -> None:
    """Raises UserError for a picture of more than ``max_pixels`` pixels; ``size`` is width and height."""
    width, height = size
    if width * height > max_pixels:
        raise UserError(
            f'{path}: {width} x {height} is {width * height / 1e6:.1f} megapixels, above the limit of '
            f'{max_pixels / 1e6:.1f} (raise it with `max_pixels`, or the environment variable '
            'OPENCV_IO_MAX_IMAGE_PIXELS)'
        )


def samples(image: Image.Image) -> np.ndarray:
    """``(H, W, C)`` samples of a loaded picture, in slices: an export of the whole would make two further copies."""
    width, height = image.size
    first = np.asarray(image.crop((0, 0, 1, 1))).reshape(-1)
    result = np.empty((height, width, len(first)), first.dtype)
    for top in range(0, height, _SLICE):
        bottom = min(top + _SLICE, height)
        result[top:bottom] = np.asarray(image.crop((0, top, width, bottom))).reshape(bottom - top, width, -1)
    return result
