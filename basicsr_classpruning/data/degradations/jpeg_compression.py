"""JPEG compression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from basicsr_classpruning.data.degradations.base import Degradation, Range, as_float, as_uint8, register_degradation
from basicsr_classpruning.errors import UsageError

# Gain in PSNR that a network made for the task reaches about half of, in dB, by quality.
_GAINS = {10: 0.6, 40: 0.5}


@register_degradation
@dataclass(frozen=True)
class JpegCompression(Degradation):
    """JPEG with a quality between ``low`` and ``high`` (1 worst, 100 best) and, for RGB, halved chroma (4:2:0)."""

    type: ClassVar[str] = 'jpeg'
    summary: ClassVar[str] = 'JPEG compression'
    form: ClassVar[str] = 'jpeg10-90 (quality 1 to 100)'
    text: ClassVar[str] = r'jpeg(\d+)(?:-(\d+))?'
    options: ClassVar = (
        Range('quality', 1, 100, 'least and greatest JPEG quality, 1 to 100, e.g. `[10, 90]`', whole=True),
    )
    place: ClassVar[int] = 2

    low: int
    high: int

    def __post_init__(self) -> None:
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if not (whole and 1 <= self.low <= self.high <= 100):
            raise UsageError(f'jpeg: quality {self.low} to {self.high} is not a range of whole numbers within 1 to 100')

    def __str__(self) -> str:
        return f'jpeg{self.low}-{self.high}'

    @property
    def grid(self) -> int:
        return 16  # blocks of 8 pixels at half the resolution of chroma

    @property
    def margin(self) -> int:
        return 16  # chroma is interpolated across blocks

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        quality = int(rng.integers(self.low, self.high, endpoint=True))
        bgr = np.ascontiguousarray(as_uint8(clean)[..., ::-1])  # one channel stays what it is
        _, content = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = np.asarray(cv2.imdecode(content, cv2.IMREAD_UNCHANGED)).reshape(clean.shape)
        return as_float(decoded[..., ::-1])

    @classmethod
    def detect(cls, gain: Callable[[Degradation], float], scale: int) -> Degradation | None:
        found = [quality for quality, wanted in _GAINS.items() if gain(cls(quality, quality)) > wanted]
        if len(found) == len(_GAINS):
            return cls(10, 90)
        return cls(min(found), max(found)) if found else None
