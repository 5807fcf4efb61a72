"""Which files of a folder are pictures, and which are not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (
    '.png', '.apng', '.jpg', '.jpeg', '.jpe', '.jfif', '.tif', '.tiff', '.webp', '.bmp',
    '.gif', '.avif', '.ppm', '.pgm', '.pbm', '.pnm', '.tga',
)  # fmt: skip
READ_ONLY = ('GIF', 'AVIF', 'PPM', 'TGA')
"""Formats that are read but not written: their results are PNG."""
READ_ONLY_SUFFIXES = ('.gif', '.avif', '.ppm', '.pgm', '.pbm', '.pnm', '.tga')
_NAMED = 3  # skipped files that a message names


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture; hidden files, such as macOS's ``._x.png``, are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith('.')


@dataclass(frozen=True)
class Listing:
    """The files of a folder."""

    pictures: list[Path]
    """Sorted by name; of sub-folders folder by folder."""
    skipped: list[Path]
    """Files that are no pictures by their names."""


def list_folder(folder: str | os.PathLike[str]) -> Listing:
    """The files directly inside a folder. Raises OSError where it cannot be read."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    return _sorted_out(files)


def list_below(folder: str | os.PathLike[str], without: Path) -> Listing:
    """The files of a folder and its sub-folders, but for those in the folder ``without`` (a resolved path)."""
    files: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if (Path(root) / name).resolve() != without)
        files += [Path(root) / name for name in sorted(names)]
    return _sorted_out(files)


def _sorted_out(files: Iterable[Path]) -> Listing:
    listing = Listing([], [])
    for path in files:
        (listing.pictures if is_picture_name(path.name) else listing.skipped).append(path)
    return listing


def describe_skipped(skipped: Iterable[str]) -> str:
    """``3 files that are not pictures skipped (Thumbs.db, …)``; empty if there are none."""
    names = list(skipped)
    if not names:
        return ''
    some = [name for name, _ in Counter(Path(name).name for name in names).most_common(_NAMED)]
    more = ', …' if len(names) > len(some) else ''
    files = 'file that is no picture' if len(names) == 1 else 'files that are no pictures'
    return f'{len(names)} {files} skipped ({", ".join(some)}{more})'
