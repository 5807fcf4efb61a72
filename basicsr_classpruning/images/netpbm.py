"""PPM and PGM of more than 8 bits, of which Pillow keeps 8."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_GAP = rb'(?:\s|#[^\n]*\n)+'
_HEADER = re.compile(rb'P([56])' + _GAP + rb'(\d{1,9})' + _GAP + rb'(\d{1,9})' + _GAP + rb'(\d{1,5})\s')
_SLICE = 256  # rows converted at a time


@dataclass(frozen=True)
class Header:
    """Of a binary PPM or PGM."""

    channels: int
    width: int
    height: int
    most: int
    """Value of white."""
    start: int
    """Where the samples begin."""


def header_of_16_bit(head: bytes) -> Header | None:
    """The header at the beginning of a file; None if it is no binary PPM or PGM of two bytes a sample."""
    found = _HEADER.match(head)
    if found is None or not 255 < int(found[4]) <= 65535:
        return None
    return Header({b'5': 1, b'6': 3}[found[1]], int(found[2]), int(found[3]), int(found[4]), found.end())


def read(path: Path, header: Header) -> np.ndarray:
    """Returns ``(H, W, C)`` uint16, white as 65535. Raises ValueError where the file is cut off."""
    shape = (header.height, header.width, header.channels)
    with open(path, 'rb') as stream:
        stream.seek(header.start)
        samples = np.fromfile(stream, '>u2', header.height * header.width * header.channels)
    if samples.size < np.prod(shape) or not samples.size:
        raise ValueError('the file is cut off')
    samples = samples.astype(np.uint16).reshape(shape)
    if header.most != 65535:
        for top in range(0, len(samples), _SLICE):
            part = samples[top : top + _SLICE].astype(np.uint32)
            samples[top : top + _SLICE] = np.minimum((part * 65535 + header.most // 2) // header.most, 65535)
    return samples
