"""Folds BasicSR's ECBSR into the plain convolutions that it computes, and back.

An ECBSR block trains five parallel branches (and, with ``with_idt``, an identity) and merges them into one 3x3 kernel
at every forward in eval mode. Pruning needs that kernel as a parameter. The folded network's parameters are
``backbone.N.conv.weight``, ``backbone.N.conv.bias`` and, with PReLU, ``backbone.N.act.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from basicsr.archs.ecbsr_arch import ECB, ECBSR
from torch import Tensor, nn

from basicsr_classpruning.archs.adapters import Adapter, register_adapter
from basicsr_classpruning.errors import UserError

_BRANCH = re.compile(r'backbone\.\d+\.conv3x3\.weight')


class FoldedECB(nn.Module):
    """One merged block: a 3x3 convolution and the block's activation. (B, C_in, H, W) to (B, C_out, H, W)."""

    def __init__(self, block: ECB) -> None:
        super().__init__()
        weight, bias = block.rep_params()
        self.conv = nn.utils.skip_init(
            nn.Conv2d, block.in_channels, block.out_channels, 3, padding=1, device=weight.device, dtype=weight.dtype
        )
        self.conv.weight.copy_(weight)
        self.conv.bias.copy_(bias)
        # The last block has none.
        self.act = deepcopy(block.act) if block.act_type != 'linear' else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class FoldedECBSR(nn.Module):
    """ECBSR of merged blocks. (B, C, H, W) in [0, 1] to (B, C, H * scale, W * scale)."""

    def __init__(self, net: ECBSR) -> None:
        super().__init__()
        self.num_in_ch = net.num_in_ch
        self.scale = net.scale
        self.backbone = nn.Sequential(*(FoldedECB(block) for block in net.backbone))
        self.upsampler = nn.PixelShuffle(net.scale)
        self.train(net.training)

    def forward(self, x: Tensor) -> Tensor:
        repeats = self.scale**2 if self.num_in_ch > 1 else 1  # a single channel is broadcast
        return self.upsampler(self.backbone(x) + x.repeat_interleave(repeats, dim=1))


@torch.no_grad()
def fold_ecbsr(net: ECBSR) -> FoldedECBSR:
    """Returns a network of plain convolutions with the outputs of ``net``, on its device and in its mode.

    The weights are copies: training the folded network leaves ``net`` as it is.
    """
    return FoldedECBSR(net)


def fold_ecbsr_state_dict(net_options: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turns a checkpoint of BasicSR's ECBSR into one of the folded network; one already folded is returned as it is.

    Args:
        net_options: options of the ECBSR, with or without ``type``. They are needed, as a checkpoint does not tell
            whether its blocks have an identity branch.
        state_dict: parameters of the network, without prefixes.

    Raises:
        UserError: The parameters do not fit these options.
    """
    if not any(_BRANCH.fullmatch(key) for key in state_dict):
        return dict(state_dict)
    net = ECBSR(**{key: value for key, value in net_options.items() if key != 'type'})
    try:
        net.load_state_dict(dict(state_dict))
    except RuntimeError as error:
        raise UserError(f'weights do not fit the ECBSR of the options: {str(error).splitlines()[1].strip()}') from None
    return fold_ecbsr(net).state_dict()


@torch.no_grad()
def unfold_ecbsr_state_dict(options: Mapping[str, Any], folded: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


@register_adapter('ECBSR')
class ECBSRAdapter(Adapter):
    """Merges each block's branches into one convolution."""

    def fold(self, net: nn.Module) -> nn.Module:
        return fold_ecbsr(net)

    def fold_params(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return fold_ecbsr_state_dict(options, params)

    def unfold_params(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return unfold_ecbsr_state_dict(options, params)
