"""Reads pictures: PNG, JPEG, TIFF, WebP and BMP, 8 and 16 bit, grey or colour, with or without alpha.

The header is read first, by Pillow and without decoding, so that a picture that would not fit into memory is refused
before memory is asked for. Pillow decodes too, because it reports truncated files; of 16-bit colours it keeps 8 bits,
so those are decoded twice, once for the high and once for the low bytes.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import (
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from basicsr_classpruning.environment import MAX_PIXELS
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images.picture import Encoding, Picture

# Imported, so that Pillow knows these formats; no other of its readers ever sees a file.
_PLUGINS = (PngImagePlugin, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin, BmpImagePlugin)
_FORMATS = ('PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP')
_SLICE = 256  # rows converted at a time
_pillow_limit = threading.Lock()
# All that Pillow's readers raise on damaged files. An UnidentifiedImageError is an OSError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
)


@dataclass(frozen=True)
class _Header:
    encoding: Encoding
    mode: str
    bits: int
    size: tuple[int, int]  # width, height as stored
    transparency: bool


def read_picture(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Picture:
    """Reads one picture.

    Raises:
        UserError: the file cannot be read or decoded, has a sample type other than 8 or 16 bit, or more than
            ``max_pixels`` pixels (seen in its header, before anything is decoded).
    """
    path = Path(path)
    try:
        with _opened(path) as image:
            header = _read_header(path, image)
            _check_size(path, header.size, max_pixels)
            samples = _decode_16(path, image, header) if header.bits == 16 else _decode_8(image, header)
            samples = _upright(samples, _orientation(image))
    except UnidentifiedImageError as error:
        header, samples = _read_grey_alpha_tiff(path, max_pixels, error)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except _DAMAGED as error:
        raise _unreadable(path, error) from None
    channels = 1 if samples.shape[2] < 3 else 3
    alpha = samples[..., channels] if samples.shape[2] > channels else None
    return Picture(samples[..., :channels], alpha, header.encoding)


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of a picture as stored, from its header alone. Raises UserError."""
    path = Path(path)
    try:
        with _opened(path) as image:
            return image.size[1], image.size[0]
    except _DAMAGED as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> UserError:
    text = ' '.join(str(error).split()) or type(error).__name__
    return UserError(f'{path}: cannot be read as a picture ({text if len(text) <= 120 else text[:117] + "..."})')


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UserError(
            f'{path}: {width} x {height} is {width * height / 1e6:.1f} megapixels, above the limit of '
            f'{max_pixels / 1e6:.1f} (raise it with --max-pixels)'
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of damaged EXIF blocks, which do not matter here
        # The limit is ours, with its own message; Pillow's is a module variable.
        with _pillow_limit:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path, formats=_FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = before
        with image:
            yield image


def _read_header(path: Path, image: Image.Image) -> _Header:
    # MPO: a phone's JPEG with a second picture behind the first.
    form = 'JPEG' if image.format == 'MPO' else str(image.format)
    lossless, bits = form != 'JPEG', 8
    with open(path, 'rb') as stream:
        head = stream.read(64)
    if form == 'PNG':
        bits = head[24]
    elif form == 'TIFF':
        bits = max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]
    elif form == 'WEBP':
        lossless = b'VP8L' in head
    if bits > 16 or image.mode in ('I', 'F'):
        raise UserError(f'{path}: {bits}-bit samples ({image.mode}) are not supported; allowed are 8 and 16 bit')
    icc = image.info.get('icc_profile')
    wanted = b'GRAY' if image.mode in ('1', 'L', 'LA', 'I;16', 'I;16B') else b'RGB '
    if not isinstance(icc, bytes) or icc[16:20] != wanted:  # e.g. a CMYK profile: the pixels become RGB
        icc = None
    return _Header(
        Encoding(form, lossless, icc),
        image.mode,
        16 if bits > 8 else 8,
        image.size,
        'transparency' in image.info,
    )


