"""One image through several candidates at once, layer by layer: each patch takes the weights of its own candidate.

At every convolution a patch reads its neighbours' features, whichever candidate made them, so nothing is computed
twice. Where nothing of the base network runs there are no features: a ring of cells around the others is computed with
the sparsest subnetwork, so that what they read at their border is nearly right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from basicsr_classpruning.kernels.tracing import NotTraceable, function_name, module_of, trace
from basicsr_classpruning.routing.network import RoutedNetwork
from basicsr_classpruning.sparsity.int8 import Int8Conv2d

CELL = 8
"""Side of a cell in input pixels: patches are made of cells, and a ring is one cell wide."""
NOTHING = -1
"""In a map of cells: none of the base network runs there."""

# What treats every pixel alike, or knows no more of its neighbours than their place.
_POINTWISE_MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Identity, nn.Dropout, nn.PixelShuffle,
    nn.PixelUnshuffle, nn.Upsample, nn.BatchNorm2d,
)  # fmt: skip
_POINTWISE_FUNCTIONS = {
    'add', 'sub', 'mul', 'truediv', 'div', 'neg', 'relu', 'leaky_relu', 'gelu', 'silu', 'sigmoid', 'tanh', 'cat',
    'chunk', 'split', 'getitem', 'getattr', 'pixel_shuffle', 'pixel_unshuffle', 'interpolate', 'clamp',
    'type_as', 'to', 'size',
}  # fmt: skip


class NotPatchable(Exception):
    """A network that cannot run patch by patch; the message says which of its layers sees more than a patch."""


class PatchedNetwork:
    """The candidates of one network, run together on one image.

    Args:
        network: its base network consists of convolutions of stride 1 that keep the size, and of what treats every
            pixel alike.

    Raises NotPatchable for any other.
    """

    def __init__(self, network: RoutedNetwork) -> None:
        self._subnetworks = network.subnetworks
        self.running = tuple(k for k, one in enumerate(network.subnetworks) if one.runs_base)
        """Places of the candidates that run layers of the base network."""
        if not self.running:
            raise NotPatchable('its candidates are networks of their own')
        try:
            self._graph = trace(network.dense.net)
        except NotTraceable as error:
            raise NotPatchable(str(error)) from None
        for node in self._graph.graph.nodes:
            _check(self._graph, node)
        self._convolutions = {
            str(node.target): _PatchedConvolution([self._layer(k, str(node.target)) for k in self.running])
            for node in self._graph.graph.nodes
            if isinstance(module_of(self._graph, node), nn.Conv2d)
        }

    def _layer(self, index: int, name: str) -> nn.Conv2d:
        layer = self._subnetworks[index].net.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        return layer

    def with_ring(self, cells: np.ndarray) -> np.ndarray:
        """What runs in each cell: as wanted, and the sparsest subnetwork around what runs.

        Args:
            cells: ``(rows, columns)`` places of candidates, or ``NOTHING``.

        Returns:
            The same with ``NOTHING`` where nothing runs.
        """
        runs = np.isin(cells, self.running)
        padded = np.pad(runs, 1)
        rows, columns = runs.shape
        near = np.zeros_like(runs)
        for down in range(3):
            for right in range(3):
                near |= padded[down : down + rows, right : right + columns]
        return np.where(runs, cells, np.where(near, self.running[0], NOTHING))

    @torch.inference_mode()
    def __call__(self, x: Tensor, cells: np.ndarray) -> Tensor:
        """Restores an image; what comes out where nothing runs means nothing.

        Args:
            x: ``(1, C, H, W)`` in [0, 1], H and W multiples of ``CELL``.
            cells: ``(H / CELL, W / CELL)``, from ``with_ring``.

        Returns:
            ``(1, C', H · scale, W · scale)``.
        """
        members = [torch.from_numpy(np.flatnonzero(cells == k)).to(x.device) for k in self.running]
        return _Pass(self._graph, self._convolutions, members, cells.shape).run(x)


class _PatchedConvolution:
    """One convolution with the weights of every candidate."""

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        self._layers = layers
        one = layers[0]
        self._reach = one.dilation[0] * (one.kernel_size[0] - 1) // 2
        # What stays dense has the same weights in all candidates, and runs once.
        self._alike = all(
            type(layer) is type(one) and torch.equal(layer.weight, one.weight) and _equal(layer.bias, one.bias)
            for layer in layers
        )

    def __call__(self, x: Tensor, members: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """The convolution in the cells of each candidate; zero elsewhere.

        Args:
            x: ``(1, C, H, W)``.
            members: numbers of each candidate's cells, counted row by row.
            grid: rows and columns of cells.
        """
        side, reach = x.shape[2] // grid[0], self._reach
        padded = functional.pad(x, (reach,) * 4)
        windows = padded[0].unfold(1, side + 2 * reach, side).unfold(2, side + 2 * reach, side)
        windows = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)  # a view: cells × C × window
        y = x.new_zeros((grid[0] * grid[1], self._layers[0].out_channels, side, side))
        for layer, cells in self._work(members):
            y[cells] = _without_padding(layer, windows[cells])
        return y.unflatten(0, grid).permute(2, 0, 3, 1, 4).reshape(1, -1, grid[0] * side, grid[1] * side)

    def _work(self, members: Sequence[Tensor]) -> list[tuple[nn.Conv2d, Tensor]]:
        if self._alike:
            members = [torch.cat(list(members))]
        return [(layer, cells) for layer, cells in zip(self._layers, members) if len(cells)]


def _without_padding(layer: nn.Conv2d, windows: Tensor) -> Tensor:
    if isinstance(layer, Int8Conv2d):
        return layer.without_padding(windows)
    return functional.conv2d(windows, layer.weight, layer.bias, dilation=layer.dilation)


class _Pass(fx.Interpreter):
    """One forward pass: convolutions in their cells, all else on the whole image."""

    def __init__(
        self,
        graph: fx.GraphModule,
        convolutions: dict[str, _PatchedConvolution],
        members: Sequence[Tensor],
        grid: tuple[int, ...],
    ) -> None:
        super().__init__(graph)
        self._convolutions, self._members, self._grid = convolutions, members, (grid[0], grid[1])

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in self._convolutions:
            return self._convolutions[target](args[0], self._members, self._grid)
        return super().call_module(target, args, kwargs)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _check(graph: fx.GraphModule, node: fx.Node) -> None:
    """Raises NotPatchable for a step that sees more of the image than the pixels around its own."""
    if node.op in ('placeholder', 'get_attr', 'output'):
        return
    module = module_of(graph, node)
    if isinstance(module, nn.Conv2d):
        sizes = module.stride, module.dilation, module.kernel_size
        same = all(one == other for one, other in sizes) and isinstance(module.padding, tuple)
        kept = same and module.padding == ((module.dilation[0] * (module.kernel_size[0] - 1)) // 2,) * 2
        plain = module.stride[0] == 1 and module.groups == 1 and module.padding_mode == 'zeros'
        if kept and plain and module.kernel_size[0] % 2:
            return
        raise NotPatchable(f'{node.target} is a convolution that changes the size, or of another kind')
    name = type(module).__name__ if module is not None else function_name(node)
    if isinstance(module, _POINTWISE_MODULES) or name in _POINTWISE_FUNCTIONS:
        return
    raise NotPatchable(f'{node.name} ({name}) may see more of the image than a patch')
