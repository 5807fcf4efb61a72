"""Cuts the pictures of a folder into overlapping sub-images and writes them as one LMDB in BasicSR's format.

A training step reads one crop of a picture but decodes the whole of it: sub-images make that several times cheaper.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import basicsr_classpruning  # noqa: F401  # first: it makes BasicSR importable

# isort: split
import cv2
import lmdb
import numpy as np
from basicsr.utils.lmdb_util import LmdbMaker
from tqdm import tqdm

from basicsr_classpruning.data.pictures import PictureError, is_read_by_opencv, list_pictures, read_file
from basicsr_classpruning.environment import picture_limit
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.images.checking import refuse_damaged
from basicsr_classpruning.images.folder import describe_skipped


@dataclass(frozen=True)
class Cut:
    """How a picture is cut, as in BasicSR's extract_subimages."""

    crop_size: int
    """Side of a sub-image in pixels; shorter sides of a picture are kept whole."""
    step: int
    """Pixels from one sub-image to the next."""
    thresh_size: int
    """A rest up to this many pixels wide is dropped; a larger one gets a sub-image that ends at the border."""

    def starts(self, length: int) -> list[int]:
        """First pixel of each sub-image along a side of ``length`` pixels."""
        if length <= self.crop_size:
            return [0]
        starts = list(range(0, length - self.crop_size + 1, self.step))
        if length - (starts[-1] + self.crop_size) > self.thresh_size:
            starts.append(length - self.crop_size)
        return starts

    def pieces(self, picture: np.ndarray) -> Iterator[np.ndarray]:
        """The sub-images of an (H, W) or (H, W, C) picture, row by row."""
        for top in self.starts(picture.shape[0]):
            for left in self.starts(picture.shape[1]):
                yield picture[top : top + self.crop_size, left : left + self.crop_size]


def name_keys(paths: Sequence[Path]) -> dict[str, Path]:
    """LMDB key of each picture: its name in the characters that BasicSR's reader takes.

    Raises UserError where two pictures would share one.
    """
    keys: dict[str, Path] = {}
    for path in paths:
        key = re.sub(r'[^A-Za-z0-9_-]', '_', path.stem)
        if key in keys:
            raise UserError(f'{keys[key]} and {path} would both be called {key!r} in the LMDB: rename one of them')
        keys[key] = path
    return keys


def read(path: Path) -> np.ndarray:
    """Returns the picture as stored, 8 or 16 bits, colours as OpenCV orders them. Raises PictureError where it does not
    decode."""
    if not is_read_by_opencv(path):
        pixels = read_file(path)
        return pixels[..., ::-1] if pixels.shape[2] == 3 else pixels[..., 0]
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) if path.stat().st_size else None
    if picture is None:
        raise PictureError(f'{path}: this picture does not decode')
    return picture


def write_sub_images(keys: dict[str, Path], target: Path, cut: Cut, compress_level: int) -> int:
    """Writes the sub-images of all pictures into a new LMDB and returns their number."""
    maker = LmdbMaker(str(target), compress_level=compress_level)
    try:
        for key, path in tqdm(keys.items(), unit='picture', file=sys.stderr):
            for number, piece in enumerate(cut.pieces(read(path)), start=1):
                _, content = cv2.imencode('.png', piece, [cv2.IMWRITE_PNG_COMPRESSION, compress_level])
                height, width, channels = (*piece.shape, 1)[:3]
                maker.put(content.tobytes(), f'{key}_s{number:03d}', (height, width, channels))
    finally:
        maker.close()
    return maker.counter


def prepare(folder: Path, target: Path, cut: Cut, compress_level: int) -> int:
    """Cuts all pictures of ``folder`` into the LMDB ``target``, which appears only once it is complete.

    Returns the number of sub-images. Raises UsageError for a wrong folder or target, UserError where a picture cannot
    be read (before anything is written) or the disk is full.
    """
    if target.suffix != '.lmdb':
        raise UsageError(f'--out: {target} does not end with .lmdb')
    if target.exists():
        raise UsageError(f'--out: {target} exists already: remove it, or choose another name')
    listing = list_pictures(folder)
    keys = name_keys(listing.pictures)
    refuse_damaged(listing.pictures, picture_limit())
    if listing.skipped:
        print(f'{folder}: {describe_skipped(path.name for path in listing.skipped)}', file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{target.stem}-', dir=target.parent) as unfinished:
        number = write_sub_images(keys, Path(unfinished) / 'data.lmdb', cut, compress_level)
        (Path(unfinished) / 'data.lmdb').rename(target)
    return number


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads and checks the command line. Raises UsageError for numbers that make no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='The result is used in an options file with\n'
        '  dataroot_gt: train.lmdb\n  io_backend: {type: lmdb}\n\n'
        'Example:\n  python tools/prepare_data.py DIV2K_train_HR --out datasets/train.lmdb',
    )
    parser.add_argument('folder', type=Path, metavar='FOLDER', help='folder of pictures')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.lmdb', help='LMDB to be written; must be new')
    numbers = (
        # name, default, least, most, unit, help
        ('--crop-size', 480, 1, None, 'PIXELS', 'side of a sub-image'),
        ('--step', 240, 1, None, 'PIXELS', 'from one sub-image to the next'),
        ('--thresh-size', 0, 0, None, 'PIXELS', 'drop a rest at the right and lower border up to this wide'),
        ('--compress-level', 1, 0, 9, '0-9', 'PNG compression, 9 is smallest'),
    )
    for name, default, _, _, unit, text in numbers:
        parser.add_argument(name, type=int, default=default, metavar=unit, help=f'{text} (default: {default})')
    options = parser.parse_args(arguments)
    for name, _, least, most, _, _ in numbers:
        value = getattr(options, name[2:].replace('-', '_'))
        if value < least or (most is not None and value > most):
            allowed = f'{least} or more' if most is None else f'{least} to {most}'
            raise UsageError(f'{name}: {value} is not {allowed}')
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    try:
        options = parse_arguments(arguments)
        cut = Cut(options.crop_size, options.step, options.thresh_size)
        number = prepare(options.folder, options.out, cut, options.compress_level)
    except (UserError, OSError, lmdb.Error) as error:
        print(f'error: {error}', file=sys.stderr)
        return getattr(error, 'status', 1)
    except KeyboardInterrupt:
        print('interrupted: nothing was written', file=sys.stderr)
        return 130
    print(f'{options.out}: {number} sub-images')
    return 0


if __name__ == '__main__':
    sys.exit(main())
