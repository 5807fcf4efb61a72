"""Pictures turned as their EXIF orientation says."""

from __future__ import annotations

import numpy as np


def upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation (1 to 8) to ``(H, W, C)`` pixels."""
    if orientation in (5, 6, 7, 8):
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples
