"""What a picture is in memory, and how it was stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Encoding:
    """How a picture is stored in its file, as far as it is kept when the restored picture is written."""

    format: str
    """``PNG``, ``JPEG``, ``TIFF``, ``WEBP`` or ``BMP``: the content's format, whatever the file's suffix says."""
    lossless: bool = True
    """False for JPEG and for lossy WebP."""
    icc: bytes | None = None
    """The colour profile, without which the colours of a wide-gamut picture change; None if there is none."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright (an EXIF orientation is applied)."""

    pixels: np.ndarray
    """``(H, W, C)``, ``uint8`` or ``uint16``, C = 1 (grey) or 3 (RGB)."""
    alpha: np.ndarray | None
    """``(H, W)`` in the type of ``pixels``, or None."""
    encoding: Encoding

    @property
    def bits(self) -> int:
        """Bits per sample: 8 or 16."""
        return self.pixels.dtype.itemsize * 8
