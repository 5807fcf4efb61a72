"""Degradations with a range of strengths: noise, JPEG compression, bicubic down-scaling.

A strength is drawn for each picture, evenly over the range. Written as text, as on the command line: ``noise0-50``,
``noise25-25``, ``jpeg10-90``, ``bicubic4``.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from basicsr_classpruning.data.bicubic import bicubic_shrink
from basicsr_classpruning.data.region import Region
from basicsr_classpruning.errors import UsageError

_TEXT = re.compile(r'(noise|jpeg|bicubic)(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?')
_FORMS = 'noise0-50 (sigma of 255), jpeg10-90 (quality 1 to 100) or bicubic4 (scale)'


def as_float(picture: np.ndarray) -> np.ndarray:
    """uint8 0–255 to float32 in [0, 1]; float32 is returned as it is."""
    return picture.astype(np.float32) / 255 if picture.dtype == np.uint8 else picture


def as_uint8(picture: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] to uint8, rounded and clipped; uint8 is returned as it is."""
    if picture.dtype == np.uint8:
        return picture
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def picture_rng(name: str, index: int) -> np.random.Generator:
    """The random generator of one validation picture: the same in every run and on every machine.

    Args:
        name: file name without folder and extension.
        index: place of the picture in its sorted data set, from 0.
    """
    digest = hashlib.sha256(f'{index}/{name}'.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], 'little'))


class Degradation(ABC):
    """What happens to a clean picture. Immutable; all randomness comes from the generator given."""

    @property
    def scale(self) -> int:
        """Size of the clean picture divided by that of the degraded one."""
        return 1

    @property
    def grid(self) -> int:
        """Pixels of the clean picture after which the degradation repeats; a part cut from it begins on a multiple."""
        return 1

    @property
    def margin(self) -> int:
        """Pixels around a part of the clean picture that still influence the degraded part."""
        return 0

    @abstractmethod
    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws a strength and degrades.

        Args:
            clean: (H, W, C) uint8, or float32 in [0, 1]; RGB or one channel.
            rng: where strength and noise come from.

        Returns:
            (H / scale, W / scale, C) float32. In 8-bit steps of [0, 1], except for noise, which is neither rounded
            nor clipped.
        """

    def context(self, part: Region, size: tuple[int, int]) -> Region:
        """What must be degraded of a picture of ``size`` (H, W), for ``part`` to become as if all of it were."""
        top = max(0, part.top - self.margin) // self.grid * self.grid
        left = max(0, part.left - self.margin) // self.grid * self.grid
        bottom = min(size[0], -(-(part.bottom + self.margin) // self.grid) * self.grid)
        right = min(size[1], -(-(part.right + self.margin) // self.grid) * self.grid)
        return Region(top, left, bottom - top, right - left)

    @staticmethod
    def parse(text: str) -> Degradation:
        """Reads ``noise0-50``, ``jpeg10-90``, ``bicubic4``. Raises UsageError for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(f'degradation {text!r} is not {_FORMS}')
        kind, low, high = match[1], float(match[2]), float(match[3] or match[2])
        if kind == 'noise':
            return GaussianNoise(low, high)
        if not (low.is_integer() and high.is_integer()) or (kind == 'bicubic' and match[3]):
            raise UsageError(f'degradation {text!r} is not {_FORMS}')
        return JpegCompression(int(low), int(high)) if kind == 'jpeg' else BicubicDownscaling(int(low))

    @staticmethod
    def from_options(options: Mapping[str, Any], scale: int) -> Degradation:
        """Reads ``{type: noise, sigma: [0, 50]}``, ``{type: jpeg, quality: [10, 90]}`` or ``{type: bicubic}``.

        Args:
            options: the ``degradation`` block of a data set's options.
            scale: of the whole options file; a bicubic degradation takes it, the others need 1.

        Raises:
            UsageError: A wrong or missing key, a wrong value, or a scale that does not fit.
        """
        kind = options.get('type')
        if kind not in _OPTIONS:
            raise UsageError(f'degradation.type: {kind!r} is not one of {", ".join(_OPTIONS)}')
        key = _OPTIONS[kind]
        wrong = [name for name, value in options.items() if name not in ('type', key) and value is not None]
        if wrong:
            raise UsageError(f'degradation.{wrong[0]}: unknown; {kind} takes {key or "nothing but its type"}')
        if key is None:
            return BicubicDownscaling(scale)
        if scale != 1:
            raise UsageError(f'degradation.type: {kind} needs scale 1, not {scale}')
        strengths = options.get(key)
        if not (isinstance(strengths, (list, tuple)) and len(strengths) == 2 and all(map(_is_number, strengths))):
            raise UsageError(f'degradation.{key}: {strengths!r} is not a range of two numbers [low, high]')
        return GaussianNoise(*strengths) if kind == 'noise' else JpegCompression(*strengths)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_OPTIONS = {'noise': 'sigma', 'jpeg': 'quality', 'bicubic': None}  # degradation.type and the key of its range


@dataclass(frozen=True)
class GaussianNoise(Degradation):
    """White Gaussian noise with a standard deviation between ``low`` and ``high``, in steps of 1/255.

    Neither clipped nor rounded, as in the denoising literature.
    """

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


@dataclass(frozen=True)
class JpegCompression(Degradation):
    """JPEG with a quality between ``low`` and ``high`` (1 worst, 100 best) and, for RGB, halved chroma (4:2:0)."""

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


@dataclass(frozen=True)
class BicubicDownscaling(Degradation):
    """MATLAB's bicubic down-scaling by a whole factor, rounded to 8 bits as in the public data sets."""

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
