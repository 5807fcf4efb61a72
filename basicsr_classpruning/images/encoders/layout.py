"""What the encoders are told of a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from basicsr_classpruning.images.metadata import upright_exif, upright_xmp
from basicsr_classpruning.images.picture import Encoding, Resolution

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

    @property
    def resolution(self) -> Resolution | None:
        """As the input had it."""
        return self.encoding.metadata.resolution

    @property
    def exif(self) -> bytes | None:
        """The EXIF block of an upright picture of this size, without ``Exif\\0\\0``."""
        exif = self.encoding.metadata.exif
        return upright_exif(exif, self.width, self.height) if exif else None

    @property
    def xmp(self) -> bytes | None:
        """The XMP packet of an upright picture."""
        xmp = self.encoding.metadata.xmp
        return upright_xmp(xmp) if xmp else None


@dataclass(frozen=True)
class Frame:
    """One picture of a file that holds several."""

    layout: Layout
    strips: Iterator[np.ndarray]
    """``(h, W, C)``, of `STRIP` rows each; the last may have fewer."""
