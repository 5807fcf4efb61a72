"""NAFNet: a U-shaped restoration network without non-linear activations.

Chen et al., "Simple Baselines for Image Restoration", ECCV 2022. Parameter names and options are those of the official
code (https://github.com/megvii-research/NAFNet), so that its published checkpoints and network options are read as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from basicsr_classpruning.errors import UsageError


class LayerNorm2d(nn.Module):
    """Normalises the channels of each pixel. (B, C, H, W) to the same shape."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In channels-last both permutations are free, and so they are for the convolutions that follow.
        normalised = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return normalised.permute(0, 3, 1, 2)


def simple_gate(x: torch.Tensor) -> torch.Tensor:
    """Product of the two halves of the channels: (B, 2C, H, W) to (B, C, H, W)."""
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFBlock(nn.Module):
    """Gated depthwise block with channel attention, then a gated feed-forward part. (B, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.conv1 = nn.Conv2d(channels, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv4 = nn.Conv2d(channels, wide, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = LayerNorm2d(channels)
        self.norm2 = LayerNorm2d(channels)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = simple_gate(self.conv2(self.conv1(self.norm1(x))))
        attended = x + self.conv3(gated * self.sca(gated)) * self.beta
        return attended + self.conv5(simple_gate(self.conv4(self.norm2(attended)))) * self.gamma


def _blocks(channels: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(number)))


@ARCH_REGISTRY.register()
class NAFNet(nn.Module):
    """NAFNet. The defaults are those of the published deblurring network of width 32.

    Args:
        img_channel (int): Channels of input and output.
        width (int): Channels at full resolution; they double at each level.
        middle_blk_num (int): Blocks at the lowest resolution.
        enc_blk_nums (Sequence[int]): Blocks of each encoder level, from full resolution downwards.
        dec_blk_nums (Sequence[int]): Blocks of each decoder level, from the lowest resolution upwards.

    Raises:
        UsageError: There are not as many decoder levels as encoder levels.
    """

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 32,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (1, 1, 1, 28),
        dec_blk_nums: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        if len(enc_blk_nums) != len(dec_blk_nums):
            raise UsageError(
                f'NAFNet: enc_blk_nums and dec_blk_nums must be equally long, not {len(enc_blk_nums)} and '
                f'{len(dec_blk_nums)}'
            )
        levels = len(enc_blk_nums)
        channels = [width * 2**level for level in range(levels + 1)]
        self.intro = nn.Conv2d(img_channel, width, 3, padding=1)
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)
        self.encoders = nn.ModuleList(_blocks(channels[i], number) for i, number in enumerate(enc_blk_nums))
        self.downs = nn.ModuleList(nn.Conv2d(channels[i], channels[i + 1], 2, stride=2) for i in range(levels))
        self.middle_blks = _blocks(channels[-1], middle_blk_num)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[i], 2 * channels[i], 1, bias=False), nn.PixelShuffle(2))
            for i in range(levels, 0, -1)
        )
        self.decoders = nn.ModuleList(
            _blocks(channels[levels - 1 - i], number) for i, number in enumerate(dec_blk_nums)
        )
        self.padder_size = 2**levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [0, 1] to the same shape; any height and width (padded with zeros, as officially)."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.padder_size, 0, -height % self.padder_size))
        features = self.intro(padded)
        skips = []
        for encoder, down in zip(self.encoders, self.downs):
            skips.append(encoder(features))
            features = down(skips[-1])
        features = self.middle_blks(features)
        for decoder, up in zip(self.decoders, self.ups):
            features = decoder(up(features) + skips.pop())
        return (self.ending(features) + padded)[..., :height, :width]
