"""PNG and animated PNG, filtered and compressed strip by strip."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import IO

import numpy as np

from basicsr_classpruning.images.encoders.layout import Frame, Layout
from basicsr_classpruning.images.picture import Animation


def write_png(stream: IO[bytes], layout: Layout, strips: Iterator[np.ndarray]) -> None:
    """Writes a picture."""
    _start(stream, layout)
    for data in _packed(layout, strips):
        _png_chunk(stream, b'IDAT', data)
    _png_chunk(stream, b'IEND', b'')


def write_apng(stream: IO[bytes], frames: Iterator[Frame], animation: Animation) -> None:
    """Writes an animation: each frame whole, whatever the frame before it showed."""
    numbers = itertools.count()
    durations = iter(animation.durations)
    for index, frame in enumerate(frames):
        layout = frame.layout
        if index == 0:
            head = struct.pack('>II', len(animation.durations), animation.plays)
            _start(stream, layout, (b'acTL', head))
        shown = index > 0 or not animation.default_image
        if shown:
            delay = _delay(next(durations))
            place = struct.pack('>IIII', layout.width, layout.height, 0, 0)
            _png_chunk(stream, b'fcTL', struct.pack('>I', next(numbers)) + place + delay + b'\0\0')
        for data in _packed(layout, frame.strips):
            if index == 0:
                _png_chunk(stream, b'IDAT', data)
            else:
                _png_chunk(stream, b'fdAT', struct.pack('>I', next(numbers)) + data)
    _png_chunk(stream, b'IEND', b'')


def _delay(milliseconds: float) -> bytes:
    """A duration as a fraction of seconds, both of whose parts have 16 bits."""
    seconds = Fraction(milliseconds / 1000).limit_denominator(1000)
    if seconds.numerator > 0xFFFF:
        seconds = Fraction(min(round(seconds), 0xFFFF))
    return struct.pack('>HH', seconds.numerator, seconds.denominator)


def _start(stream: IO[bytes], layout: Layout, *more: tuple[bytes, bytes]) -> None:
    """Writes all that comes before the pixels."""
    depth = layout.dtype.itemsize * 8
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[layout.channels]
    stream.write(b'\x89PNG\r\n\x1a\n')
    _png_chunk(stream, b'IHDR', struct.pack('>IIBBBBB', layout.width, layout.height, depth, colour, 0, 0, 0))
    for name, content in (*layout.encoding.metadata.png, *more):
        _png_chunk(stream, name, content)
    if layout.encoding.icc:
        _png_chunk(stream, b'iCCP', b'ICC Profile\0\0' + zlib.compress(layout.encoding.icc))
    if layout.resolution:
        x, y, unit = layout.resolution.per('metre')
        _png_chunk(stream, b'pHYs', struct.pack('>IIB', round(x), round(y), unit != 'none'))
    if layout.exif:
        _png_chunk(stream, b'eXIf', layout.exif)
    if layout.xmp:
        _png_chunk(stream, b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + layout.xmp)


def _packed(layout: Layout, strips: Iterator[np.ndarray]) -> Iterator[bytes]:
    """Yields the deflated stream of a picture's filtered rows, in pieces."""
    # On filtered photographs as small as the full search for repetitions, at six times its speed.
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)
    above = np.zeros((1, layout.width * layout.channels * layout.dtype.itemsize), np.uint8)
    for strip in strips:
        samples = strip.astype(layout.dtype.newbyteorder('>'), copy=False).reshape(len(strip), -1).view(np.uint8)
        data = packer.compress(_png_filter(samples, above, layout.channels * layout.dtype.itemsize).tobytes())
        if data:
            yield data
        above = samples[-1:]
    yield packer.flush()


def _png_chunk(stream: IO[bytes], name: bytes, data: bytes) -> None:
    stream.write(struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data)))


def _png_filter(samples: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """Filters rows of bytes for compression; ``step`` is the bytes a pixel takes.

    Each row gets the filter with the smallest sum of absolute differences, the heuristic that the PNG specification
    recommends (section 12.8), out of Sub, Up and Paeth.
    """
    up = np.concatenate([above, samples[:-1]])
    left, corner = np.zeros_like(samples), np.zeros_like(samples)
    left[:, step:], corner[:, step:] = samples[:, :-step], up[:, :-step]
    a, b, c = left.astype(np.int16), up.astype(np.int16), corner.astype(np.int16)
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    filtered = np.stack([samples - left, samples - up, samples - paeth])
    cost = np.abs(filtered.view(np.int8).astype(np.int16)).sum(axis=2, dtype=np.int64)
    best = cost.argmin(axis=0)
    out = np.empty((len(samples), 1 + samples.shape[1]), np.uint8)
    out[:, 0] = np.array([1, 2, 4], np.uint8)[best]
    out[:, 1:] = filtered[best, np.arange(len(samples))]
    return out
