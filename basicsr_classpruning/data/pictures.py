"""Clean pictures of a folder or of an LMDB in BasicSR's format."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import lmdb
import numpy as np
from basicsr.utils import imfrombytes
from basicsr.utils.color_util import rgb2ycbcr

from basicsr_classpruning.errors import UsageError, UserError

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
COLORS = ('rgb', 'gray', 'y')
BACKENDS = ('disk', 'lmdb')


class PictureError(UserError):
    """A picture that cannot be used."""


def list_pictures(folder: Path) -> list[Path]:
    """The pictures directly inside a folder, sorted by name.

    Raises UsageError where the folder does not exist or holds no picture.
    """
    if not folder.is_dir():
        raise UsageError(f'no such folder: {folder}')
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise UsageError(f'no pictures ({" ".join(EXTENSIONS)}) in {folder}')
    return paths


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
        try:
            if backend == 'lmdb':
                self.names = list_lmdb_keys(self.root)
                self.paths = [str(self.root / name) for name in self.names]
            else:
                files = list_pictures(self.root)
                self.names = [path.stem for path in files]
                self.paths = [str(path) for path in files]
        except UsageError as error:
            raise UsageError(f'dataroot_gt: {error}') from None

    def __len__(self) -> int:
        return len(self.names)

    def _content(self, index: int) -> bytes:
        if self.backend == 'lmdb':
            return _read_lmdb(self.root, self.names[index])
        try:
            return Path(self.paths[index]).read_bytes()
        except OSError as error:
            raise PictureError(f'{self.paths[index]}: {error.strerror}') from None

    def read(self, index: int) -> np.ndarray:
        """Returns picture ``index`` as (H, W, C) uint8. Raises PictureError where it cannot be read or decoded."""
        return read_picture(self._content(index), self.paths[index], self.color)
