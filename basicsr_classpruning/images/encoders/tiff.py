"""TIFF: deflated, a strip of the file for a strip of rows, one page after the other."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from basicsr_classpruning.images.encoders.layout import STRIP, Frame, Layout
from basicsr_classpruning.images.metadata import EXIF_IFD, GPS_IFD

_BIG = 2**32 - 2**24  # bytes of samples from which on a file's places need 64 bits
_ASCII, _BYTE, _LONG = 2, 1, 4
_BEFORE = 1  # tifffile drops the tags of the directories: they are written as the tag before, and renamed


def write_tiff(stream: IO[bytes], layout: Layout, strips: Iterator[np.ndarray]) -> None:
    """Writes a picture."""
    big = layout.height * layout.width * layout.channels * layout.dtype.itemsize >= _BIG
    write_pages(stream, iter([Frame(layout, strips)]), big)


def write_pages(stream: IO[bytes], frames: Iterator[Frame], big: bool) -> None:
    """Writes pages, which may differ in size and kind.

    Args:
        stream: can be read, too.
        frames: the pages.
        big: whether the file's places need 64 bits.
    """
    blocks: list[bytes | None] = []
    with tifffile.TiffWriter(stream, byteorder='<', bigtiff=big) as writer:
        for frame in frames:
            blocks.append(None if big else frame.layout.exif)
            _write_page(writer, frame, blocks[-1])
    _add_directories(stream, blocks)


def _write_page(writer: tifffile.TiffWriter, frame: Frame, exif: bytes | None) -> None:
    layout = frame.layout
    resolution: dict[str, Any] = {}
    if layout.resolution:
        x, y, unit = layout.resolution if layout.resolution.unit != 'metre' else layout.resolution.per('inch')
        resolution = {'resolution': (x, y), 'resolutionunit': {'none': 1, 'inch': 2, 'cm': 3}[unit]}
    writer.write(
        map(_tiff_strip, frame.strips),
        shape=(layout.height, layout.width) + (layout.channels,) * (layout.channels > 1),
        dtype=layout.dtype,
        photometric='minisblack' if layout.channels <= 2 else 'rgb',
        planarconfig='contig' if layout.channels > 1 else None,
        extrasamples=['unassalpha'] if layout.channels in (2, 4) else None,
        rowsperstrip=STRIP,
        compression='zlib',
        predictor=layout.dtype.kind != 'f',
        iccprofile=layout.encoding.icc,
        metadata=None,
        software=False,
        contiguous=False,
        extratags=_tags(layout, exif),
        **resolution,
    )


def _tiff_strip(strip: np.ndarray) -> bytes:
    """Deflated samples; of whole numbers the differences between neighbouring pixels (TIFF's predictor 2)."""
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)
    if strip.dtype.kind != 'f':
        difference = strip.copy()
        difference[:, 1:] -= strip[:, :-1]
        strip = difference
    return packer.compress(strip.astype(strip.dtype.newbyteorder('<'), copy=False).tobytes()) + packer.flush()


def _tags(layout: Layout, exif: bytes | None) -> list[tuple[int, int, int, Any, bool]]:
    """XMP, the texts of EXIF, and room for the places of its directories."""
    tags: list[tuple[int, int, int, Any, bool]] = []
    if layout.xmp:
        tags.append((700, _BYTE, len(layout.xmp), layout.xmp, True))
    if exif:
        for tag, value in _parsed(exif).items():
            if isinstance(value, str):
                text = value.encode(errors='replace') + b'\0'
                tags.append((tag, _ASCII, len(text), text, True))
            elif tag in (EXIF_IFD, GPS_IFD):
                tags.append((tag - _BEFORE, _LONG, 1, 0, True))
    return tags


def _parsed(exif: bytes) -> Image.Exif:
    parsed = Image.Exif()
    parsed.load(b'Exif\0\0' + exif)
    return parsed


def _add_directories(stream: IO[bytes], blocks: list[bytes | None]) -> None:
    """Appends the Exif and GPS directories of the pages, which tifffile does not write, and notes their places."""
    if not any(blocks):
        return
    places: list[tuple[int, bytes, int]] = []  # of the entry; the block and the tag
    stream.seek(4)
    for exif in blocks:
        directory_start = struct.unpack('<I', stream.read(4))[0]
        stream.seek(directory_start)
        count = struct.unpack('<H', stream.read(2))[0]
        for entry in range(count):
            tag = struct.unpack('<H10x', stream.read(12))[0] + _BEFORE
            if exif and tag in (EXIF_IFD, GPS_IFD):
                places.append((directory_start + 2 + 12 * entry, exif, tag))
    for place, exif, tag in places:
        start = stream.seek(0, 2)
        start += start % 2
        directory = ImageFileDirectory_v2(b'II*\0\0\0\0\0', group=tag)
        for key, value in _parsed(exif).get_ifd(tag).items():
            directory[key] = value
        stream.seek(start)
        stream.write(directory.tobytes(start))
        stream.seek(place)
        stream.write(struct.pack('<HHII', tag, _LONG, 1, start))
    stream.seek(0, 2)
