"""What restoring pictures needs to know of a network, be it a ClassPruning one or a dense one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from basicsr_classpruning.archs.base_network import input_channels
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.archs.sizes import Sizes
from basicsr_classpruning.errors import UserError


@dataclass(frozen=True)
class Traits:
    """Sizes, channels and costs of a network. MACs are per input pixel: tiles' MACs are in proportion to their size."""

    candidates: tuple[str, ...]
    """Cheapest to dearest; empty for a dense network."""
    channels: int
    """1 or 3."""
    sizes: Sizes
    margin: int | None
    """Pixels at a tile's edge that differ from the whole picture's result; None if it is more than was looked at."""
    macs_dense: float
    macs: tuple[float, ...]
    """One for each candidate, the classifier not included. A dense network has one entry."""
    macs_classifier: float
    params_dense: int
    """Parameters of the dense base network."""
    params_candidates: tuple[int, ...]
    """Of each candidate, its zeros left out."""
    params_routed: int
    """Of everything that routing needs: all candidates, their zeros left out, and the classifier."""

    @property
    def scale(self) -> int:
        """Output side over input side."""
        return self.sizes.scale

    @property
    def costs(self) -> np.ndarray:
        """Routed costs ``(K,)``, the classifier's included, as fractions of the dense MACs."""
        return (np.array(self.macs) + self.macs_classifier) / self.macs_dense


def wrap(net: nn.Module) -> ClassPruning | DenseNetwork:
    """What `basicsr_classpruning.load` returns is returned as it is; any other network is taken as a dense one."""
    if isinstance(net, (ClassPruning, DenseNetwork)):
        return net
    return DenseNetwork(net.eval(), input_channels(net, {}), {'type': type(net).__name__})


def inspect_network(net: ClassPruning | DenseNetwork, overlap: int) -> Traits:
    """Finds a network's traits by running it on a few small images.

    Args:
        net: in eval mode.
        overlap: of the tiles; the network's reach is looked for as far as this overlap can hide it.

    Raises:
        UserError: the network takes neither grey nor RGB pictures, or no image of any size.
    """
    if net.num_in_ch not in (1, 3):
        raise UserError(f'the network takes {net.num_in_ch} channels; allowed are 1 (grey) and 3 (RGB)')
    module = dense_module(net)
    sizes = net.sizes
    if isinstance(net, ClassPruning):
        reference = net.reference_macs
        pixels = reference.size[1] * reference.size[2]
        dense, macs, classifier = reference.dense, reference.candidates, reference.classifier
        candidates = net.candidates
    else:
        pixels = sizes.padded(sizes.reference) ** 2
        dense, macs, classifier, candidates = net.reference_macs, (net.reference_macs,), 0, ()
    return Traits(
        candidates=candidates,
        channels=net.num_in_ch,
        sizes=sizes,
        margin=reach(module, net.num_in_ch, sizes.scale, sizes.multiple, limit=max(overlap - 1, 0) // 2),
        macs_dense=dense / pixels,
        macs=tuple(value / pixels for value in macs),
        macs_classifier=classifier / pixels,
        params_dense=count_parameters(module),
        params_candidates=tuple(_candidate_parameters(net, name) for name in candidates),
        params_routed=count_parameters(net),
    )


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, the zeros of candidates' own weights left out."""
    own = {id(weight) for layer in module.modules() for weight in getattr(layer, 'weights', ())}
    return sum(int(p.count_nonzero()) if id(p) in own else p.numel() for p in module.parameters())


def _candidate_parameters(net: ClassPruning | DenseNetwork, candidate: str) -> int:
    assert isinstance(net, ClassPruning)
    frozen, patterns = net.frozen(candidate), net.patterns(candidate)
    zeros = (frozen.get_submodule(name).weight.eq(0).sum() for name in patterns)  # type: ignore[operator]
    return count_parameters(frozen) - int(sum(zeros))


def dense_module(net: ClassPruning | DenseNetwork) -> nn.Module:
    """The unpruned base network as a plain module."""
    return net.frozen_dense() if isinstance(net, ClassPruning) else net.net


def reach(module: nn.Module, channels: int, scale: int, multiple: int, limit: int) -> int | None:
    """How many pixels away an input pixel still changes the output: the radius of the receptive field.

    It is read off the gradient of the central output pixels, which is exactly zero outside the receptive field.

    Args:
        module: takes ``(B, channels, H, W)``, gives ``scale`` times the size.
        multiple: sides must be multiples of this; the reach of all positions within one such cell is looked at.
        limit: the largest radius of interest.

    Returns:
        The radius, a multiple of ``multiple``, or None if it is larger than ``limit`` or the network has no gradient.
    """
    cells = -(-(limit + 1) // multiple)
    side, start = multiple * (2 * cells + 1), multiple * cells
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, channels, side, side, generator=generator).to(device_of(module)).requires_grad_()
    try:
        with torch.enable_grad():
            centre = slice(start * scale, (start + multiple) * scale)
            (gradient,) = torch.autograd.grad(module(x)[..., centre, centre].sum(), x)
    except RuntimeError:
        return None
    seen = (gradient[0] != 0).any(dim=0).cpu().numpy()
    if not seen.any():
        return 0
    position = np.arange(side)
    distance = np.maximum(np.maximum(start - position, position - (start + multiple - 1)), 0)
    radius = int(np.maximum(distance[:, None], distance[None])[seen].max())
    return -(-radius // multiple) * multiple if radius <= limit else None


def device_of(net: nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU for one without."""
    parameter = next(net.parameters(), None)
    return torch.device('cpu') if parameter is None else parameter.device
