"""Calibration data: crops of a folder of images, degraded as the network expects its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.data.pictures import Pictures
from basicsr_classpruning.data.region import Region
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.progress import Progress, untold

_LOOKED_AT = 16  # images from which the usual size is taken
_ATTEMPTS = 4  # positions looked at for each crop; the one with the most detail is likely to be taken


@dataclass(frozen=True)
class Crops:
    """Inputs of a network, and what they should become."""

    lq: Tensor
    """Inputs ``(N, C, h, w)``."""
    gt: Tensor | None
    """Clean images ``(N, C, h · scale, w · scale)``; None where the folder holds degraded ones."""

    def __len__(self) -> int:
        return len(self.lq)

    def to(self, device: torch.device) -> Crops:
        """The same on another device."""
        return Crops(self.lq.to(device), None if self.gt is None else self.gt.to(device))

    def batches(self, size: int) -> Iterator[Crops]:
        """Splits into batches."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Crops(self.lq[part], None if self.gt is None else self.gt[part])


def cut_crops(
    pictures: Pictures,
    degradation: Degradation | None,
    *,
    scale: int,
    count: int,
    side: int,
    seed: int,
    step: int = 1,
    everywhere: bool = False,
    progress: Progress = untold,
) -> Crops:
    """Cuts random crops, as many from each image.

    Args:
        pictures: clean ones with a degradation, or the network's inputs without.
        degradation: what makes the network's inputs.
        scale: of the network.
        count: number of crops.
        side: of the inputs, in pixels; less where that is more than half of the images have.
        seed: of positions and noise.
        step: sides are multiples of this.
        everywhere: whether all parts of an image are as likely, and crops smaller than asked for are more of them, so
            that they have as many pixels; otherwise, of a few places for each, one with much detail is likely taken.
        progress: is told how many crops are cut.

    Raises UsageError where images are too small.
    """
    rng = np.random.default_rng(seed)
    factor = degradation.scale if degradation else 1
    if degradation and degradation.scale != scale:
        raise UsageError(
            f'degradation {degradation} makes inputs of scale {degradation.scale}; the network has {scale}'
        )
    asked, side = side, min(side, _usual_side(pictures, rng) // factor) // step * step
    if side < 1:
        raise UsageError(
            f'{pictures.root}: pictures of {step * factor} pixels on both sides are wanted, and these are smaller'
        )
    if everywhere:
        count = round(count * (asked / side) ** 2)
    lq: list[np.ndarray] = []
    gt: list[np.ndarray] = []
    order: list[int] = []
    of_each = -(-count // len(pictures))  # at a time: reading a large photograph takes longer than all else
    while len(lq) < count:
        if not order:
            order = rng.permutation(len(pictures)).tolist()
        image = pictures.read(order.pop())
        for _ in range(of_each):
            part = _place(image, side * factor, factor, 1 if everywhere else _ATTEMPTS, rng)
            if part is None:
                break
            if degradation is None:
                lq.append(part.of(image))
            else:
                context = degradation.context(part, _whole(image, factor))
                inner = part.inside(context)
                clean = context.of(image)
                lq.append(inner.reduced(factor).of(degradation.degrade(clean, rng)))
                gt.append(inner.of(clean))
        progress('reading pictures', min(len(lq), count), count)
    mixed = rng.permutation(len(lq))[:count]  # the first ones are from all images, too
    lq, gt = ([crops[i] for i in mixed] if crops else [] for crops in (lq, gt))
    return Crops(_stack(lq), _stack(gt) if gt else None)


def _usual_side(pictures: Pictures, rng: np.random.Generator) -> int:
    """A side that half of the images have, as far as a few of them tell; always that of one of them."""
    looked_at = rng.permutation(len(pictures))[:_LOOKED_AT]
    sides = sorted(min(pictures.read(int(index)).shape[:2]) for index in looked_at)
    return sides[len(sides) // 2]


def _whole(image: np.ndarray, factor: int) -> tuple[int, int]:
    height, width = (side // factor * factor for side in image.shape[:2])
    return height, width


def _place(image: np.ndarray, side: int, factor: int, attempts: int, rng: np.random.Generator) -> Region | None:
    """A random place, of a few the one with the most variance: flat sky says little about weights."""
    height, width = _whole(image, factor)
    if min(height, width) < side:
        return None
    places: list[tuple[float, int, Region]] = []
    for _ in range(attempts):
        top, left = (int(rng.integers(0, (length - side) // factor + 1)) * factor for length in (height, width))
        part = Region(top, left, side, side)
        places.append((float(part.of(image).std()), -len(places), part))
    # Not always the best of all: the classifier has to know easy parts as well.
    kept = max(1, int(rng.integers(1, attempts + 1)))
    return max(places[:kept], key=lambda item: item[:2])[2]


def _stack(pictures: list[np.ndarray]) -> Tensor:
    arrays = [np.ascontiguousarray(image.transpose(2, 0, 1)) for image in pictures]
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked.float() / 255 if stacked.dtype == torch.uint8 else stacked
