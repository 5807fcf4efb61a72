"""DnCNN: a plain chain of 3x3 convolutions that predicts the noise.

Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", IEEE TIP 2017. This is
KAIR's variant without batch normalisation (https://github.com/cszn/KAIR), whose published checkpoints it loads as they
are: ``model.0.weight``, ``model.2.weight`` … (the odd entries are the activations).
"""

from __future__ import annotations

import torch
from basicsr.archs.arch_util import default_init_weights
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from basicsr_classpruning.errors import UsageError


@ARCH_REGISTRY.register()
class DnCNN(nn.Module):
    """Denoiser and JPEG artefact remover of one resolution: ``output = x - net(x)``.

    Args:
        num_in_ch (int): Channels of the input: 1 (grey) or 3 (RGB).
        num_out_ch (int): Channels of the output; equal to ``num_in_ch``, as the noise is subtracted from the input.
        num_feat (int): Channels of the hidden convolutions.
        num_conv (int): Convolutions in all. Published: 17 for one noise level (``dncnn_15``, ``dncnn_25``,
            ``dncnn_50``), 20 for blind and colour denoising and JPEG (``dncnn_gray_blind``, ``dncnn_color_blind``,
            ``dncnn3``).

    Raises:
        UsageError: The two channel numbers differ, or there are fewer than two convolutions.
    """

    def __init__(self, num_in_ch: int = 1, num_out_ch: int = 1, num_feat: int = 64, num_conv: int = 17) -> None:
        super().__init__()
        if num_out_ch != num_in_ch:
            raise UsageError(f'DnCNN: num_out_ch ({num_out_ch}) must equal num_in_ch ({num_in_ch})')
        if num_conv < 2:
            raise UsageError(f'DnCNN: num_conv must be at least 2, not {num_conv}')
        layers: list[nn.Module] = [nn.Conv2d(num_in_ch, num_feat, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(num_conv - 2):
            layers += [nn.Conv2d(num_feat, num_feat, 3, padding=1), nn.ReLU(inplace=True)]
        tail = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)
        # PyTorch's default weights fade out within seventeen layers; a small tail starts from the identity.
        default_init_weights(layers, bias_fill=0)
        default_init_weights(tail, 0.1, bias_fill=0)
        self.model = nn.Sequential(*layers, tail)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [0, 1] to the same shape; any height and width."""
        return x - self.model(x)
