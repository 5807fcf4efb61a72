"""What sizes a restoration network takes and gives, found by running it on small images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_classpruning.devices import device_of
from basicsr_classpruning.errors import UserError

_MULTIPLES = (1, 2, 4, 7, 8, 12, 14, 16, 24, 32, 64)  # sides tried, among them the windows of common transformers
_SAFE_SIDE = 32  # above every supported network's minimum


@dataclass(frozen=True)
class SizeRequirements:
    """SizeRequirements of a network's inputs and outputs."""

    scale: int
    """Output side over input side, at least 1."""
    multiple: int
    """Inputs' sides must be multiples of this; 1 where any size goes."""
    minimum: int = 1
    """Least side of inputs, in pixels; a network that mirrors its input at the border needs something to mirror."""

    def padded(self, side: int) -> int:
        """The next side that the network takes."""
        return -(-max(side, self.minimum) // self.multiple) * self.multiple


@torch.no_grad()
def probe_sizes(net: nn.Module, channels: int) -> SizeRequirements:
    """Runs a network in eval mode on odd multiples of small numbers until one is accepted, then on small images.

    Raises UserError with the network's own complaint where none is.
    """
    complaint = ''
    for multiple in _MULTIPLES:
        times = -(-_SAFE_SIDE // multiple) | 1  # odd, so that no other factor of two hides in the side
        try:
            scale = _measure_scale(net, channels, multiple * times, multiple * (times + 2))
        except ValueError as error:
            complaint = complaint or str(error)
            continue
        return SizeRequirements(scale, multiple, _least_side(net, channels, multiple))
    raise UserError(f'{type(net).__name__} restores no image of any size tried: {complaint}')


def _least_side(net: nn.Module, channels: int, multiple: int) -> int:
    side = multiple
    while side < _SAFE_SIDE:
        try:
            _measure_scale(net, channels, side, side)
        except ValueError:
            side *= 2
        else:
            break
    return side


def _measure_scale(net: nn.Module, channels: int, height: int, width: int) -> int:
    """Output side over input side; raises ValueError where the network does not take the size."""
    try:
        output = net(torch.zeros(1, channels, height, width, device=device_of(net)))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from None
    scale = output.shape[-2] // height
    if output.ndim != 4 or scale < 1 or output.shape[-2:] != (height * scale, width * scale):
        raise ValueError(f'{height}×{width} in gives {tuple(output.shape[-2:])} out')
    return scale


def run_padded(run: Callable[[Tensor], Tensor], x: Tensor, sizes: SizeRequirements) -> Tensor:
    """Runs a network on images of any size ``(B, C, H, W)``: pads at the right and bottom, and crops the output."""
    height, width = x.shape[-2:]
    below, right = sizes.padded(height) - height, sizes.padded(width) - width
    if not below and not right:
        return run(x)
    mirrored = below < height and right < width
    padded = functional.pad(x, (0, right, 0, below), mode='reflect' if mirrored else 'replicate')
    return run(padded)[..., : height * sizes.scale, : width * sizes.scale]
