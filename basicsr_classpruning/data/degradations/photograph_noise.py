"""Noise of the strengths that photographs have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from basicsr_classpruning.data.degradations.base import NUMBER, Degradation, Number, as_float, register_degradation
from basicsr_classpruning.errors import UsageError


@register_degradation
@dataclass(frozen=True)
class PhotographNoise(Degradation):
    """White Gaussian noise, weak in most pictures and strong in few, as photographs are taken.

    The standard deviation is 1 + abs(n), where n is drawn from a normal distribution of standard deviation ``spread``;
    all in steps of 1/255. Neither clipped nor rounded.
    """

    type: ClassVar[str] = 'photo_noise'
    summary: ClassVar[str] = 'Gaussian noise of a strength as photographs have it, 1 + abs(N(0, spread))'
    form: ClassVar[str] = 'noise~10 (as in photographs: mostly weak)'
    text: ClassVar[str] = rf'noise~{NUMBER}'
    options: ClassVar = (
        Number('spread', 0, 255, 'spread of the standard deviations, for pixel values 0 to 255, e.g. `10`'),
    )
    place: ClassVar[int] = 4

    spread: float

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 255:
            raise UsageError(f'photo_noise: spread {self.spread:g} is not within 0 to 255')

    def __str__(self) -> str:
        return f'noise~{self.spread:g}'

    @classmethod
    def from_text(cls, *groups: str) -> Degradation:
        return cls(float(groups[0]))

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sigma = np.float32((1 + abs(rng.normal(0, self.spread))) / 255)
        return as_float(clean) + sigma * rng.standard_normal(clean.shape, dtype=np.float32)
