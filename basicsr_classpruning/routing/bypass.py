"""The bypass, ``0:M``: the sparsest rung of a ladder, which runs nothing of the base network."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.routing.ladder import Candidate, register_candidate
from basicsr_classpruning.routing.network import Subnetwork

_REACH = 2  # of the filter, in input pixels: what bicubic interpolation needs
_DAMPING = 1e-6  # of the least squares, as a share of the mean square of the inputs


@register_candidate
@dataclass(frozen=True)
class Bypass(Candidate):
    """A linear filter in the base network's place; it begins as bicubic enlargement, or, at scale 1, as the input."""

    m: int
    """Of the ladder's patterns, for its name only."""
    density = 0.0

    @property
    def name(self) -> str:  # type: ignore[override]
        return f'0:{self.m}'

    @classmethod
    def parse(cls, text: str) -> Bypass | None:
        match = re.fullmatch(r'0:(\d{1,3})', text) if isinstance(text, str) else None
        return cls(int(match[1])) if match else None

    def build(self, dense: Subnetwork) -> LinearFilter:
        """The filter. Raises UsageError where the base network's outputs have other channels than its inputs."""
        side = dense.sizes.padded(1)
        with torch.no_grad():
            output = dense.net(torch.zeros(1, dense.channels, side, side))
        if output.shape[1] != dense.channels:
            channels = f'{dense.channels} channels become {output.shape[1]}'
            raise UsageError(f'{self.name}: this network has no bypass: {channels}', key='network_g.candidates')
        return LinearFilter(dense.sizes.scale)


class LinearFilter(nn.Module):
    """Enlarges images by ``scale`` with one filter of 5 × 5 input pixels for each phase, the same for all channels.

    Images are mirrored at their borders. The filter is stored with the network; training leaves it alone.

    Args:
        scale: output side over input side; 1 gives the input until the filter is fitted.
    """

    weight: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        # MATLAB's and BasicSR's bicubic weights are products of those along each side.
        along = torch.stack([_bicubic_weights((phase + 0.5) / scale - 0.5) for phase in range(scale)])
        weight = along[:, None, :, None] * along[None, :, None, :]
        self.register_buffer('weight', weight.reshape(scale**2, 1, 2 * _REACH + 1, 2 * _REACH + 1).float())

    def forward(self, x: Tensor) -> Tensor:
        """Takes images ``(B, C, H, W)``, returns ``(B, C, H · scale, W · scale)``."""
        planes = _mirror(x.flatten(0, 1)[:, None])
        enlarged = functional.pixel_shuffle(functional.conv2d(planes, self.weight.to(x.dtype)), self.scale)
        return enlarged.unflatten(0, x.shape[:2])[:, :, 0]

    def as_layers(self) -> nn.Module:
        """The same with a convolution and a pixel shuffle that are modules, for engines that replace such."""
        return _FilterLayers(self).eval()

    @torch.no_grad()
    def fit(self, inputs: Tensor, outputs: Tensor) -> None:
        """Takes the filter of least squared error on pairs of images, where it is better than the present one.

        Better is a higher mean PSNR, so that no image counts more than another.

        Args:
            inputs: ``(N, C, H, W)`` in [0, 1].
            outputs: what they should become, ``(N, C, H · scale, W · scale)``.
        """
        taps = functional.unfold(_mirror(inputs.flatten(0, 1)[:, None]), 2 * _REACH + 1).double()
        wanted = functional.pixel_unshuffle(outputs.flatten(0, 1)[:, None], self.scale).flatten(2).double()
        moments = (taps @ taps.transpose(1, 2)).sum(0)
        moments.diagonal().add_(_DAMPING * moments.diagonal().mean())
        solved = torch.linalg.solve(moments, (taps @ wanted.transpose(1, 2)).sum(0)).T
        before, kept = _mean_psnr(self(inputs), outputs), self.weight.clone()
        self.weight.copy_(solved.reshape(self.weight.shape))
        if not _mean_psnr(self(inputs), outputs) > before:
            self.weight.copy_(kept)


class _FilterLayers(nn.Module):
    def __init__(self, filtered: LinearFilter) -> None:
        super().__init__()
        self.filter = nn.Conv2d(1, filtered.scale**2, 2 * _REACH + 1, bias=False)
        self.filter.weight = nn.Parameter(filtered.weight.clone(), requires_grad=False)
        self.shuffle = nn.PixelShuffle(filtered.scale)

    def forward(self, x: Tensor) -> Tensor:
        """As of ``LinearFilter``."""
        planes = _mirror(x.flatten(0, 1)[:, None])
        return self.shuffle(self.filter(planes)).unflatten(0, x.shape[:2])[:, :, 0]


def _bicubic_weights(position: float) -> Tensor:
    """Weights ``(5,)`` of the pixels around 0 at a position from −1/2 to 1/2: the cubic convolution kernel with
    a = −1/2 (Keys, IEEE Transactions on Acoustics, Speech, and Signal Processing, 1981)."""
    distance = np.abs(position - np.arange(-_REACH, _REACH + 1))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance <= 2, far, 0))
    return torch.from_numpy(weights / weights.sum())


@fx.wrap  # a step of its own where a network is traced: what it does depends on sizes
def _mirror(planes: Tensor) -> Tensor:
    """Planes ``(N, 1, H, W)`` continued beyond their borders, the border pixels repeated once."""
    if min(planes.shape[-2:]) < _REACH:
        return functional.pad(planes, (_REACH,) * 4, mode='replicate')
    for dim in (2, 3):
        first, last = planes.narrow(dim, 0, _REACH), planes.narrow(dim, planes.shape[dim] - _REACH, _REACH)
        planes = torch.cat([first.flip(dim), planes, last.flip(dim)], dim=dim)
    return planes


def _mean_psnr(images: Tensor, wanted: Tensor) -> float:
    errors = (images.clamp(0, 1) - wanted).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float(-10 * errors.log10().mean())
