"""Convolutions in patches in PyTorch, on any device: what the kernels do in patches, and their reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_classpruning.kernels.jobs import JobList
from basicsr_classpruning.sparsity.int8 import Int8Conv2d


class GatheredConv2d(nn.Module):
    """One convolution of stride 1 that keeps the size, with the weights of every candidate.

    The cells of a candidate are gathered with the pixels around them that the kernel reads, run as a batch, and
    scattered back; elsewhere are zeros.

    Args:
        layers: one of each candidate.
    """

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self._alike = alike(layers)
        self.layers = nn.ModuleList(layers[:1] if self._alike else layers)
        self._count = len(layers)
        self._reach = layers[0].dilation[0] * (layers[0].kernel_size[0] - 1) // 2

    def forward(self, x: Tensor, jobs: JobList) -> Tensor:
        """``(B, C, H, W)`` to ``(B, O, H, W)``."""
        (rows, columns), reach = jobs.grid, self._reach
        side = x.shape[2] // rows
        padded = functional.pad(x, (reach,) * 4)
        windows = padded.unfold(2, side + 2 * reach, side).unfold(3, side + 2 * reach, side)
        windows = windows.permute(2, 3, 0, 1, 4, 5).flatten(0, 1)  # a view: cells × B × C × window
        y: Tensor | None = None
        for layer, cells in zip(self.layers, self._members(jobs, x.device)):
            assert isinstance(layer, nn.Conv2d)
            if y is None:
                y = x.new_zeros((rows * columns, len(x), layer.out_channels, side, side))
            if len(cells):
                found = _without_padding(layer, windows[cells].flatten(0, 1))
                y[cells] = found.unflatten(0, (len(cells), len(x)))
        assert y is not None
        return (
            y.unflatten(0, (rows, columns)).permute(2, 3, 0, 4, 1, 5).reshape(len(x), -1, rows * side, columns * side)
        )

    def _members(self, jobs: JobList, device: torch.device) -> list[Tensor]:
        members = jobs.members(self._count, device)
        # What stays dense has the same weights in all candidates, and runs once.
        return [torch.cat(members)] if self._alike else members


def alike(layers: Sequence[nn.Conv2d]) -> bool:
    """Whether layers compute the same."""
    first = layers[0]
    return all(type(one) is type(first) and all(map(_equal, _numbers(one), _numbers(first))) for one in layers)


def _numbers(layer: nn.Conv2d) -> list[Tensor | None]:
    grid = (layer.weight_scale, layer.input_scale, layer.input_zero) if isinstance(layer, Int8Conv2d) else ()
    return [layer.weight, layer.bias, *grid]


def _without_padding(layer: nn.Conv2d, windows: Tensor) -> Tensor:
    if isinstance(layer, Int8Conv2d):
        return layer.without_padding(windows)
    return functional.conv2d(windows, layer.weight, layer.bias, dilation=layer.dilation, groups=layer.groups)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