def _decode_8(image: Image.Image, header: _Header) -> np.ndarray:
    """Returns ``(H, W, 1 to 4)``: grey or RGB, then alpha if there is any."""
    if header.mode in ('1', 'L', 'LA', 'La'):
        mode = 'LA' if header.transparency or header.mode in ('LA', 'La') else 'L'
    else:
        mode = 'RGBA' if header.transparency or header.mode in ('RGBA', 'RGBa', 'PA') else 'RGB'
    image.load()
    return _samples(image if image.mode == mode else image.convert(mode))


def _decode_16(path: Path, image: Image.Image, header: _Header) -> np.ndarray:
    """Returns ``(H, W, 1 to 4)`` ``uint16``: grey or RGB, then alpha if there is any."""
    if header.mode in ('I;16', 'I;16B', 'I;16L'):
        image.load()
        return _samples(image).astype(np.uint16, copy=False)
    if _raw_mode(image) == 'LA;16B':
        _set_raw_mode(image, 'RGBA', 'RGBA')  # the four bytes of a pixel: grey high, low, alpha high, low
        image.load()
        return _samples(image).view('>u2').astype(np.uint16)
    image.load()
    samples = _samples(image).astype(np.uint16) << 8
    with _opened(path) as again:
        raw = _raw_mode(again)
        # Read in the other byte order, the high byte of a sample is its low one.
        low_first = raw.endswith('L') or (raw.endswith('N') and sys.byteorder == 'little')
        _set_raw_mode(again, again.mode, raw[:-1] + ('B' if low_first else 'L'))
        again.load()
        samples |= _samples(again)
    key = image.info.get('transparency')
    if key is not None and samples.shape[2] == 3:
        visible = (samples != np.asarray(key, np.uint16)).any(axis=2, keepdims=True)
        samples = np.concatenate([samples, visible * np.uint16(65535)], axis=2)
    return samples


def _raw_mode(image: Image.Image) -> str:
    """How Pillow is about to unpack the samples, e.g. ``RGB;16B``."""
    args = image.tile[0].args  # type: ignore[attr-defined]
    return args if isinstance(args, str) else args[0]


def _set_raw_mode(image: Image.Image, mode: str, raw: str) -> None:
    image._mode = mode
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        for tile in image.tile  # type: ignore[attr-defined]
    ]


def _samples(image: Image.Image) -> np.ndarray:
    """``(H, W, C)`` samples of a loaded picture, in slices: an export of the whole would make two further copies."""
    width, height = image.size
    first = np.asarray(image.crop((0, 0, 1, 1))).reshape(-1)
    samples = np.empty((height, width, len(first)), first.dtype)
    for top in range(0, height, _SLICE):
        bottom = min(top + _SLICE, height)
        samples[top:bottom] = np.asarray(image.crop((0, top, width, bottom))).reshape(bottom - top, width, -1)
    return samples


def _read_grey_alpha_tiff(path: Path, max_pixels: int, error: Exception) -> tuple[_Header, np.ndarray]:
    """Reads 16-bit grey with alpha, the one kind of TIFF asked for here that Pillow does not know."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            if (page.samplesperpixel, page.bitspersample, page.planarconfig) != (2, 16, 1):
                raise _unreadable(path, error) from None
            size = (page.imagewidth, page.imagelength)
            _check_size(path, size, max_pixels)
            samples = page.asarray().reshape(*size[::-1], 2)
    except UserError:
        raise
    except Exception:  # tifffile documents no set of exceptions
        raise _unreadable(path, error) from None
    return _Header(Encoding('TIFF'), 'LA', 16, size, False), samples


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Asked of a decoded picture: for PNG, Pillow decodes to find it."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block is no reason to refuse a picture
        return 1


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation (1 to 8) to ``(H, W, C)`` pixels."""
    if orientation in (5, 6, 7, 8):
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples
