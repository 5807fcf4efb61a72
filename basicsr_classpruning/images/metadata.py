"""Resolution, EXIF, XMP and the chunks of a PNG that say how its values look: read, and made to fit the result."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image

from basicsr_classpruning.images.picture import Metadata, Resolution

ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD = 0x8769, 0x8825
_WIDTH, _HEIGHT = 0xA002, 0xA003  # of the picture, as the Exif block repeats them
_PNG_LOOK = (b'gAMA', b'cHRM', b'sRGB', b'cICP', b'mDCV', b'cLLI')
MOST_XMP = 2**22  # bytes
_SRGB = ((1, 13), (2, 2), (1, 2), (2, 13), (1, 1))  # primaries and transfer (ITU-T H.273), 2 where it is not said
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:>|\s*=\s*["\']))\s*[2-8]')


def read_metadata(path: Path, image: Image.Image, form: str) -> Metadata:
    """What an opened picture that is no TIFF says of itself. What is damaged counts as not there."""
    return Metadata(
        resolution=_resolution(image, form),
        exif=_exif(image),
        xmp=_xmp(image),
        png=tuple({'PNG': _png_look, 'AVIF': _avif_look}[form](path)) if form in ('PNG', 'AVIF') else (),
    )


def _resolution(image: Image.Image, form: str) -> Resolution | None:
    info = image.info
    try:
        if form == 'JPEG' and 'jfif_density' in info:
            unit = {1: 'inch', 2: 'cm'}.get(info.get('jfif_unit'), 'none')  # type: ignore[arg-type]
            x, y = info['jfif_density']
        elif form == 'PNG' and 'aspect' in info:
            (x, y), unit = info['aspect'], 'none'
        elif 'dpi' in info:
            (x, y), unit = info['dpi'], 'inch'
        else:
            return None
        found = Resolution(float(x), float(y), unit)
    except (TypeError, ValueError):
        return None
    return found if is_useful(found) else None


def is_useful(resolution: Resolution) -> bool:
    """Whether it says anything: a ratio of 1, which many programs write by default, and damaged ones do not."""
    x, y, unit = resolution
    if not (math.isfinite(x) and math.isfinite(y) and 0 < x < 1e6 and 0 < y < 1e6):
        return False
    return unit != 'none' or x != y


def _exif(image: Image.Image) -> bytes | None:
    exif = image.info.get('exif')
    if not isinstance(exif, bytes) and 'Raw profile type exif' in image.info:  # as ImageMagick wrote it in PNG
        try:
            exif = image.getexif().tobytes()
        except Exception:  # a damaged block is no reason to refuse a picture
            return None
    if not isinstance(exif, bytes):
        return None
    exif = exif.removeprefix(b'Exif\0\0')
    return exif if exif[:4] in (b'II*\0', b'MM\0*') else None


def _xmp(image: Image.Image) -> bytes | None:
    xmp = image.info.get('xmp', image.info.get('XML:com.adobe.xmp'))
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return xmp if isinstance(xmp, bytes) and 0 < len(xmp) <= MOST_XMP else None


def png_chunks(stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yields name and length of each chunk of a PNG, the stream at its content; ends where the file does."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, name = struct.unpack('>I4s', head)
        start = stream.tell()
        yield name, length
        stream.seek(start + length + 4)


def _png_look(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with open(path, 'rb') as stream:
        seen = set()
        for name, length in png_chunks(stream):
            if name == b'IDAT':
                return
            if name in _PNG_LOOK and name not in seen and length <= 64:
                seen.add(name)
                yield name, stream.read(length)


def _avif_look(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """What an AVIF says of its colours, as the chunk of a PNG, unless it is what a PNG has without."""
    with open(path, 'rb') as stream:
        head = stream.read(2**16)
    place = head.find(b'colrnclx') + 8
    if place < 8 or place + 4 > len(head):
        return
    primaries, transfer = struct.unpack_from('>HH', head, place)
    if (primaries, transfer) not in _SRGB and max(primaries, transfer) < 256:
        yield b'cICP', bytes((primaries, transfer, 0, 1))  # no matrix: RGB, of the full range


def turned(metadata: Metadata, orientation: int) -> Metadata:
    """The metadata of a picture once its orientation is applied: width and height may have changed places."""
    if orientation < 5 or metadata.resolution is None:
        return metadata
    x, y, unit = metadata.resolution
    return Metadata(Resolution(y, x, unit), metadata.exif, metadata.xmp, metadata.png)


def upright_exif(exif: bytes, width: int, height: int) -> bytes | None:
    """An EXIF block for an upright picture of this size; None if it is damaged.

    It is mended in place, as makers' notes point to bytes by where these are: the orientation becomes 1, the size that
    it repeats the result's, and the thumbnail, which shows the old picture, is unlinked.
    """
    data = bytearray(exif)
    order = '<' if data[:2] == b'II' else '>'
    try:
        for tag, entry in _entries(data, order, struct.unpack_from(f'{order}I', data, 4)[0]):
            if tag == ORIENTATION:
                struct.pack_into(f'{order}HIHH', data, entry + 2, 3, 1, 1, 0)
            elif tag == EXIF_IFD:
                start = struct.unpack_from(f'{order}I', data, entry + 8)[0]
                for inner, place in _entries(data, order, start):
                    if inner in (_WIDTH, _HEIGHT):
                        struct.pack_into(f'{order}HII', data, place + 2, 4, 1, width if inner == _WIDTH else height)
        start = struct.unpack_from(f'{order}I', data, 4)[0]
        count = struct.unpack_from(f'{order}H', data, start)[0]
        struct.pack_into(f'{order}I', data, start + 2 + 12 * count, 0)
    except struct.error:
        return None
    return bytes(data)


def _entries(data: bytearray, order: str, start: int) -> Iterator[tuple[int, int]]:
    """Yields the tags of a directory, each with where its entry of twelve bytes is."""
    for entry in range(struct.unpack_from(f'{order}H', data, start)[0]):
        place = start + 2 + 12 * entry
        struct.unpack_from('12s', data, place)  # raises where the block ends before
        yield struct.unpack_from(f'{order}H', data, place)[0], place


def upright_xmp(xmp: bytes) -> bytes:
    """An XMP packet for an upright picture."""
    return _XMP_ORIENTATION.sub(rb'\g<1>1', xmp)
