"""Finds damaged files without decoding them, so that a training of days need not stop at one."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images.metadata import png_chunks
from basicsr_classpruning.images.reading import open_picture, read_picture

_THREADS = 8  # most of the time goes into waiting for the disk
_TAIL = 4096  # bytes in which a JPEG's end is looked for: some programs write something behind it
_PIECE = 2**20


def find_damaged(paths: Iterable[str | os.PathLike[str]], max_pixels: int) -> list[UserError]:
    """What is wrong with files that cannot be read whole, in the order of the files.

    Headers are read by the readers. The rest is read but not decoded: a PNG's checksums, and whether the file is cut
    off. Where that says nothing, or a JPEG does not end as it should, the file is decoded.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        return [error for error in threads.map(lambda path: _damage(Path(path), max_pixels), paths) if error]


def _damage(path: Path, max_pixels: int) -> UserError | None:
    try:
        with open_picture(path, max_pixels):
            pass
        with open(path, 'rb') as stream:
            head = stream.read(12)
            if head[:4] == b'\x89PNG':
                whole = _is_whole_png(stream)
            elif head[:2] == b'\xff\xd8':
                stream.seek(-min(_TAIL, os.path.getsize(path)), os.SEEK_END)
                whole = b'\xff\xd9' in stream.read()
            elif head[:4] == b'RIFF':
                whole = int.from_bytes(head[4:8], 'little') + 8 <= os.path.getsize(path)
            else:
                whole = False
        if not whole:
            read_picture(path, max_pixels)
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f'{path}: {error.strerror or error}')
    return None


def _is_whole_png(stream: IO[bytes]) -> bool:
    """Whether all chunks up to the last one are there, and all that the picture needs have their checksums."""
    for name, length in png_chunks(stream):
        if name[:1].isupper():
            start, check, left = stream.tell(), zlib.crc32(name), length
            while left and (piece := stream.read(min(left, _PIECE))):
                check = zlib.crc32(piece, check)
                left -= len(piece)
            if left or stream.read(4) != check.to_bytes(4, 'big'):
                return False
            stream.seek(start)
        if name == b'IEND':
            return True
    return False


def refuse_damaged(paths: Iterable[str | os.PathLike[str]], max_pixels: int) -> None:
    """Raises UserError, in one line, where files of a folder of pictures are damaged: what is wrong with the first,
    and the names of the others."""
    damaged = find_damaged(paths, max_pixels)
    if not damaged:
        return
    others = [str(error).partition(': ')[0] for error in damaged[1:]]
    more = f'; {len(others)} more cannot be read: {", ".join(others[:5])}' if others else ''
    raise UserError(f'{damaged[0]}{more}{", …" if len(others) > 5 else ""}')
