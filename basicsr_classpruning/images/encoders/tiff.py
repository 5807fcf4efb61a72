"""TIFF: deflated differences, a strip of the file for a strip of rows."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
import tifffile

from basicsr_classpruning.images.encoders.layout import STRIP, Layout


def write_tiff(stream: IO[bytes], layout: Layout, strips: Iterator[np.ndarray]) -> None:
    grey = layout.channels <= 2
    tifffile.imwrite(
        stream,
        map(_tiff_strip, strips),
        shape=(layout.height, layout.width) + (layout.channels,) * (layout.channels > 1),
        dtype=layout.dtype,
        byteorder='<',
        photometric='minisblack' if grey else 'rgb',
        planarconfig='contig' if layout.channels > 1 else None,
        extrasamples=['unassalpha'] if layout.channels in (2, 4) else None,
        rowsperstrip=STRIP,
        compression='zlib',
        predictor=True,
        iccprofile=layout.encoding.icc,
        bigtiff=layout.height * layout.width * layout.channels * layout.dtype.itemsize >= 2**32 - 2**24,
        metadata=None,
        software=False,
    )


def _tiff_strip(strip: np.ndarray) -> bytes:
    """Differences between neighbouring pixels, deflated (TIFF's predictor 2)."""
    difference = strip.copy()
    difference[:, 1:] -= strip[:, :-1]
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)
    return packer.compress(difference.astype(difference.dtype.newbyteorder('<'), copy=False).tobytes()) + packer.flush()
