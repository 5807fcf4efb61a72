"""The weights of a plain network under the names that other programs know."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.archs.ecbsr_arch import ECBSR
from torch import Tensor

from basicsr_classpruning.routing.network import Subnetwork


def plain_state_dict(network: Subnetwork) -> dict[str, Tensor]:
    """The weights under the keys of the base network as BasicSR, or the program it comes from, builds it."""
    state = network.net.state_dict()
    return unfold_ecbsr_state_dict(network.options, state) if network.options.get('type') == 'ECBSR' else state


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
