"""Schema of the degradation that BasicSR's RealESRNetModel applies to a batch."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, Len
from pydantic import model_validator

from basicsr_classpruning.config.fields import Count, NotNegative, Positive, Section, refuse

Chance = Annotated[float, Ge(0), Le(1)]
Chances = Annotated[list[NotNegative], Len(3, 3)]
Bounds = Annotated[list[NotNegative], Len(2, 2)]
Sizes = Annotated[list[Positive], Len(2, 2)]


class SecondOrderDegradation(Section):
    """Clean pictures are degraded twice in the model: blur, resizing, noise, JPEG, and all again (Wang et al.,
    Real-ESRGAN, ICCV workshops 2021). The keys and values are those of BasicSR's own files."""

    gt_size: Count
    """Side of the clean crops in pixels, a multiple of `scale`."""
    gt_usm: bool
    """Sharpen the clean pictures."""
    queue_size: Count = 180
    """Pairs from which batches are drawn, so that one batch holds several strengths; a multiple of the batch size.
    A training state holds them, so that a resumed run goes on bit for bit."""
    high_order_degradation: bool = True
    """Whether batches are degraded; false for a data set that brings pairs."""
    resize_prob: Chances
    """First round: chances of enlarging, reducing and keeping the size."""
    resize_range: Sizes
    """First round: least and greatest factor."""
    gaussian_noise_prob: Chance
    """First round: chance of Gaussian noise; otherwise it is Poisson noise."""
    noise_range: Bounds
    """First round: least and greatest standard deviation, for pixel values 0 to 255."""
    poisson_scale_range: Bounds
    """First round: least and greatest strength of Poisson noise."""
    gray_noise_prob: Chance
    """First round: chance of the same noise in all channels."""
    jpeg_range: Bounds
    """First round: least and greatest JPEG quality."""
    second_blur_prob: Chance
    """Second round: chance of blur."""
    resize_prob2: Chances
    """Second round: as `resize_prob`."""
    resize_range2: Sizes
    """Second round: as `resize_range`."""
    gaussian_noise_prob2: Chance
    """Second round: as `gaussian_noise_prob`."""
    noise_range2: Bounds
    """Second round: as `noise_range`."""
    poisson_scale_range2: Bounds
    """Second round: as `poisson_scale_range`."""
    gray_noise_prob2: Chance
    """Second round: as `gray_noise_prob`."""
    jpeg_range2: Bounds
    """Second round: as `jpeg_range`."""

    @model_validator(mode='after')
    def _ordered(self) -> SecondOrderDegradation:
        for key in ('resize_range', 'noise_range', 'poisson_scale_range', 'jpeg_range'):
            for name in (key, f'{key}2'):
                low, high = getattr(self, name)
                if low > high:
                    raise refuse(name, f'{[low, high]} is not allowed; [least, greatest]')
        return self
