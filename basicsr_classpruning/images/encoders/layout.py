"""What the encoders are told of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from basicsr_classpruning.images.picture import Encoding

STRIP = 64  # rows: a multiple of JPEG's 8-pixel blocks
QUALITY = 95  # of JPEG and lossy WebP; a file does not tell the quality it was made with


@dataclass(frozen=True)
class Layout:
    """What an encoder must know before the first row."""

    height: int
    width: int
    channels: int
    dtype: np.dtype
    encoding: Encoding
