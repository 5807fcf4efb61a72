"""PNG, filtered and compressed strip by strip."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from basicsr_classpruning.images.encoders.layout import Layout


def write_png(stream: IO[bytes], layout: Layout, strips: Iterator[np.ndarray]) -> None:
    depth = layout.dtype.itemsize * 8
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[layout.channels]
    stream.write(b'\x89PNG\r\n\x1a\n')
    _png_chunk(stream, b'IHDR', struct.pack('>IIBBBBB', layout.width, layout.height, depth, colour, 0, 0, 0))
    if layout.encoding.icc:
        _png_chunk(stream, b'iCCP', b'ICC Profile\0\0' + zlib.compress(layout.encoding.icc))
    # On filtered photographs as small as the full search for repetitions, at six times its speed.
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)
    above = np.zeros((1, layout.width * layout.channels * layout.dtype.itemsize), np.uint8)
    for strip in strips:
        samples = strip.astype(layout.dtype.newbyteorder('>'), copy=False).reshape(len(strip), -1).view(np.uint8)
        data = packer.compress(_png_filter(samples, above, layout.channels * layout.dtype.itemsize).tobytes())
        if data:
            _png_chunk(stream, b'IDAT', data)
        above = samples[-1:]
    _png_chunk(stream, b'IDAT', packer.flush())
    _png_chunk(stream, b'IEND', b'')


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
