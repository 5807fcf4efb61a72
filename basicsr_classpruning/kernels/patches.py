"""A network whose patches take the weights of different candidates, on the kernels: one call a layer.

The graph is traced and fused once, as all candidates have the same; only the weights of its layers are several.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from basicsr_classpruning.kernels import int8_native, native
from basicsr_classpruning.kernels.acceleration import why_torch
from basicsr_classpruning.kernels.choice import Choices
from basicsr_classpruning.kernels.enlargement import BilinearEnlargement, replace_bilinear
from basicsr_classpruning.kernels.fusion import fuse_graph
from basicsr_classpruning.kernels.gathering import GatheredConv2d, alike
from basicsr_classpruning.kernels.int8_graph import keep_integers
from basicsr_classpruning.kernels.int8_layers import Range
from basicsr_classpruning.kernels.int8_patches import PatchedInt8Conv2d
from basicsr_classpruning.kernels.jobs import JobList, weight_array
from basicsr_classpruning.kernels.layers import Epilogue, KernelConv2d
from basicsr_classpruning.kernels.memory import features
from basicsr_classpruning.kernels.ops import activate, conv2d_in_jobs
from basicsr_classpruning.kernels.tracing import function_name, module_of
from basicsr_classpruning.sparsity.int8 import Int8Conv2d

_PATCH, _APART = 8, 10  # cells of the side of patches that algorithms are measured on, and from one to the next

_algorithms = Choices(margin=1.1)  # as of whole images


class PatchedNet(nn.Module):
    """The candidates of one network, run together on one image, layer by layer.

    Args:
        graph: the dense network's, whose convolutions keep the size; it is changed.
        candidates: the same network with other weights, sparsest first.
        use_kernels: whether convolutions run on the kernels, with what follows them fused in, where they can: float32
            on the CPU.

    All that is no convolution is taken from the graph, and runs on whole images.
    """

    def __init__(self, graph: fx.GraphModule, candidates: Sequence[nn.Module], use_kernels: bool) -> None:
        super().__init__()
        names = dict.fromkeys(str(n.target) for n in graph.graph.nodes if isinstance(module_of(graph, n), nn.Conv2d))
        layers = {name: [_conv(net, name) for net in candidates] for name in names}
        fused = {name for name in layers if use_kernels and _runs_in_jobs(layers[name])}
        for name in fused:
            graph.set_submodule(name, layers[name][0])  # what is fused depends on whether it is of integers
        replace_bilinear(graph, (layers[name][0] for name in fused))
        fuse_graph(graph, fused, lambda name, epilogue, _: _patched(layers[name], epilogue), with_around=False)
        keep_integers(graph)
        for name in layers.keys() - fused:
            graph.set_submodule(name, GatheredConv2d(layers[name]))
        _pass_jobs(graph)
        self._net = graph.eval()
        reads = max((_reads(layer[0]) for layer in layers.values()), default=0)
        alone = fused and not any(_reads_neighbours(graph, node) for node in _of_features(graph))
        self._reads = reads if alone else None

    @torch.inference_mode()
    def forward(self, x: Tensor, cells: np.ndarray) -> Tensor:
        """Restores images; what comes out where nothing runs means nothing, and may be no number.

        Args:
            x: ``(B, C, H, W)`` in [0, 1], H and W multiples of the numbers of cells.
            cells: ``(rows, columns)`` int32 places of candidates, or ``native.NOTHING``; the same for all images.

        Returns:
            ``(B, C', H · scale, W · scale)``.
        """
        side = x.shape[2] // len(cells)
        # Parts of a pixel, that only what is read is set to zeros; features have no fewer pixels than the input.
        jobs = JobList(cells, None) if self._reads is None else JobList(cells, self._reads, side)
        return self._net(x.contiguous(), jobs)


class PatchedConv2d(nn.Module):
    """A convolution of stride 1 that keeps the size, with the weights of several candidates, and its epilogue.

    Args:
        layers: one of each candidate.
        epilogue: of all of them.
    """

    def __init__(self, layers: Sequence[nn.Conv2d], epilogue: Epilogue) -> None:
        super().__init__()
        self._alike = alike(layers)
        made = [KernelConv2d(layer, epilogue) for layer in (layers[:1] if self._alike else layers)]
        self.weights = nn.ModuleList(made)
        self._layers = tuple(made)
        self._epilogue = made[0].epilogue
        self._slope, self._shuffle, self._channels = made[0].slope, made[0].shuffle, made[0].geometry[0]
        self._chosen: dict[int, ctypes.Array[native.Weight]] = {}

    def forward(self, x: Tensor, jobs: JobList, residual: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)`` to ``(B, O, H, W)``, shuffled; where ``jobs`` have nothing to do, whatever was there."""
        activation, order = self._epilogue
        if residual is None or residual.shape == self._output_shape(x):
            return self._run(x, jobs, residual, activation, order)
        if order == 'after':
            return self._run(x, jobs, None, activation, 'none') + residual
        return activate(self._run(x, jobs, None, 'none', 'none') + residual, activation, self._slope)

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        batch, _, height, width = x.shape
        r = self._shuffle
        return batch, self._channels // r**2, height * r, width * r

    def _run(self, x: Tensor, jobs: JobList, residual: Tensor | None, activation: str, order: str) -> Tensor:
        cell = x.shape[2] // jobs.grid[0]
        weights = self._chosen.get(cell)
        if weights is None:
            weights = self._chosen[cell] = self._choose(cell)
        y = features.empty(self._output_shape(x))
        listed = jobs.together if self._alike else jobs.by_weight
        part = jobs.part_side(x.shape[2])
        conv2d_in_jobs(x, y, listed, weights, part, self._slope, residual, activation, order, self._shuffle)
        return y

    def _choose(self, cell: int) -> ctypes.Array[native.Weight]:
        """Of each candidate the faster packing for patches, measured on four of them."""
        found = [_faster(layer, cell) for layer in self._layers]
        return weight_array(found, [layer.bias for layer in self._layers])


_PATCHED = (PatchedConv2d, PatchedInt8Conv2d, GatheredConv2d)


def _patched(layers: Sequence[nn.Conv2d], epilogue: Epilogue) -> PatchedConv2d | PatchedInt8Conv2d:
    integers = [layer for layer in layers if isinstance(layer, Int8Conv2d)]
    return PatchedInt8Conv2d(integers, epilogue) if integers else PatchedConv2d(layers, epilogue)


def _faster(layer: KernelConv2d, cell: int) -> Tensor:
    """The packed weight of one candidate that computes patches faster: four that do not touch."""
    if layer.winograd is None:
        return layer.packed
    ways = {'winograd': layer.winograd, 'direct': layer.packed}
    kind = native.kind_of_zeros(layer.packed, layer.winograd, layer.geometry)  # as of whole images
    side = 2 * _APART * cell
    x = torch.rand((1, layer.geometry[1], side, side), generator=torch.Generator().manual_seed(0))
    y = torch.empty((1, layer.geometry[0], side, side))
    places = (1, 1 + _APART)
    jobs = torch.tensor([[top, left, _PATCH, _PATCH, 0] for top in places for left in places], dtype=torch.int32)

    def run(packed: Tensor) -> None:
        conv2d_in_jobs(x, y, jobs, weight_array([packed], [layer.bias]), cell, threads=1)

    case = (*layer.geometry, *kind, cell)
    found = native.forced_algorithm()
    return ways[found or _algorithms.choose(case, {name: functools.partial(run, one) for name, one in ways.items()})]


def _runs_in_jobs(layers: Sequence[nn.Conv2d]) -> bool:
    """Whether the kernels run one layer of several candidates: all of floats, or all of 8-bit integers in one range."""
    if any(why_torch(layer, True) for layer in layers):
        return False
    integers = [layer for layer in layers if isinstance(layer, Int8Conv2d)]
    if not integers:
        return True
    alone = len(integers) == len(layers) and len({Range.of(layer) for layer in integers}) == 1
    return alone and int8_native.available() is not None


def _reads(layer: nn.Conv2d) -> int:
    """How many pixels beyond its output a layer reads."""
    return max(d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size))


