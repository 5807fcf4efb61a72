"""One candidate as a network of its own, with its weights under the names that other programs know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from basicsr.archs.ecbsr_arch import ECBSR
from torch import Tensor, nn

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.archs.sizes import Sizes
from basicsr_classpruning.errors import UsageError


@dataclass(frozen=True)
class StaticNetwork:
    """A network that restores every image alike."""

    name: str
    """The candidate, such as ``'2:4'``, or ``'dense'``."""
    net: nn.Module
    """Plain layers, zeros in place, eval mode; takes images ``(B, C, H, W)`` in [0, 1]."""
    options: dict[str, Any]
    """``network_g`` of the base network."""
    channels: int
    """C."""
    sizes: Sizes
    """Sizes of images that the network takes."""

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under the keys of the base network as BasicSR, or the program it comes from, builds it."""
        state = self.net.state_dict()
        return unfold_ecbsr_state_dict(self.options, state) if self.options.get('type') == 'ECBSR' else state


def take_candidate(network: ClassPruning | DenseNetwork, candidate: str | None) -> StaticNetwork:
    """Takes one candidate out of a network, the dearest where none is named; a dense network is taken as it is.

    Raises UsageError for a candidate that the network does not have.
    """
    if isinstance(network, DenseNetwork):
        if candidate is not None:
            raise UsageError(f'--candidate {candidate}: this network is dense and has no candidates')
        return StaticNetwork('dense', network.net.eval(), network.options, network.num_in_ch, network.sizes)
    name = candidate or network.candidates[-1]
    options = cast(dict[str, Any], network.options['base'])
    return StaticNetwork(name, network.frozen(name), options, network.num_in_ch, network.sizes)


@torch.no_grad()
def unfold_ecbsr_state_dict(options: dict[str, Any], folded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turns weights of a folded ECBSR into those of BasicSR's own, which computes the same.

    The merged kernel goes to each block's 3×3 branch, less the identity where the block adds one; the other branches
    become zero.

    Args:
        options: options of the ECBSR, with or without ``type``.
        folded: state dict of a ``FoldedECBSR`` with these options.
    """
    net = ECBSR(**{key: value for key, value in options.items() if key != 'type'})
    for parameter in net.parameters():
        if parameter.requires_grad:  # the others are the fixed kernels of the edge branches
            parameter.zero_()
    for number, block in enumerate(net.backbone):
        block.conv3x3.weight.copy_(folded[f'backbone.{number}.conv.weight'])
        block.conv3x3.bias.copy_(folded[f'backbone.{number}.conv.bias'])
        if block.with_idt:
            block.conv3x3.weight.diagonal()[1, 1] -= 1
    state = net.state_dict()
    state.update({key: value for key, value in folded.items() if '.act.' in key})
    return state
