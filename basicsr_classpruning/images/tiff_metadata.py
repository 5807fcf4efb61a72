"""What a TIFF page says of its picture beside the pixels. What is damaged counts as not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from basicsr_classpruning.images.metadata import EXIF_IFD, GPS_IFD, MOST_XMP, is_useful
from basicsr_classpruning.images.picture import Metadata, Resolution

# Tags of the first directory that Exif has too: who made the picture, when, with what.
_DESCRIPTION = 270
_TEXTS = (_DESCRIPTION, 271, 272, 305, 306, 315, 316, 33432)
_Found = TypeVar('_Found')


def read_tag(page: Any, code: int, default: Any) -> Any:
    """The value of a tag of tifffile's page; ``default`` where it is not there."""
    tag = page.tags.get(code)
    return default if tag is None else tag.value


def read_page_metadata(path: Path, page: Any) -> Metadata:
    """Resolution, EXIF and XMP of a page."""
    return Metadata(
        resolution=_unless_damaged(lambda: _resolution(page)),
        exif=_unless_damaged(lambda: _exif(path, page)),
        xmp=_unless_damaged(lambda: _xmp(page)),
    )


def _unless_damaged(read: Callable[[], _Found | None]) -> _Found | None:
    try:
        return read()
    except Exception:  # neither tifffile nor Pillow documents a set of exceptions
        return None


def _resolution(page: Any) -> Resolution | None:
    x, y = read_tag(page, 282, None), read_tag(page, 283, None)
    unit = {1: 'none', 3: 'cm'}.get(int(read_tag(page, 296, 2)), 'inch')
    if not x or not y or 0 in (x[1], y[1]):
        return None
    found = Resolution(x[0] / x[1], y[0] / y[1], unit)
    return found if is_useful(found) else None


def _xmp(page: Any) -> bytes | None:
    xmp = read_tag(page, 700, None)
    return xmp if isinstance(xmp, bytes) and 0 < len(xmp) <= MOST_XMP else None


def _exif(path: Path, page: Any) -> bytes | None:
    """The tags that Exif knows, as an EXIF block, as other formats have it."""
    exif = Image.Exif()
    for tag in _TEXTS:
        text = read_tag(page, tag, None)
        written_by_tifffile = tag == _DESCRIPTION and str(text).startswith('{"shape"')  # says the size of this page
        if isinstance(text, str) and text and not written_by_tifffile:
            exif[tag] = text
    with open(path, 'rb') as stream:
        for tag in (EXIF_IFD, GPS_IFD):
            inner = _unless_damaged(lambda tag=tag: _directory(stream, page, tag))  # type: ignore[misc]
            if inner:
                exif.get_ifd(tag).update(inner)
    block = exif.tobytes().removeprefix(b'Exif\0\0')
    return block if len(block) > _EMPTY else None


def _directory(stream: Any, page: Any, code: int) -> dict[int, Any] | None:
    """The tags of an Exif or GPS directory, as Pillow reads them; None if there is none."""
    tag = page.tags.get(code)
    if tag is None or page.parent.is_bigtiff:
        return None
    stream.seek(0)
    directory = ImageFileDirectory_v2(stream.read(8), group=code)
    stream.seek(tag.valueoffset)  # tifffile knows that the tag is a place
    directory.load(stream)
    return {key: value for key, value in dict(directory).items() if not isinstance(value, dict)}


_EMPTY = len(Image.Exif().tobytes().removeprefix(b'Exif\0\0'))