def _conv(net: nn.Module, name: str) -> nn.Conv2d:
    layer = net.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return layer


def _pass_jobs(graph: fx.GraphModule) -> None:
    """Gives the network one more input, the jobs, and each of its patched layers."""
    inputs = [node for node in graph.graph.nodes if node.op == 'placeholder']
    with graph.graph.inserting_after(inputs[-1]):
        jobs = graph.graph.placeholder('jobs')
    for node in graph.graph.nodes:
        if isinstance(module_of(graph, node), _PATCHED):
            node.args = (node.args[0], jobs, *node.args[1:])
    graph.graph.lint()
    graph.recompile()


def _of_features(graph: fx.GraphModule) -> list[fx.Node]:
    """The steps that read what convolutions made, and not the image alone, which is there everywhere."""
    layers = [n for n in graph.graph.nodes if isinstance(module_of(graph, n), (nn.Conv2d, *_PATCHED))]
    made = set(layers)
    for node in graph.graph.nodes:
        if made.intersection(node.all_input_nodes):
            made.add(node)
    return [node for node in graph.graph.nodes if made.intersection(node.all_input_nodes)]


def _reads_neighbours(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a step that runs on the whole image mixes pixels of different cells, or changes their size."""
    module = module_of(graph, node)
    mixing = (nn.Upsample, nn.PixelUnshuffle, BilinearEnlargement)
    return isinstance(module, mixing) or function_name(node) in ('interpolate', 'pixel_unshuffle')
