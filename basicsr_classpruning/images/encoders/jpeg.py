"""Baseline JPEG, made of strips between restart markers."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images.encoders.layout import QUALITY, STRIP, Layout
from basicsr_classpruning.images.picture import Resolution

SIDE_LIMIT = 65_500


def write_jpeg(stream: IO[bytes], layout: Layout, strips: Iterator[np.ndarray]) -> None:
    """Writes baseline JPEG strip by strip.

    Each strip is encoded by itself; with the standard Huffman tables its data is exactly what stands between two
    restart markers of the whole picture's file (ITU-T T.81, B.2.4.4 and E.1.4).
    """
    strip_blocks = (layout.width + 7) // 8 * (STRIP // 8)
    restarts = strip_blocks <= 0xFFFF
    if not restarts:
        raise UserError(f'JPEG holds at most {SIDE_LIMIT} pixels a side')
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
    Image.fromarray(strip).save(buffer, 'JPEG', quality=QUALITY, subsampling=0)
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


def _jpeg_head(head: bytes, layout: Layout, strip_blocks: int) -> bytes:
    """The first strip's head with the picture's height, its metadata and the distance of the restart markers."""
    parts = [head[:2]]
    for marker, start, end in _jpeg_segments(head):
        segment = head[start:end]
        if marker == 0xC0:
            segment = segment[:5] + struct.pack('>H', layout.height) + segment[7:]
        elif marker == 0xDA:
            parts.append(struct.pack('>BBHH', 0xFF, 0xDD, 4, strip_blocks))
        parts.append(segment)
        if marker == 0xE0:
            parts[-1] = _with_density(segment, layout.resolution)
            parts += _application_segments(layout)
    return b''.join(parts)


def _with_density(segment: bytes, resolution: Resolution | None) -> bytes:
    """A JFIF segment that says this resolution."""
    if resolution is None:
        return segment
    if resolution.unit == 'metre':
        resolution = resolution.per('inch')
    x, y = (min(round(value), 0xFFFF) for value in resolution[:2])
    unit = {'none': 0, 'inch': 1, 'cm': 2}[resolution.unit]
    return segment[:11] + struct.pack('>BHH', unit, max(x, 1), max(y, 1)) + segment[16:]


def _application_segments(layout: Layout) -> Iterator[bytes]:
    """EXIF, XMP and the colour profile. A segment holds 65,533 bytes: what is larger is left out, but for profiles."""
    for name, content in ((b'Exif\0\0', layout.exif), (b'http://ns.adobe.com/xap/1.0/\0', layout.xmp)):
        if content and len(name + content) <= 65_533:
            yield struct.pack('>BBH', 0xFF, 0xE1, 2 + len(name + content)) + name + content
    if layout.encoding.icc:
        yield _jpeg_profile(layout.encoding.icc)


def _jpeg_profile(icc: bytes) -> bytes:
    pieces = [icc[i : i + 65_000] for i in range(0, len(icc), 65_000)]
    segments = (
        struct.pack('>BBH', 0xFF, 0xE2, 16 + len(piece)) + b'ICC_PROFILE\0' + bytes((number, len(pieces))) + piece
        for number, piece in enumerate(pieces, 1)
    )
    return b''.join(segments)
