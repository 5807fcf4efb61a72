"""Clean pictures of a folder or of an LMDB in BasicSR's format."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import lmdb
import numpy as np
from basicsr.utils import imfrombytes
from basicsr.utils.color_util import rgb2ycbcr

from basicsr_classpruning.environment import picture_limit
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.images import reading
from basicsr_classpruning.images.checking import refuse_damaged
from basicsr_classpruning.images.folder import SUFFIXES, Listing, describe_skipped, list_folder

COLORS = ('rgb', 'gray', 'y')
BACKENDS = ('disk', 'lmdb')
# OpenCV, which decodes the others as BasicSR does, multiplies TIFF's colours by alpha, and does not read the rest.
_NOT_BY_OPENCV = ('.tif', '.tiff', '.gif', '.avif', '.tga')


class PictureError(UserError):
    """A picture that cannot be used."""


def list_pictures(folder: Path) -> Listing:
    """The files directly inside a folder, sorted by name.

    Raises UsageError where the folder does not exist or holds no picture.
    """
    if not folder.is_dir():
        raise UsageError(f'no such folder: {folder}')
    listing = list_folder(folder)
    if not listing.pictures:
        raise UsageError(f'no pictures ({" ".join(SUFFIXES)}) in {folder}')
    return listing


def list_lmdb_keys(root: Path) -> list[str]:
    """The keys of an LMDB, in the order of its ``meta_info.txt`` (lines of ``KEY.png (H,W,C) LEVEL``).

    Raises UsageError where it is not an LMDB in BasicSR's format or holds no picture.
    """
    meta = root / 'meta_info.txt'
    if not meta.is_file() or not (root / 'data.mdb').is_file():
        raise UsageError(f'not an LMDB written by tools/prepare_data.py or BasicSR: {root}')
    try:
        lines = meta.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError:
        raise UsageError(f'not UTF-8 text: {meta}') from None
    keys = [line.rpartition('.png (')[0] for line in lines if line.strip()]
    if not keys or not all(keys):
        raise UsageError(f'no pictures, or a line that is not "KEY.png (H,W,C) LEVEL", in {meta}')
    for key in keys:  # results are named after them
        if key.startswith('/') or '\\' in key or '\0' in key or {'', '.', '..'} & set(key.split('/')):
            raise UsageError(f'the key {key!r:.80} is not allowed in {meta}; a name such as folder/picture')
    return keys


# Open environments of this process: lmdb refuses a second one for the same file, and an inherited one must not be used.
_environments: dict[Path, lmdb.Environment] = {}


def _close_environments() -> None:
    for environment in _environments.values():
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_close_environments)


def _read_lmdb(root: Path, key: str) -> bytes:
    """Returns an encoded picture. Raises PictureError where the LMDB does not have it."""
    try:
        if root not in _environments:
            _environments[root] = lmdb.open(str(root), readonly=True, lock=False, readahead=False)
        with _environments[root].begin() as transaction:
            content = transaction.get(key.encode())
    except lmdb.Error as error:
        raise PictureError(f'{root}: {error}') from None
    if content is None:
        raise PictureError(f'{root / key}: in meta_info.txt, but not in the LMDB')
    return content


def read_picture(content: bytes, name: str, color: str = 'rgb') -> np.ndarray:
    """Decodes a picture.

    Args:
        content: an encoded picture.
        name: what the error calls it.
        color: ``rgb``, ``gray`` (as OpenCV converts) or ``y`` (luma of BT.601, 16–235, as in BasicSR).

    Returns:
        (H, W, 3) or (H, W, 1) uint8.

    Raises:
        PictureError: It cannot be decoded.
    """
    try:
        picture = imfrombytes(content, flag='grayscale' if color == 'gray' else 'color')
    except cv2.error as error:  # raised for an empty file, too
        if 'IO_MAX_IMAGE' in str(error):
            limit = os.environ.get('OPENCV_IO_MAX_IMAGE_PIXELS', '2**30')
            raise PictureError(
                f'{name}: more pixels than {limit}; the environment variable OPENCV_IO_MAX_IMAGE_PIXELS sets this limit'
            ) from None
        picture = None
    if picture is None:
        raise PictureError(f'{name}: this picture does not decode')
    if color == 'gray':
        return picture[..., None]
    picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return rgb2ycbcr(picture, y_only=True)[..., None] if color == 'y' else picture


def read_file(path: Path) -> np.ndarray:
    """Reads a picture that OpenCV does not read, or not rightly: (H, W, 1 or 3) uint8, grey or RGB.

    Raises PictureError where it cannot be read.
    """
    try:
        pixels = reading.read_picture(path).pixels
    except UserError as error:
        raise PictureError(str(error)) from None
    if pixels.dtype == np.uint16:  # as libtiff does
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif pixels.dtype == np.float32:
        pixels = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def is_read_by_opencv(path: Path) -> bool:
    """Whether OpenCV decodes files of this name, as it does for BasicSR; `read_file` reads the others."""
    return path.suffix.lower() not in _NOT_BY_OPENCV


def _convert(pixels: np.ndarray, color: str) -> np.ndarray:
    """(H, W, 1 or 3) grey or RGB pixels as `read_picture` would give them."""
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if color == 'rgb':
        return pixels
    if color == 'gray':
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    return rgb2ycbcr(pixels, y_only=True)[..., None]


class Pictures:
    """Clean pictures by index. Holds no open file, so that it can be handed to other processes.

    Args:
        root: folder of pictures, or LMDB folder.
        backend: ``disk`` or ``lmdb``.
        color: ``rgb``, ``gray`` or ``y``, see :func:`read_picture`.

    Raises:
        UsageError: A wrong option, or nothing to read at ``root``.
    """

    def __init__(self, root: str, backend: str = 'disk', color: str = 'rgb') -> None:
        if backend not in BACKENDS:
            raise UsageError(f'io_backend.type: {backend!r} is not one of {", ".join(BACKENDS)}')
        if color not in COLORS:
            raise UsageError(f'color: {color!r} is not one of {", ".join(COLORS)}')
        self.root = Path(root).expanduser()
        self.backend = backend
        self.color = color
        self.skipped: list[str] = []
        """Names of the folder's files that are no pictures."""
        try:
            if backend == 'lmdb':
                self.names = list_lmdb_keys(self.root)
                self.paths = [str(self.root / name) for name in self.names]
            else:
                listing = list_pictures(self.root)
                self.names = [path.stem for path in listing.pictures]
                self.paths = [str(path) for path in listing.pictures]
                self.skipped = [path.name for path in listing.skipped]
        except UsageError as error:
            raise UsageError(f'dataroot_gt: {error}') from None

    def __len__(self) -> int:
        return len(self.names)

    def check(self) -> str:
        """Reads all files of a folder once, without decoding them if that is enough; an LMDB was checked when it was
        made. Returns what of the folder is skipped, in one line that may be empty.

        Raises PictureError where files are damaged.
        """
        if self.backend == 'disk':
            try:
                refuse_damaged(self.paths, picture_limit())
            except UserError as error:
                raise PictureError(str(error)) from None
        return describe_skipped(self.skipped)

    def _content(self, index: int) -> bytes:
        if self.backend == 'lmdb':
            return _read_lmdb(self.root, self.names[index])
        try:
            return Path(self.paths[index]).read_bytes()
        except OSError as error:
            raise PictureError(f'{self.paths[index]}: {error.strerror}') from None

    def read(self, index: int) -> np.ndarray:
        """Returns picture ``index`` as (H, W, C) uint8. Raises PictureError where it cannot be read or decoded."""
        path = Path(self.paths[index])
        if self.backend == 'disk' and not is_read_by_opencv(path):
            return _convert(read_file(path), self.color)
        return read_picture(self._content(index), self.paths[index], self.color)
