"""The strips and tiles of a TIFF page: unpacked, each to no more than its size says, and put together.

tifffile reads the tags. What it decodes by itself has no limit of size, and no LZW; libtiff, inside Pillow, decodes
only some layouts of samples. So libtiff is given each strip as rows of plain bytes.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import numpy as np

from basicsr_classpruning.images import pillow

_REVERSED = bytes(int(f'{value:08b}'[::-1], 2) for value in range(256))
_SLICE = 256  # rows whose bits are taken apart at a time


@dataclass(frozen=True)
class Segments:
    """How a page's samples are stored."""

    height: int
    width: int
    samples: int
    """Samples a pixel, C."""
    bits: int
    """1, 2, 4, 8, 16 or 32."""
    is_float: bool
    order: str
    """``<`` or ``>``."""
    compression: int
    predictor: int
    separate: bool
    """Whether each sample has strips or tiles of its own."""
    segment_height: int
    segment_width: int
    """Of a strip: the page's."""
    tiled: bool
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    bits_reversed: bool

    @property
    def dtype(self) -> np.dtype:
        """Of the samples in memory."""
        if self.is_float:
            return np.dtype(np.float32)
        return np.dtype(np.uint16 if self.bits == 16 else np.uint8)


def read_segments(stream: IO[bytes], page: Segments) -> np.ndarray:
    """Returns ``(H, W, C)`` samples as stored, in the machine's byte order.

    Raises ValueError, or what the decoders raise, where the file is damaged.
    """
    rows = -(-page.height // page.segment_height)
    columns = -(-page.width // page.segment_width)
    planes = page.samples if page.separate else 1
    if min(len(page.offsets), len(page.sizes)) < rows * columns * planes:
        raise ValueError('fewer strips or tiles than its size needs')
    inside = 1 if page.separate else page.samples
    result = np.empty((page.height, page.width, page.samples), page.dtype)
    for number in range(rows * columns * planes):
        plane, place = divmod(number, rows * columns)
        top, left = (place // columns) * page.segment_height, (place % columns) * page.segment_width
        # The last strip holds what is left, the last tile is as large as the others.
        height = page.segment_height if page.tiled else min(page.segment_height, page.height - top)
        stream.seek(page.offsets[number])
        data = stream.read(page.sizes[number])
        block = _decode(data, page, height, inside)[: page.height - top, : page.width - left]
        part = result[top : top + len(block), left : left + block.shape[1]]
        part[..., slice(plane, plane + 1) if page.separate else slice(None)] = block
    return result


def _decode(data: bytes, page: Segments, height: int, inside: int) -> np.ndarray:
    """One strip or tile as ``(height, segment width, inside)`` samples."""
    pitch = (page.segment_width * inside * page.bits + 7) // 8
    if page.bits_reversed:
        data = data.translate(_REVERSED)
    raw = _UNPACKERS[page.compression](data, height, pitch)
    if len(raw) < height * pitch:
        raise ValueError('a strip or tile is cut off')
    rows = np.frombuffer(raw, np.uint8, height * pitch).reshape(height, pitch)
    if page.bits < 8:
        return _unpack_bits(rows, page.bits, page.segment_width * inside).reshape(height, page.segment_width, inside)
    if page.predictor == 3:
        return _undo_float_predictor(rows, page, inside)
    size = page.bits // 8
    values = rows.view(f'{page.order}u{size}').reshape(height, page.segment_width, inside)
    if page.predictor == 2:
        values = np.cumsum(values, axis=1, dtype=f'u{size}')
    if page.is_float:
        values = values.astype(f'u{size}', copy=False).view(f'f{size}')
    return values


def _unpack_bits(rows: np.ndarray, bits: int, count: int) -> np.ndarray:
    """``(height, count)`` values of ``bits`` bits each, the first in the highest bits of a byte."""
    values = np.empty((len(rows), count), np.uint8)
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    for top in range(0, len(rows), _SLICE):
        part = rows[top : top + _SLICE]
        split = (part[..., None] >> shifts) & np.uint8(2**bits - 1)
        values[top : top + _SLICE] = split.reshape(len(part), -1)[:, :count]
    return values


def _undo_float_predictor(rows: np.ndarray, page: Segments, inside: int) -> np.ndarray:
    """Undoes predictor 3 (Adobe's TIFF technical note 3): differences of bytes, sorted by their weight, high first."""
    size = page.bits // 8
    summed = np.cumsum(rows.reshape(len(rows), -1, inside), axis=1, dtype=np.uint8)
    by_weight = summed.reshape(len(rows), size, page.segment_width * inside)
    values = np.ascontiguousarray(by_weight.transpose(0, 2, 1)).view(f'>f{size}')
    return values.reshape(len(rows), page.segment_width, inside)


def _plain(data: bytes, height: int, pitch: int) -> bytes:
    return data


def _inflate(data: bytes, height: int, pitch: int) -> bytes:
    return zlib.decompressobj().decompress(data, height * pitch)


def _unpack_lzma(data: bytes, height: int, pitch: int) -> bytes:
    return lzma.LZMADecompressor().decompress(data, height * pitch)


def _by_libtiff(compression: int) -> Callable[[bytes, int, int], bytes | np.ndarray]:
    def unpack(data: bytes, height: int, pitch: int) -> np.ndarray:
        tags = {
            256: pitch, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data),
        }  # fmt: skip
        entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items())
        end = 8 + len(data) + len(data) % 2
        head = struct.pack('<2sHI', b'II', 42, end)
        directory = struct.pack('<H', len(tags)) + entries + bytes(4)
        with pillow.opened(io.BytesIO(head + data.ljust(end - 8, b'\0') + directory)) as image:
            image.load()
            return pillow.samples(image).reshape(-1)

    return unpack


_UNPACKERS: dict[int, Callable[[bytes, int, int], bytes | np.ndarray]] = {
    1: _plain,
    5: _by_libtiff(5),  # LZW
    8: _inflate,
    32946: _inflate,
    32773: _by_libtiff(32773),  # PackBits
    34925: _unpack_lzma,
    50000: _by_libtiff(50000),  # Zstandard
}
COMPRESSIONS = tuple(_UNPACKERS)
"""The TIFF numbers of what can be unpacked here."""
