"""Which files of a folder are pictures."""

from __future__ import annotations

SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.webp', '.bmp')


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture; hidden files are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith('.')
