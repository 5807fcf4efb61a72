"""What Pillow decodes, as arrays. Of 16-bit colours it keeps 8 bits: those are decoded twice, once for the high and
once for the low bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images import pillow
from basicsr_classpruning.images.metadata import read_metadata
from basicsr_classpruning.images.picture import Encoding, Picture

_GREY = ('1', 'L', 'LA', 'La', 'I;16', 'I;16B', 'I;16L')


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded."""

    encoding: Encoding
    mode: str
    bits: int
    """8 or 16."""
    transparency: bool
    """Whether a colour, or colours of the palette, are marked as transparent."""


def read_header(path: Path, image: Image.Image) -> Header:
    """Reads the header of an opened picture. Raises UserError for what is not supported."""
    # MPO: a phone's JPEG with a second picture behind the first.
    form = 'JPEG' if image.format == 'MPO' else str(image.format)
    lossless, bits = form not in ('JPEG', 'AVIF'), 8
    with open(path, 'rb') as stream:
        if form == 'PNG':
            bits = stream.read(25)[24]
        elif form == 'WEBP':
            lossless = b'VP8L' in set(_webp_chunks(stream))  # of an animation: any frame
        elif form == 'AVIF' and _is_deep_avif(stream.read(2**16)):
            raise UserError(f'{path}: an AVIF of 10 or 12 bit, which is not supported; allowed is 8 bit')
    if image.mode in ('I', 'F'):
        raise UserError(f'{path}: samples of kind {image.mode} are not supported; allowed are 8 and 16 bit')
    icc = image.info.get('icc_profile')
    wanted = b'GRAY' if image.mode in _GREY else b'RGB '
    if not isinstance(icc, bytes) or icc[16:20] != wanted:  # e.g. a CMYK profile: the pixels become RGB
        icc = None
    encoding = Encoding(form, lossless, icc, read_metadata(path, image, form))
    return Header(encoding, image.mode, 16 if bits > 8 else 8, 'transparency' in image.info)


def _webp_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """The names of a WebP's chunks, those inside of its frames included."""
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        name, length = head[:4], int.from_bytes(head[4:], 'little')
        yield name
        # A frame is 16 bytes of position and time, then chunks of its own.
        stream.seek(16 if name == b'ANMF' else length + length % 2, 1)


def _is_deep_avif(head: bytes) -> bool:
    place = head.find(b'av1C')
    return place >= 0 and bool(head[place + 6 : place + 7] and head[place + 6] & 0x40)


def decode(path: Path, image: Image.Image, header: Header) -> np.ndarray:
    """Returns ``(H, W, 1 to 4)`` ``uint8`` or ``uint16``: grey or RGB, then alpha if there is any."""
    if header.bits == 16:
        return _decode_16(path, image, header)
    if header.mode in ('1', 'L', 'LA', 'La'):
        mode = 'LA' if header.transparency or header.mode in ('LA', 'La') else 'L'
    else:
        mode = 'RGBA' if header.transparency or header.mode in ('RGBA', 'RGBa', 'PA') else 'RGB'
    image.load()
    return pillow.samples(image if image.mode == mode else image.convert(mode))


def decode_frame(image: Image.Image, header: Header, opaque: bool) -> np.ndarray:
    """The loaded frame of an animation, ``(H, W, 1 to 4)`` ``uint8``; all frames get the same channels.

    Args:
        image: its frame is loaded.
        header: of its first frame.
        opaque: whether no frame of the file has transparent pixels.
    """
    mode = 'L' if header.encoding.format == 'PNG' and header.mode in ('1', 'L', 'LA') else 'RGB'
    if not opaque:
        mode += 'A'
    return pillow.samples(image if image.mode == mode else image.convert(mode))


def split_alpha(samples: np.ndarray, encoding: Encoding) -> Picture:
    """A picture of ``(H, W, 1 to 4)`` samples: grey or RGB, then alpha if there is any."""
    channels = 1 if samples.shape[2] < 3 else 3
    alpha = samples[..., channels] if samples.shape[2] > channels else None
    return Picture(samples[..., :channels], alpha, encoding)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Asked of a decoded picture: for PNG, Pillow decodes to find it."""
    try:
        orientation = int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block is no reason to refuse a picture
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _decode_16(path: Path, image: Image.Image, header: Header) -> np.ndarray:
    """Returns ``(H, W, 1 to 4)`` ``uint16``: grey or RGB, then alpha if there is any."""
    if header.mode in ('I;16', 'I;16B', 'I;16L'):
        image.load()
        return _with_key(pillow.samples(image).astype(np.uint16, copy=False), image)
    if _raw_mode(image) == 'LA;16B':
        _set_raw_mode(image, 'RGBA', 'RGBA')  # the four bytes of a pixel: grey high, low, alpha high, low
        image.load()
        return pillow.samples(image).view('>u2').astype(np.uint16)
    image.load()
    samples = pillow.samples(image).astype(np.uint16) << 8
    with pillow.opened(path) as again:
        raw = _raw_mode(again)
        # Read in the other byte order, the high byte of a sample is its low one.
        low_first = raw.endswith('L') or (raw.endswith('N') and sys.byteorder == 'little')
        _set_raw_mode(again, again.mode, raw[:-1] + ('B' if low_first else 'L'))
        again.load()
        samples |= pillow.samples(again)
    return _with_key(samples, image)


def _with_key(samples: np.ndarray, image: Image.Image) -> np.ndarray:
    """Adds alpha to ``(H, W, 1 or 3)`` samples where one value is marked as transparent."""
    key = image.info.get('transparency')
    if key is None or samples.shape[2] not in (1, 3):
        return samples
    visible = (samples != np.asarray(key, np.uint16)).any(axis=2, keepdims=True)
    return np.concatenate([samples, visible * np.uint16(65535)], axis=2)


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
