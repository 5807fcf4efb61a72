"""MATLAB's bicubic down-scaling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from basicsr_classpruning.data.bicubic import bicubic_shrink
from basicsr_classpruning.data.degradations.base import Degradation, as_float, as_uint8, register_degradation
from basicsr_classpruning.errors import UsageError


@register_degradation
@dataclass(frozen=True)
class BicubicDownscaling(Degradation):
    """MATLAB's bicubic down-scaling by a whole factor, rounded to 8 bits as in the public data sets."""

    type: ClassVar[str] = 'bicubic'
    summary: ClassVar[str] = 'MATLAB-like reduction by `scale`'
    form: ClassVar[str] = 'bicubic4 (scale)'
    text: ClassVar[str] = r'bicubic(\d+)'
    rescales: ClassVar[bool] = True
    place: ClassVar[int] = 3

    factor: int

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int) or self.factor < 1:
            raise UsageError(f'bicubic: scale {self.factor} is not a whole number from 1 on')

    def __str__(self) -> str:
        return f'bicubic{self.factor}'

    @property
    def scale(self) -> int:
        return self.factor

    @property
    def grid(self) -> int:
        return self.factor

    @property
    def margin(self) -> int:
        return 3 * self.factor  # the kernel reaches less than three degraded pixels far

    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return as_float(as_uint8(bicubic_shrink(as_float(clean), self.scale)))

    @classmethod
    def from_text(cls, *groups: str) -> Degradation:
        return cls(int(groups[0]))

    @classmethod
    def from_values(cls, values: list[Any], scale: int) -> Degradation:
        return cls(scale)

    @classmethod
    def detect(cls, gain: Callable[[Degradation], float], scale: int) -> Degradation | None:
        return cls(scale)
