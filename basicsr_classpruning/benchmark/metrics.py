"""PSNR and SSIM, as BasicSR computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim

WINDOW = 11  # side of SSIM's window


@dataclass(frozen=True)
class Quality:
    """How near a restored image is to the true one."""

    psnr: float
    """dB, over all channels; infinite for equal images."""
    psnr_y: float
    """dB, of the Y channel of YCbCr (BT.601, 16-235); of a grey image the same as ``psnr``."""
    ssim: float
    """Mean over the channels."""


def compare(restored: np.ndarray, truth: np.ndarray, crop: int) -> Quality:
    """Compares images ``(H, W, C)`` uint8, grey or RGB, leaving out ``crop`` pixels at each border."""
    ours, theirs = restored[..., ::-1], truth[..., ::-1]  # BasicSR's order is BGR
    return Quality(
        psnr=float(calculate_psnr(ours, theirs, crop)),
        psnr_y=float(calculate_psnr(ours, theirs, crop, test_y_channel=True)),
        ssim=float(calculate_ssim(ours, theirs, crop)),
    )


def mean_of_finite(values: Sequence[float]) -> float | None:
    """Mean of the finite values; None where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def shown(mean: float | None, equal: int, digits: int = 4) -> str:
    """A mean over finite values, with the number of equal images beside."""
    parts = ([] if mean is None else [f'{mean:.{digits}f}']) + ([f'{equal} equal'] if equal else [])
    return ', '.join(parts) or 'not measured'
