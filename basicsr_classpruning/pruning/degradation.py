"""Finds out what a dense network undoes, so that calibration shows it inputs of its kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from basicsr_classpruning.data.degradations import Degradation, registered_degradations
from basicsr_classpruning.data.pictures import Pictures
from basicsr_classpruning.pruning.crops import cut_crops

_PROBES = 8
_SIDE = 96


def detect_degradation(net: Callable[[Tensor], Tensor], pictures: Pictures, scale: int) -> Degradation | None:
    """What the network was trained to undo: down-scaling by its scale, or the strengths of noise or JPEG compression
    at which it improves clean images that were degraded; None where it improves none of them.

    Args:
        net: the dense network, takes ``(B, C, H, W)`` in [0, 1].
        pictures: clean ones, if they are to be degraded at all.
        scale: of the network.
    """
    for kind in registered_degradations().values():
        if kind.rescales == (scale > 1):
            found = kind.detect(lambda degradation: _gain(net, pictures, degradation), scale)
            if found is not None:
                return found
    return None


def _gain(net: Callable[[Tensor], Tensor], pictures: Pictures, degradation: Degradation) -> float:
    """By how many dB the network improves degraded crops."""
    crops = cut_crops(pictures, degradation, scale=1, count=_PROBES, side=_SIDE, seed=0)
    assert crops.gt is not None
    with torch.no_grad():
        after = (net(crops.lq).clamp(0, 1) - crops.gt).square().mean((1, 2, 3))
    before = (crops.lq - crops.gt).square().mean((1, 2, 3))
    return float(10 * torch.log10(before.clamp(min=1e-10) / after.clamp(min=1e-10)).mean())
