"""Small networks with every kind of layer and wiring that people's networks have, each registered under its name."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional


@ARCH_REGISTRY.register()
class Ragged(nn.Module):
    """Widths that 16 does not divide: 50 (three groups and 2), 28, 12 (one short group) and 21."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 50, 3, padding=1)
        self.distil, self.body = nn.Conv2d(50, 28, 3, padding=1), nn.Conv2d(28, 12, 1)
        self.mix = nn.Linear(12, 21)
        self.tail = nn.Conv2d(21, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(functional.gelu(self.distil(functional.relu(self.head(x)))))
        y = self.mix(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return functional.pixel_shuffle(self.tail(functional.relu(y)), 2)


@ARCH_REGISTRY.register()
class Grouped(nn.Module):
    """A convolution in four groups of 8 and one in two of 10, and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 32, 3, padding=1)
        self.four = nn.Conv2d(32, 20, 3, padding=1, groups=4)
        self.two = nn.Conv2d(20, 16, 3, padding=1, groups=2, padding_mode='reflect')
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.tail = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(functional.relu(self.four(functional.relu(self.head(x)))))
        return x + self.tail(self.depthwise(y))


@ARCH_REGISTRY.register()
class Transposed(nn.Module):
    """A U-Net: down by strides, up by transposed convolutions, one of them grouped, and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 20, 3, padding=1)
        self.down, self.deeper = nn.Conv2d(20, 24, 2, stride=2), nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.up, self.upper = nn.ConvTranspose2d(32, 24, 4, 2, 1, groups=2), nn.ConvTranspose2d(48, 20, 2, 2)
        self.tail = nn.Conv2d(20, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        low = functional.relu(self.down(y))
        lowest = functional.relu(self.deeper(low))
        return x + self.tail(y + self.upper(torch.cat([low, self.up(lowest)], 1)))


@ARCH_REGISTRY.register()
class RunsInAnotherOrder(nn.Module):
    """The first layers that are defined take a map of one channel and features; the image comes in at the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.body = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.tail, self.head = nn.Conv2d(16, 3, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        y = y * torch.sigmoid(self.attention(y.mean(1, keepdim=True)))
        return x + self.tail(functional.relu(self.body(y)))


@ARCH_REGISTRY.register()
class Recurrent(nn.Module):
    """A block with two inputs that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.ModuleDict({'x': nn.Conv2d(16, 16, 3, padding=1), 'state': nn.Conv2d(16, 16, 3, padding=1)})
        self.head, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = state = self.head(x)
        for _ in range(3):
            state = torch.tanh(self.step['x'](y) + self.step['state'](state))
        return x + self.tail(state)


@ARCH_REGISTRY.register()
class BatchNormalised(nn.Module):
    """A DnCNN as of old."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x - self.layers(x)


@ARCH_REGISTRY.register()
class Experts(nn.Module):
    """Each image runs through the expert that its brightness picks; no ordinary one picks the last."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.experts = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.head(x))
        means = x.mean((1, 2, 3)).tolist()
        chosen = [2 if mean > 5 else int(mean > 0.4) for mean in means]
        y = torch.cat([self.experts[expert](one) for expert, one in zip(chosen, y.split(1))])
        return x + self.tail(functional.relu(y))


@ARCH_REGISTRY.register()
class InATuple(nn.Module):
    """Runs its layers from a plain tuple, and uses the weight of one by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.read, self.tail = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 3, 3, padding=1)
        self.layers = (self.head, self.body)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = functional.relu(layer(y))
        return x + self.tail(functional.conv2d(y, self.read.weight, self.read.bias))


KINDS: dict[str, dict[str, Any]] = {
    **{
        name: {'type': name}
        for name in (
            'Ragged', 'Grouped', 'Transposed', 'RunsInAnotherOrder', 'Recurrent', 'BatchNormalised', 'Experts',
            'InATuple',
        )
    },
    'SwinIR': {
        'type': 'SwinIR', 'upscale': 2, 'img_size': 16, 'window_size': 8, 'embed_dim': 60, 'depths': [2],
        'num_heads': [6], 'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect',
    },
    'NAFNet': {'type': 'NAFNet', 'width': 12, 'middle_blk_num': 1, 'enc_blk_nums': [1], 'dec_blk_nums': [1]},
}  # fmt: skip
"""Options of the networks by their names; SwinIR and NAFNet are BasicSR's and this package's own."""
