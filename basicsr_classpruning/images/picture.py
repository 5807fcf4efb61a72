"""What a picture is in memory, and how it was stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Resolution(NamedTuple):
    """Pixels a unit of length."""

    x: float
    y: float
    unit: str
    """``inch``, ``cm``, ``metre``, or ``none``: then only the ratio of the two means anything."""

    def per(self, unit: str) -> Resolution:
        """The same in another unit of length; a mere ratio stays one."""
        if 'none' in (self.unit, unit) or self.unit == unit:
            return self
        centimetres = {'inch': 2.54, 'cm': 1.0, 'metre': 100.0}
        factor = centimetres[unit] / centimetres[self.unit]
        return Resolution(self.x * factor, self.y * factor, unit)


@dataclass(frozen=True)
class Metadata:
    """What a file says of its picture besides the pixels, as far as it is carried over to the result."""

    resolution: Resolution | None = None
    exif: bytes | None = None
    """A TIFF structure, as Exif has it, without the ``Exif\\0\\0`` in front; as stored: see `metadata.upright_exif`."""
    xmp: bytes | None = None
    png: tuple[tuple[bytes, bytes], ...] = ()
    """Name and content of the chunks of a PNG that say how its values look: gAMA, cHRM, sRGB, cICP, mDCV, cLLI."""


@dataclass(frozen=True)
class Encoding:
    """How a picture is stored in its file, as far as it is kept when the restored picture is written."""

    format: str
    """``PNG``, ``JPEG``, ``TIFF``, ``WEBP``, ``BMP``, or one that is only read (see `folder.READ_ONLY`): the content's
    format, whatever the file's suffix says."""
    lossless: bool = True
    """False for JPEG and for lossy WebP."""
    icc: bytes | None = None
    """The colour profile, without which the colours of a wide-gamut picture change; None if there is none."""
    metadata: Metadata = field(default_factory=Metadata)


@dataclass(frozen=True)
class Animation:
    """How the frames of a file follow each other."""

    durations: tuple[float, ...]
    """Milliseconds that each frame is shown, in order."""
    plays: int
    """How often; 0 is for ever."""
    default_image: bool = False
    """Whether the first picture is none of the frames: what a program shows that knows no animations (PNG)."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright (an EXIF orientation is applied)."""

    pixels: np.ndarray
    """``(H, W, C)``, ``uint8``, ``uint16`` or ``float32`` (TIFF), C = 1 (grey) or 3 (RGB)."""
    alpha: np.ndarray | None
    """``(H, W)`` in the type of ``pixels``, or None."""
    encoding: Encoding

    @property
    def bits(self) -> int:
        """Bits per sample: 8, 16 or 32."""
        return self.pixels.dtype.itemsize * 8
