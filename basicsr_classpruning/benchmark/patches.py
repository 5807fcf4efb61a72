"""A benchmark's images, restored patch by patch as `Restorer` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from basicsr_classpruning.inference.patch_plan import PatchPlan
from basicsr_classpruning.inference.patched import PART
from basicsr_classpruning.inference.patched_restoration import PatchedRestoration
from basicsr_classpruning.inference.restorer import Restorer


@dataclass(frozen=True)
class PatchedRun:
    """One image restored with given candidates."""

    restored: np.ndarray
    """``(H, W, C)`` uint8."""
    plan: PatchPlan
    spent: float
    """MACs of all that was computed, as a fraction of the dense network's without halos."""
    seconds: float
    """Of classifying and restoring."""


class PatchedModel:
    """A network that restores patches.

    Args:
        restorer: told the size of the patches, and no budget.
    """

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer

    def start(self, image: np.ndarray, classes: np.ndarray | None = None) -> PatchedRestoration:
        """Routes an image ``(H, W, C)``, uint8 or floats, with the network's own price or budget, or as given."""
        restoration = self._restorer.start(image, classes)
        assert isinstance(restoration, PatchedRestoration)
        return restoration

    def restore(self, image: np.ndarray, classes: np.ndarray) -> PatchedRun:
        """Restores an image with the candidates given, ``(T,)``."""
        restoration = self.start(image, classes)
        restored = np.concatenate(list(restoration.bands()))
        if restored.dtype != np.uint8:
            restored = np.rint(restored.clip(0, 1) * 255).astype(np.uint8)
        stats = restoration.stats()
        return PatchedRun(restored, restoration.plan, stats.average_macs / stats.macs_dense, stats.seconds)


def errors_of_patches(plan: PatchPlan, restored: Sequence[np.ndarray], truth: np.ndarray, scale: int) -> np.ndarray:
    """Each patch's part in the squared error of the whole image, ``(T, N)``.

    Args:
        plan: the image's patches.
        restored: the image as N candidates restored it, each ``(H, W, C)`` uint8.
        truth: of the same size.
        scale: output side over input side.
    """
    side = PART * scale
    height, width = truth.shape[:2]
    padding = [(0, -height % side), (0, -width % side)]
    maps = []
    for image in restored:
        error = np.square((image.astype(np.float32) - truth) / 255).sum(axis=2)
        padded = np.pad(error, padding)
        maps.append(padded.reshape(padded.shape[0] // side, side, -1, side).sum((1, 3), dtype=np.float64))
    return plan.sums(np.stack(maps))
