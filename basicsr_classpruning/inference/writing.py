"""Writes pictures from rows as they are made, whole or not at all.

PNG, TIFF, BMP and JPEG are written band by band, so that memory does not grow with the picture; WebP's encoder needs
the whole picture (and allows 16,383 pixels a side at most). Rows are ``(h, W, C)`` arrays, ``uint8`` or ``uint16``,
C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import tifffile
from PIL import Image

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.inference.images import Encoding, Picture
from basicsr_classpruning.safe_files import write_atomically

_QUALITY = 95  # of JPEG and lossy WebP; a file does not tell the quality it was made with
_STRIP = 64  # rows: a multiple of JPEG's 8-pixel blocks
_SIDE_LIMITS = {'JPEG': 65_500, 'WEBP': 16_383, 'PNG': 2**31 - 1, 'TIFF': 2**31 - 1, 'BMP': 2**31 - 1}


@dataclass(frozen=True)
class _Layout:
    """What an encoder must know before the first row."""

    height: int
    width: int
    channels: int
    dtype: np.dtype
    encoding: Encoding


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
        layout = _Layout(height, width, first.shape[2], first.dtype, encoding)
        _WRITERS[encoding.format](stream, layout, _strips(first, iterator))

    write_atomically(path, write)


def write_picture(path: str | os.PathLike, picture: Picture) -> None:
    """Writes a whole picture, atomically. Raises UserError."""
    pixels = picture.pixels
    if picture.alpha is not None:
        pixels = np.concatenate([pixels, picture.alpha[..., None]], axis=2)
    write_rows(path, picture.encoding, pixels.shape[0], pixels.shape[1], [pixels])


def _strips(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Cuts bands of any height into strips of `_STRIP` rows; the last one may be lower."""
    waiting = first
    while True:
        whole = len(waiting) // _STRIP * _STRIP
        for top in range(0, whole, _STRIP):
            yield np.ascontiguousarray(waiting[top : top + _STRIP])
        waiting = waiting[whole:]
        band = next(rest, None)
        if band is None:
            break
        waiting = np.concatenate([waiting, band])
    if len(waiting):
        yield np.ascontiguousarray(waiting)


# ---------------------------------------------------------------------------------------------------------------- PNG


def _write_png(stream: IO[bytes], layout: _Layout, strips: Iterator[np.ndarray]) -> None:
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


# --------------------------------------------------------------------------------------------------------------- TIFF


def _write_tiff(stream: IO[bytes], layout: _Layout, strips: Iterator[np.ndarray]) -> None:
    grey = layout.channels <= 2
    tifffile.imwrite(
        stream,
        map(_tiff_strip, strips),
        shape=(layout.height, layout.width) + (layout.channels,) * (layout.channels > 1),
        dtype=layout.dtype,
        byteorder='<',
        photometric='minisblack' if grey else 'rgb',
        planarconfig='contig' if layout.channels > 1 else None,
        extrasamples=['unassalpha'] if layout.channels in (2, 4) else None,
        rowsperstrip=_STRIP,
        compression='zlib',
        predictor=True,
        iccprofile=layout.encoding.icc,
        bigtiff=layout.height * layout.width * layout.channels * layout.dtype.itemsize >= 2**32 - 2**24,
        metadata=None,
        software=False,
    )


def _tiff_strip(strip: np.ndarray) -> bytes:
    """Differences between neighbouring pixels, deflated (TIFF's predictor 2)."""
    difference = strip.copy()
    difference[:, 1:] -= strip[:, :-1]
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)
    return packer.compress(difference.astype(difference.dtype.newbyteorder('<'), copy=False).tobytes()) + packer.flush()


# ---------------------------------------------------------------------------------------------------------------- BMP


def _write_bmp(stream: IO[bytes], layout: _Layout, strips: Iterator[np.ndarray]) -> None:
    grey = layout.channels == 1
    stored = 1 if grey else layout.channels if layout.channels != 2 else 4
    pitch = (layout.width * stored + 3) // 4 * 4
    palette = b''.join(bytes((i, i, i, 0)) for i in range(256)) if grey else b''
    # The version-4 header, needed for alpha only, adds colour masks: red, green, blue, alpha.
    masks = struct.pack('<IIII4s36x12x', 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b'BGRs') if stored == 4 else b''
    start, size = 54 + len(masks) + len(palette), pitch * layout.height
    stream.write(struct.pack('<2sIII', b'BM', start + size, 0, start))
    compression = 3 if stored == 4 else 0
    info = (40 + len(masks), layout.width, layout.height, 1, 8 * stored, compression, size, 2835, 2835, 256 * grey, 0)
    stream.write(struct.pack('<IiiHHIIiiII', *info) + masks + palette)
    bottom = layout.height
    for strip in strips:  # stored from the bottom row to the top one
        bottom -= len(strip)
        if layout.channels == 2:
            strip = strip[..., [0, 0, 0, 1]]
        elif layout.channels >= 3:
            strip = strip[..., [2, 1, 0, 3][:stored]]
        data = np.zeros((len(strip), pitch), np.uint8)
        data[:, : layout.width * stored] = strip[::-1].reshape(len(strip), -1)
        stream.seek(start + bottom * pitch)
        stream.write(data.tobytes())


# --------------------------------------------------------------------------------------------------------------- JPEG


def _write_jpeg(stream: IO[bytes], layout: _Layout, strips: Iterator[np.ndarray]) -> None:
    """Writes baseline JPEG strip by strip.

    Each strip is encoded by itself; with the standard Huffman tables its data is exactly what stands between two
    restart markers of the whole picture's file (ITU-T T.81, B.2.4.4 and E.1.4).
    """
    strip_blocks = (layout.width + 7) // 8 * (_STRIP // 8)
    restarts = strip_blocks <= 0xFFFF
    if not restarts:
        raise UserError(f'JPEG holds at most {_SIDE_LIMITS["JPEG"]} pixels a side')
    for index, strip in enumerate(strips):
        head, scan = _jpeg_parts(strip[..., 0] if layout.channels == 1 else strip)
        if index == 0:
            stream.write(_jpeg_head(head, layout, strip_blocks))
        else:
            stream.write(bytes((0xFF, 0xD0 + (index - 1) % 8)))
        stream.write(scan)
    stream.write(b'\xff\xd9')


def _jpeg_parts(strip: np.ndarray) -> tuple[bytes, bytes]:
    """Encodes a strip; returns everything up to its scan's data, and the data without the end marker."""
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, 'JPEG', quality=_QUALITY, subsampling=0)
    data = buffer.getvalue()
    start = next(end for marker, _, end in _jpeg_segments(data) if marker == 0xDA)
    return data[:start], data[start:-2]


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields ``(marker, start, end)`` of each segment after the start marker, up to the start of the scan."""
    position = 2
    while True:
        marker, length = struct.unpack_from('>xBH', data, position)
        yield marker, position, position + 2 + length
        if marker == 0xDA:
            return
        position += 2 + length


def _jpeg_head(head: bytes, layout: _Layout, strip_blocks: int) -> bytes:
    """The first strip's head with the picture's height, the colour profile and the distance of the restart markers."""
    parts = [head[:2]]
    for marker, start, end in _jpeg_segments(head):
        segment = head[start:end]
        if marker == 0xC0:
            segment = segment[:5] + struct.pack('>H', layout.height) + segment[7:]
        elif marker == 0xDA:
            parts.append(struct.pack('>BBHH', 0xFF, 0xDD, 4, strip_blocks))
        parts.append(segment)
        if marker == 0xE0 and layout.encoding.icc:
            parts.append(_jpeg_profile(layout.encoding.icc))
    return b''.join(parts)


def _jpeg_profile(icc: bytes) -> bytes:
    pieces = [icc[i : i + 65_000] for i in range(0, len(icc), 65_000)]
    segments = (
        struct.pack('>BBH', 0xFF, 0xE2, 16 + len(piece)) + b'ICC_PROFILE\0' + bytes((number, len(pieces))) + piece
        for number, piece in enumerate(pieces, 1)
    )
    return b''.join(segments)


# --------------------------------------------------------------------------------------------------------------- WebP


def _write_webp(stream: IO[bytes], layout: _Layout, strips: Iterator[np.ndarray]) -> None:
    pixels = np.empty((layout.height, layout.width, layout.channels), np.uint8)
    top = 0
    for strip in strips:
        pixels[top : top + len(strip)] = strip
        top += len(strip)
    if layout.channels <= 2:
        pixels = pixels[..., [0, 0, 0, 1][: layout.channels + 2]]
    Image.fromarray(pixels).save(
        stream,
        'WEBP',
        lossless=layout.encoding.lossless,
        quality=_QUALITY,
        exact=True,
        icc_profile=layout.encoding.icc or b'',
    )


_WRITERS: dict[str, Callable[[IO[bytes], _Layout, Iterator[np.ndarray]], None]] = {
    'PNG': _write_png,
    'TIFF': _write_tiff,
    'BMP': _write_bmp,
    'JPEG': _write_jpeg,
    'WEBP': _write_webp,
}
