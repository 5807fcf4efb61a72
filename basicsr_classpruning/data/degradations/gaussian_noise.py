"""White Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from basicsr_classpruning.data.degradations.base import NUMBER, Degradation, Range, as_float, register_degradation
from basicsr_classpruning.errors import UsageError

# Gain in PSNR that a network made for the task reaches about half of, in dB, by strength.
_GAINS = {15: 5.0, 25: 7.0, 50: 9.0}


@register_degradation
@dataclass(frozen=True)
class GaussianNoise(Degradation):
    """White Gaussian noise with a standard deviation between ``low`` and ``high``, in steps of 1/255.

    Neither clipped nor rounded, as in the denoising literature.
    """

    type: ClassVar[str] = 'noise'
    summary: ClassVar[str] = 'Gaussian noise'
    form: ClassVar[str] = 'noise0-50 (sigma of 255)'
    text: ClassVar[str] = rf'noise{NUMBER}(?:-{NUMBER})?'
    options: ClassVar = (
        Range('sigma', 0, 255, 'least and greatest standard deviation, for pixel values 0 to 255, e.g. `[0, 50]`'),
    )
    place: ClassVar[int] = 1

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 255:
            raise UsageError(f'noise: sigma {self.low:g} to {self.high:g} is not a range within 0 to 255')

    def __str__(self) -> str:
        return f'noise{self.low:g}-{self.high:g}'

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sigma = np.float32(rng.uniform(self.low, self.high) / 255)
        return as_float(clean) + sigma * rng.standard_normal(clean.shape, dtype=np.float32)

    @classmethod
    def detect(cls, gain: Callable[[Degradation], float], scale: int) -> Degradation | None:
        found = [sigma for sigma, wanted in _GAINS.items() if gain(cls(sigma, sigma)) > wanted]
        if len(found) == len(_GAINS):
            return cls(0, 50)  # a network that manages the ends of the range was trained on all of it
        return cls(min(found), max(found)) if found else None
