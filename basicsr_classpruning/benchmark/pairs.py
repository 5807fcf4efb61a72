"""Pairs of a degraded and a true image, from two folders or degraded on the fly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from basicsr_classpruning.benchmark.metrics import WINDOW
from basicsr_classpruning.data.degradations import Degradation, picture_rng
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.images.folder import SUFFIXES, list_folder
from basicsr_classpruning.images.reading import read_picture, read_size


@dataclass(frozen=True)
class Pair:
    """One image of the benchmark."""

    name: str
    degraded: np.ndarray
    """``(h, w, C)``, ``uint8`` or float32 around [0, 1]."""
    truth: np.ndarray
    """``(h * scale, w * scale, C)`` ``uint8``."""


class Pairs:
    """The images of a benchmark. Each access gives the same pixels again; nothing is kept in memory.

    Args:
        truth: folder of the true images.
        degraded: folder of degraded images of the same names (suffixes may differ); None with ``degradation``.
        degradation: how true images are degraded; its random strengths depend on the images' names only.

    Raises:
        UsageError: a folder is not there or empty, or images have no partner.
        UserError: a file is no image.
    """

    def __init__(self, truth: str, degraded: str | None, degradation: Degradation | None) -> None:
        if (degraded is None) == (degradation is None):
            raise UsageError('either a folder of degraded images or a degradation is needed', key='degrade')
        self._degradation = degradation
        self._truth = _pictures(truth)
        self._degraded: list[Path] | None = None
        if degraded is not None:
            partners = {path.stem: path for path in _pictures(degraded)}
            missing = [path.name for path in self._truth if path.stem not in partners]
            if missing:
                raise UsageError(f'{degraded}: has no picture for {missing[0]} ({len(missing)} missing)')
            self._degraded = [partners[path.stem] for path in self._truth]
        for path in (*self._truth, *(self._degraded or ())):
            read_size(path)

    def __len__(self) -> int:
        return len(self._truth)

    def pair(self, index: int, channels: int, scale: int) -> Pair:
        """A pair for a network of 1 (grey) or 3 (RGB) channels.

        Raises:
            UsageError: the network's scale is not the images'.
            UserError: an image cannot be read, or is too small to be compared.
        """
        path = self._truth[index]
        truth = _load(path, channels)
        truth = truth[: len(truth) // scale * scale, : truth.shape[1] // scale * scale]
        if min(truth.shape[:2]) < WINDOW + 2 * scale:
            raise UserError(f'{path}: is too small; SSIM needs {WINDOW + 2 * scale} pixels a side')
        if self._degradation is not None:
            if self._degradation.scale != scale:
                text = f'{self._degradation}: enlarges by {self._degradation.scale}, the network by {scale}'
                raise UsageError(text, key='degrade')
            degraded = self._degradation.degrade(truth, picture_rng(path.stem, index))
        else:
            assert self._degraded is not None
            degraded = _load(self._degraded[index], channels)
            if degraded.shape[0] * scale != truth.shape[0] or degraded.shape[1] * scale != truth.shape[1]:
                raise UsageError(
                    f'{self._degraded[index]}: {degraded.shape[1]} x {degraded.shape[0]} enlarged by {scale} is not '
                    f'{truth.shape[1]} x {truth.shape[0]}, the size of {path.name}'
                )
        return Pair(path.stem, degraded, truth)


def _pictures(folder: str) -> list[Path]:
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f'{folder}: no such folder')
    paths = list_folder(root).pictures
    if not paths:
        raise UsageError(f'{folder}: no pictures in it (looked for {", ".join(SUFFIXES)})')
    return paths


def _load(path: Path, channels: int) -> np.ndarray:
    """8-bit pixels ``(H, W, channels)``; colour becomes grey as in OpenCV, alpha is left out."""
    image = read_picture(path)
    if image.bits != 8:
        raise UserError(f'{path}: {image.bits} bit; the benchmark compares 8-bit pictures')
    pixels = np.ascontiguousarray(image.pixels)
    if pixels.shape[2] == channels:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None] if channels == 1 else np.repeat(pixels, 3, axis=2)
