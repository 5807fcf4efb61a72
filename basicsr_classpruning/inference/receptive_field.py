"""How far a network sees: found by running it, not declared."""

from __future__ import annotations

import numpy as np
import torch

from basicsr_classpruning.devices import device_of
from basicsr_classpruning.routing.network import Subnetwork


def receptive_field_radius(network: Subnetwork, limit: int) -> int | None:
    """How many pixels away an input pixel still changes the output.

    It is read off the gradient of the central output pixels, which is exactly zero outside the receptive field.

    Args:
        network: the radius of all positions within one cell of the sizes that it takes is looked at.
        limit: the largest radius of interest.

    Returns:
        The radius, a multiple of the network's size multiple, or None if it is larger than ``limit`` or the network has
        no gradient, or does not take images of this size.
    """
    scale, multiple = network.sizes.scale, network.sizes.multiple
    cells = -(-(limit + 1) // multiple)
    side, start = multiple * (2 * cells + 1), multiple * cells
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, network.channels, side, side, generator=generator).to(device_of(network.net)).requires_grad_()
    try:
        with torch.enable_grad():
            centre = slice(start * scale, (start + multiple) * scale)
            (gradient,) = torch.autograd.grad(network.net(x)[..., centre, centre].sum(), x)
    except Exception:  # a network without gradient, or that stumbles over this size in any way
        return None
    seen = (gradient[0] != 0).any(dim=0).cpu().numpy()
    if not seen.any():
        return 0
    position = np.arange(side)
    distance = np.maximum(np.maximum(start - position, position - (start + multiple - 1)), 0)
    radius = int(np.maximum(distance[:, None], distance[None])[seen].max())
    return -(-radius // multiple) * multiple if radius <= limit else None


def tile_margin(network: Subnetwork, overlap: int) -> int | None:
    """Pixels at a tile's edge that differ from the whole image's result; None if they are more than the overlap of
    neighbouring tiles can hide."""
    return receptive_field_radius(network, limit=max(overlap - 1, 0) // 2)
