"""Reads TIFF by its tags: each page right to the last bit, or refused by what it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tifffile

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images import pillow
from basicsr_classpruning.images.metadata import turned
from basicsr_classpruning.images.orientation import upright
from basicsr_classpruning.images.picture import Encoding, Picture
from basicsr_classpruning.images.tiff_metadata import read_page_metadata, read_tag
from basicsr_classpruning.images.tiff_segments import COMPRESSIONS, Segments, read_segments

logging.getLogger('tifffile').addHandler(logging.NullHandler())  # its warnings have no place between a user's lines

_PHOTOMETRIC = {
    0: 'white is zero', 1: 'black is zero', 2: 'RGB', 3: 'palette', 4: 'a transparency mask',
    5: 'CMYK or other inks', 6: 'YCbCr', 8: 'CIELAB', 9: 'ICCLAB', 10: 'ITULAB', 32803: "a camera's raw samples",
    32844: 'LogL', 32845: 'LogLuv', 34892: "a camera's raw samples", 51177: 'depth',
}  # fmt: skip
_BY_PILLOW = (2, 3, 4, 7)  # CCITT and JPEG, which say themselves how their samples are packed
_ASSOCIATED, _UNASSOCIATED = 1, 2  # alpha that colours are multiplied by, or not
_WITH_PREDICTOR = (5, 8, 32946, 34925, 50000)
_MOST_TILE = 2**24  # pixels: a small picture may have a large tile, up to this
_FLOATS = (-1.0, 2.0)  # networks take values from 0 to 1; filters leave some a little outside


class TiffPages:
    """The pages of an open TIFF file, without reduced copies and masks.

    Raises UserError where the file is damaged, or a page is larger than ``max_pixels``.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._path, self._max_pixels = path, max_pixels
        try:
            self._file = tifffile.TiffFile(path)
        except FileNotFoundError:
            raise UserError(f'{path}: no such file') from None
        except Exception as error:  # tifffile documents no set of exceptions
            raise pillow.unreadable(path, error) from None
        try:
            pages: list[Any] = [self._file.pages[index] for index in range(len(self._file.pages))]
            kinds = [int(read_tag(page, 254, 0)) for page in pages]
            self.sizes = [(int(read_tag(page, 257, 0)), int(read_tag(page, 256, 0))) for page in pages]
        except Exception as error:
            self.close()
            raise pillow.unreadable(path, error) from None
        chosen = [index for index, kind in enumerate(kinds) if not kind & 0b101] or [0]
        self._numbers = chosen
        self._pages = [pages[index] for index in chosen]
        self.sizes = [self.sizes[index] for index in chosen]
        self.left_out = len(pages) - len(chosen)

    def __len__(self) -> int:
        return len(self._pages)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def check(self) -> None:
        """Raises UserError for a page that is refused; nothing is decoded."""
        for index in range(len(self)):
            self._guarded(self._describe, index)

    def read(self, index: int) -> Picture:
        """Reads a page. Raises UserError."""
        return self._guarded(self._read, index)

    def _guarded(self, function: Any, index: int) -> Any:
        try:
            return function(index)
        except UserError:
            raise
        except Exception as error:  # tifffile documents no set of exceptions
            raise pillow.unreadable(self._path, error) from None

    def _refuse(self, what: str, allowed: str) -> NoReturn:
        raise UserError(f'{self._path}: a TIFF with {what}, which is not supported; {allowed}')

    # --------------------------------------------------------------------------------------------------------- tags

    def _describe(self, index: int) -> Segments:
        """What the tags say of a page. Raises UserError by what is not supported."""
        page, (height, width) = self._pages[index], self.sizes[index]
        if height < 1 or width < 1:
            raise pillow.unreadable(self._path, 'a page without pixels')
        pillow.check_size(self._path, (width, height), self._max_pixels)
        samples = int(read_tag(page, 277, 1))
        bits, formats = _all_of(page, 258, 1, samples), _all_of(page, 339, 1, samples)
        self._check_samples(page, samples, bits, formats)
        compression, is_float = int(read_tag(page, 259, 1)), formats[0] == 3
        separate = int(read_tag(page, 284, 1)) == 2 and samples > 1
        self._check_colour(read_tag(page, 262, None), samples, bits[0], compression, separate)
        self._extra_sample(page, samples)
        self._check_volume(page)
        predictor = self._predictor(page, compression, bits[0], is_float)
        tiled = 322 in page.tags
        segment = self._segment_size(page, height, width)
        offsets = _numbers(read_tag(page, 324 if tiled else 273, ()))
        sizes = _numbers(read_tag(page, 325 if tiled else 279, ()))
        if not sizes and compression == 1 and len(offsets) == 1:  # left out by some old programs
            sizes = ((width * samples * bits[0] + 7) // 8 * height,)
        return Segments(
            height=height,
            width=width,
            samples=samples,
            bits=bits[0],
            is_float=is_float,
            order=self._file.byteorder,
            compression=compression,
            predictor=predictor,
            separate=separate,
            segment_height=segment[0],
            segment_width=segment[1],
            tiled=tiled,
            offsets=offsets,
            sizes=sizes,
            bits_reversed=int(read_tag(page, 266, 1)) == 2,
        )

    def _check_samples(self, page: Any, samples: int, bits: tuple[int, ...], formats: tuple[int, ...]) -> None:
        if not 1 <= samples <= 4:
            self._refuse(f'{samples} samples a pixel', 'allowed are grey and RGB, each with or without alpha')
        if len(set(bits)) > 1 or len(set(formats)) > 1:
            self._refuse(f'samples of different kinds ({", ".join(map(str, bits))} bits)', 'allowed are equal ones')
        names = {1: 'unsigned', 2: 'signed', 3: 'float', 4: 'undefined', 5: 'complex integer', 6: 'complex'}
        kind = formats[0] if formats[0] != 4 else 1  # of undefined kind: taken for unsigned, as TIFF 6.0 allows
        if (kind, bits[0]) not in {(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (3, 16), (3, 32)}:
            self._refuse(
                f'{bits[0]}-bit {names.get(formats[0], "unknown")} samples',
                'allowed are 8 and 16 bit unsigned (and 1, 2, 4), and floats of 16 and 32 bit',
            )

    def _check_colour(self, photometric: int | None, samples: int, bits: int, compression: int, separate: bool) -> None:
        if photometric is None:
            self._refuse('no photometric interpretation', 'allowed are grey, RGB and palettes')
        # JPEG in TIFF is mostly YCbCr, and is decoded to RGB like any other JPEG.
        if photometric not in (0, 1, 2, 3) and not (photometric == 6 and compression == 7):
            what = _PHOTOMETRIC.get(photometric, f'photometric interpretation {photometric}')
            self._refuse(f'{what} (photometric interpretation {photometric})', 'allowed are grey, RGB and palettes')
        colours = {2: 3, 6: 3}.get(photometric, 1)
        if not colours <= samples <= colours + 1:
            self._refuse(
                f'{samples} samples a pixel, {_PHOTOMETRIC[photometric]}', f'allowed are {colours}, and one of alpha'
            )
        if photometric == 3 and (samples > 1 or bits > 8):
            self._refuse(f'a palette of {bits}-bit samples, {samples} a pixel', 'allowed are 1 to 8 bit, one a pixel')
        if compression in _BY_PILLOW and (bits != (8 if compression == 7 else 1) or samples > colours or separate):
            self._refuse(f'{samples} samples of {bits} bit compressed as JPEG or fax', 'use another compression')

    def _predictor(self, page: Any, compression: int, bits: int, is_float: bool) -> int:
        """How samples were changed before they were compressed: 1 not at all, 2 and 3 to differences."""
        if compression not in (*COMPRESSIONS, *_BY_PILLOW):
            name = tifffile.COMPRESSION(compression).name if compression in set(tifffile.COMPRESSION) else 'unknown'
            self._refuse(f'{name} compression ({compression})', 'allowed are none, LZW, Deflate, PackBits, JPEG …')
        predictor = int(read_tag(page, 317, 1)) if compression in _WITH_PREDICTOR else 1
        if predictor not in (1, 2, 3) or (predictor == 3 and not is_float) or (predictor == 2 and bits < 8):
            self._refuse(f'predictor {predictor} for {bits}-bit samples', 'allowed are 1, 2, and 3 for floats')
        return predictor

    def _check_volume(self, page: Any) -> None:
        depth = int(read_tag(page, 32997, 1))
        if depth > 1:
            self._refuse(f'a volume of {depth} layers', 'a picture has one')
        if self._file.is_imagej and (self._file.imagej_metadata or {}).get('images', 1) > len(self._file.pages):
            self._refuse('an ImageJ stack in one page', 'save its images as pages')

    def _segment_size(self, page: Any, height: int, width: int) -> tuple[int, int]:
        """Height and width of a tile or strip, of which no more is unpacked than the limit of pixels."""
        if 322 in page.tags:
            size = int(read_tag(page, 323, 0)), int(read_tag(page, 322, 0))
        else:
            size = min(int(read_tag(page, 278, height)), height), width
        if min(size) < 1:
            raise pillow.unreadable(self._path, 'a strip or tile without pixels')
        pillow.check_size(self._path, (size[1], size[0]), max(self._max_pixels, _MOST_TILE))
        return size

    def _extra_sample(self, page: Any, samples: int) -> int | None:
        """The kind of alpha; None if there is none. OpenCV writes alpha without saying so."""
        if samples not in (2, 4):
            return None
        kind = _all_of(page, 338, _UNASSOCIATED, 1)[0]
        if kind not in (_ASSOCIATED, _UNASSOCIATED):
            self._refuse('a sample more a pixel whose meaning it does not say', 'allowed is alpha')
        return kind

    # ------------------------------------------------------------------------------------------------------- pixels

    def _read(self, index: int) -> Picture:
        page, layout = self._pages[index], self._describe(index)
        photometric = int(read_tag(page, 262, 1))
        if layout.compression in _BY_PILLOW:
            samples = self._by_pillow(index)
        else:
            with open(self._path, 'rb') as stream:
                samples = read_segments(stream, layout)
            samples = self._as_shown(page, samples, layout, photometric)
        if layout.is_float:
            self._check_floats(samples)
        channels = 1 if samples.shape[2] < 3 else 3
        if self._extra_sample(page, layout.samples) == _ASSOCIATED:
            _divide_by_alpha(samples)
        orientation = int(read_tag(page, 274, 1))
        samples = upright(samples, orientation)
        alpha = samples[..., channels] if samples.shape[2] > channels else None
        return Picture(samples[..., :channels], alpha, self._encoding(index, channels, orientation))

    def _as_shown(self, page: Any, samples: np.ndarray, layout: Segments, photometric: int) -> np.ndarray:
        """Black as 0 and white as the greatest value, colours of palettes looked up."""
        if photometric == 3:
            return _look_up(samples, np.asarray(read_tag(page, 320, ())), layout.bits)
        if layout.bits < 8:
            samples *= np.uint8(255 // (2**layout.bits - 1))
        if photometric == 0:  # alpha, if there is any, is not turned round
            grey = samples[..., :1]
            np.subtract(1.0 if layout.is_float else np.iinfo(samples.dtype).max, grey, out=grey, casting='unsafe')
        return samples

    def _by_pillow(self, index: int) -> np.ndarray:
        with pillow.opened(self._path) as image:
            image.seek(self._numbers[index])
            image.load()
            mode = 'L' if image.mode in ('1', 'L') else 'RGB'
            return pillow.samples(image if image.mode == mode else image.convert(mode))

    def _check_floats(self, samples: np.ndarray) -> None:
        least, most = float(samples.min()), float(samples.max())
        if not _FLOATS[0] <= least <= most <= _FLOATS[1]:  # false for NaN, too
            self._refuse(f'float samples from {least:g} to {most:g}', 'allowed are 0 (black) to 1 (white)')

    # ----------------------------------------------------------------------------------------------------- metadata

    def _encoding(self, index: int, channels: int, orientation: int) -> Encoding:
        page = self._pages[index]
        icc = read_tag(page, 34675, None)
        if not isinstance(icc, bytes) or icc[16:20] != (b'GRAY' if channels == 1 else b'RGB '):
            icc = None
        metadata = read_page_metadata(self._path, page)
        return Encoding('TIFF', True, icc, turned(metadata, orientation))


def _all_of(page: Any, code: int, default: int, count: int) -> tuple[int, ...]:
    """A tag's values, one a sample; where it has fewer, all are as its first."""
    values = _numbers(read_tag(page, code, default)) or (default,)
    return tuple(map(int, values)) if len(values) >= count else (int(values[0]),)


def _numbers(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _look_up(samples: np.ndarray, colours: np.ndarray, bits: int) -> np.ndarray:
    """RGB of palette indices ``(H, W, 1)``; colours have 16 bits, and become 8 where those say it all."""
    if colours.size != 3 * 2**bits:
        raise ValueError(f'a palette of {colours.size} values')
    table = colours.reshape(3, -1).T.astype(np.uint16)
    if not (table % 257).any() or not (table % 256).any():  # 8 bits, repeated as the low byte or not
        table = (table >> 8).astype(np.uint8)
    elif table.max() < 256:  # written so by programs that read the specification too fast
        table = table.astype(np.uint8)
    return table[samples[..., 0]]


def _divide_by_alpha(samples: np.ndarray) -> None:
    """Makes colours that were multiplied by alpha, ``(H, W, 2 or 4)``, independent of it, in place."""
    is_float = np.issubdtype(samples.dtype, np.floating)
    for row in samples:
        colours, alpha = row[:, :-1], row[:, -1:]
        if is_float:
            colours[:] = np.divide(colours, alpha, out=np.zeros_like(colours), where=alpha > 0)
        else:
            most = np.uint64(np.iinfo(samples.dtype).max)
            wide = np.maximum(alpha, 1).astype(np.uint64)
            colours[:] = np.minimum((colours * most + wide // 2) // wide, most) * (alpha > 0)
