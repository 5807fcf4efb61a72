"""Several candidates in one forward pass of a training, each in its own places of the images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

NOTHING = -1
"""In a map of candidates: none of the base network runs there."""


class Mixture:
    """Which candidate computes which pixels, in every layer.

    Args:
        places: ``(B, H, W)``, numbers of sparse candidates, or ``NOTHING``; features may be whole multiples of that
            size.
    """

    def __init__(self, places: Tensor) -> None:
        self._places = places
        self._used = [place for place in places.unique().tolist() if place != NOTHING]
        self._masks: dict[tuple[int, torch.Size], Tensor] = {}

    def run(self, layer: Callable[[Tensor, int | None], Tensor], x: Tensor) -> Tensor:
        """Features ``(B, O, h, w)``: each pixel's own candidate computed it; 0 where nothing runs.

        Args:
            layer: computes features from others with the weights of a candidate.
            x: ``(B, C, h, w)``, read as 0 where nothing runs.
        """
        x = torch.where(self._mask(NOTHING, x), torch.zeros_like(x), x)
        mixed: Tensor | None = None
        for place in self._used:
            found = layer(x, place)
            mixed = torch.zeros_like(found) if mixed is None else mixed
            mixed = torch.where(self._mask(place, found), found, mixed)
        assert mixed is not None
        return mixed

    def _mask(self, place: int, like: Tensor) -> Tensor:
        """True ``(B, 1, h, w)`` where a candidate runs, in the size of features ``like``."""
        key = place, like.shape[2:]
        if key not in self._masks:
            mask = (self._places == place)[:, None]
            self._masks[key] = functional.interpolate(mask.float(), size=like.shape[2:], mode='nearest') > 0
        return self._masks[key]
