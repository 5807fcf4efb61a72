"""Reads pictures: PNG, JPEG, TIFF, WebP, BMP, GIF, AVIF, PPM and TGA, grey or colour, with or without alpha.

The header is read first, without decoding, so that a picture that would not fit into memory is refused before memory is
asked for. TIFF has a reader of its own; all else is decoded by Pillow, because it reports truncated files.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from basicsr_classpruning.environment import picture_limit
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images import netpbm, pillow
from basicsr_classpruning.images.decoding import Header, decode, decode_frame, orientation_of, read_header, split_alpha
from basicsr_classpruning.images.metadata import turned
from basicsr_classpruning.images.orientation import upright
from basicsr_classpruning.images.picture import Animation, Encoding, Picture
from basicsr_classpruning.images.tiff import TiffPages

_TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_ANIMATED = ('PNG', 'WEBP', 'GIF', 'AVIF')


class PictureFile(ABC):
    """An open file of one picture or more. Made by `open_picture`."""

    sizes: list[tuple[int, int]]
    """Height and width of each picture, as stored."""
    note: str = ''
    """What of the file is not read; empty if all is."""

    def __len__(self) -> int:
        return len(self.sizes)

    def animation(self) -> Animation | None:
        """How the pictures follow each other, None if they do not move. Decodes them. Raises UserError."""
        return None

    @abstractmethod
    def pictures(self) -> Iterator[Picture]:
        """Decodes one picture after the other. Raises UserError."""

    def first(self) -> Picture:
        """Decodes the first picture. Raises UserError."""
        return next(self.pictures())


class _Pages(PictureFile):
    def __init__(self, pages: TiffPages) -> None:
        self._tiff = pages
        self.sizes = pages.sizes
        if pages.left_out:
            self.note = f'{pages.left_out} reduced copies and masks are left out'

    def pictures(self) -> Iterator[Picture]:
        return map(self._tiff.read, range(len(self._tiff)))


class _Frames(PictureFile):
    """Of a format that Pillow reads."""

    def __init__(self, path: Path, image: Image.Image, header: Header) -> None:
        self._path, self._image, self._header = path, image, header
        self._animation: Animation | None = None
        self._opaque = False
        count = int(getattr(image, 'n_frames', 1))
        self.sizes = [image.size[::-1]] * count
        if count > 1 and (header.encoding.format not in _ANIMATED or header.bits == 16):
            kind = '16-bit frames' if header.bits == 16 else 'pictures'
            self.note = f'only the first of its {count} {kind} is read'
            self.sizes = self.sizes[:1]

    def animation(self) -> Animation | None:
        if len(self) > 1 and self._animation is None:
            with _guarded(self._path):
                self._animation, self._opaque = _survey(self._image, self._header.encoding.format, len(self))
        return self._animation

    def pictures(self) -> Iterator[Picture]:
        if self.animation() is None:
            yield self.first()
            return
        for number in range(len(self)):
            with _guarded(self._path):
                self._image.seek(number)
                self._image.load()
                samples = decode_frame(self._image, self._header, self._opaque)
                orientation = orientation_of(self._image)
            yield _picture(samples, self._header.encoding, orientation)

    def first(self) -> Picture:
        with _guarded(self._path):
            samples = decode(self._path, self._image, self._header)
            return _picture(samples, self._header.encoding, orientation_of(self._image))


class _Netpbm16(PictureFile):
    def __init__(self, path: Path, header: netpbm.Header) -> None:
        self._path, self._header = path, header
        self.sizes = [(header.height, header.width)]

    def pictures(self) -> Iterator[Picture]:
        with _guarded(self._path):
            samples = netpbm.read(self._path, self._header)
        yield Picture(samples, None, Encoding('PPM'))


def _picture(samples: np.ndarray, encoding: Encoding, orientation: int) -> Picture:
    return split_alpha(upright(samples, orientation), _upright_encoding(encoding, orientation))


def _upright_encoding(encoding: Encoding, orientation: int) -> Encoding:
    metadata = turned(encoding.metadata, orientation)
    return Encoding(encoding.format, encoding.lossless, encoding.icc, metadata)


@contextlib.contextmanager
def open_picture(path: str | os.PathLike[str], max_pixels: int | None = None) -> Iterator[PictureFile]:
    """Opens a picture file; ``max_pixels`` is `picture_limit` by default.

    Raises:
        UserError: the file cannot be read, is of a kind that is not supported (as its header says), or a picture has
            more than ``max_pixels`` pixels; nothing is decoded by then.
    """
    path = Path(path)
    max_pixels = picture_limit() if max_pixels is None else max_pixels
    with contextlib.ExitStack() as stack:
        with _guarded(path):
            with open(path, 'rb') as stream:
                head = stream.read(1024)
            file: PictureFile
            if head[:4] in _TIFF:
                pages = stack.enter_context(contextlib.closing(TiffPages(path, max_pixels)))
                pages.check()
                file = _Pages(pages)
            elif (wide := netpbm.header_of_16_bit(head)) is not None:
                pillow.check_size(path, (wide.width, wide.height), max_pixels)
                file = _Netpbm16(path, wide)
            else:
                image = stack.enter_context(pillow.opened(path))
                pillow.check_size(path, image.size, max_pixels)
                file = _Frames(path, image, read_header(path, image))
        yield file


def read_picture(path: str | os.PathLike[str], max_pixels: int | None = None) -> Picture:
    """Reads a file's first picture.

    Raises:
        UserError: the file cannot be read or decoded, is of a kind that is not supported, or has more than
            ``max_pixels`` pixels (seen in its header, before anything is decoded).
    """
    with open_picture(path, max_pixels) as file:
        return file.first()


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of a file's first picture as stored, from its header alone. Raises UserError."""
    with open_picture(path, 2**62) as file:
        return file.sizes[0]


def count_pixels(path: str | os.PathLike[str]) -> int:
    """Pixels of all pictures of a file, from its headers alone. Raises UserError."""
    with open_picture(path, 2**62) as file:
        return sum(height * width for height, width in file.sizes)


@contextlib.contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Turns what is raised for a damaged file into a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except pillow.DAMAGED as error:
        raise pillow.unreadable(path, error) from None


def _survey(image: Image.Image, form: str, count: int) -> tuple[Animation, bool]:
    """Decodes all frames once; returns how they follow each other, and whether all of them are opaque."""
    durations, opaque = [], True
    for number in range(count):
        image.seek(number)
        image.load()
        durations.append(float(image.info.get('duration') or 0))
        if opaque and image.has_transparency_data:
            opaque = image.convert('RGBA').getchannel('A').getextrema()[0] == 255
    default_image = bool(getattr(image, 'default_image', False))
    loop = image.info.get('loop')
    if form == 'GIF':  # counts repetitions, and plays once where it says nothing
        plays = 1 if loop is None else loop + (loop > 0)
    else:
        plays = loop or 0
    return Animation(tuple(durations[default_image:]), plays, default_image), opaque
