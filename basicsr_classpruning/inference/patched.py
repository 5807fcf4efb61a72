"""One image through several candidates at once, layer by layer: each patch takes the weights of its own candidate.

At every convolution a patch reads its neighbours' features, whichever candidate made them, so nothing is computed
twice. Where nothing of the base network runs there are no features: a ring of cells around the others is computed with
them, so that what they read at their border is nearly right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, fx, nn

from basicsr_classpruning import kernels
from basicsr_classpruning.devices import device_of
from basicsr_classpruning.kernels.jobs import dilated
from basicsr_classpruning.kernels.tracing import NotTraceable, function_name, module_of, trace
from basicsr_classpruning.routing.network import RoutedNetwork
from basicsr_classpruning.sparsity.mixture import NOTHING

PART = 8
"""Side, in input pixels, of the parts that classifiers tell apart: patches are made of them."""
CELL = 4
"""Side of a cell in input pixels: parts and rings are made of cells."""
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


def ring_width(scale: int) -> int:
    """Cells of a ring around what runs, for a network of a scale.

    What is subtracted from an image of the same size is found farther away: in patches among bypassed ones DnCNN
    loses 0.05 to 0.4 dB with a ring of one cell and less than 0.01 with two, EDSR 0.002 with one.
    """
    return 2 if scale == 1 else 1


def with_ring(cells: np.ndarray, running: Sequence[int], width: int) -> np.ndarray:
    """What runs in each cell of ``(rows, columns)``, see ``PatchedNetwork.with_ring``.

    Args:
        cells: places of candidates.
        running: of those that run layers of the base network, sparsest first.
        width: of the ring, in cells.
    """
    found = np.full_like(cells, NOTHING)
    for place in running:
        found[dilated(cells == place, width)] = place
    return np.where(np.isin(cells, running), cells, found)


class NotPatchable(Exception):
    """A network that cannot run patch by patch; the message says which of its layers sees more than a patch."""


class PatchedNetwork:
    """The candidates of one network, run together on one image.

    Args:
        network: its base network consists of convolutions of stride 1 that keep the size, and of what treats every
            pixel alike.
        backend: ``cpu`` and ``auto`` are the kernels, where they run; any other one is PyTorch.

    Raises NotPatchable for any other.
    """

    def __init__(self, network: RoutedNetwork, backend: str = 'dense') -> None:
        graph = patchable_graph(network)
        self.running = tuple(k for k, one in enumerate(network.subnetworks) if one.runs_base)
        """Places of the candidates that run layers of the base network."""
        places = np.full(len(network.subnetworks) + 1, NOTHING, np.int32)  # the last one is that of NOTHING
        places[list(self.running)] = np.arange(len(self.running))
        self._places = places
        self._ring = ring_width(network.sizes.scale)
        on_kernels = backend in ('auto', 'cpu') and device_of(network.module).type == 'cpu' and kernels.available()
        candidates = [network.subnetworks[k].net for k in self.running]
        self._net = kernels.PatchedNet(graph, candidates, bool(on_kernels))

    def with_ring(self, cells: np.ndarray) -> np.ndarray:
        """What runs in each cell: as wanted, and around it the same; of several neighbours' candidates the densest.

        Args:
            cells: ``(rows, columns)`` places of candidates, or ``NOTHING``.

        Returns:
            The same with ``NOTHING`` where nothing runs.
        """
        return with_ring(cells, self.running, self._ring)

    def prepare(self, x: Tensor) -> None:
        """Lets the kernels choose how each layer runs in patches, so that nothing is measured while others compute.

        Args:
            x: an image ``(1, C, H, W)`` of at least a cell each way.
        """
        self._net(x[..., :CELL, :CELL], np.full((1, 1), NOTHING, np.int32))

    def __call__(self, x: Tensor, cells: np.ndarray) -> Tensor:
        """Restores images; what comes out where nothing runs means nothing, and may be no number.

        Args:
            x: ``(B, C, H, W)`` in [0, 1], H and W multiples of ``CELL``.
            cells: ``(H / CELL, W / CELL)``, from ``with_ring``; the same for all images.

        Returns:
            ``(B, C', H · scale, W · scale)``.
        """
        return self._net(x, self._places[cells])


def patchable_graph(network: RoutedNetwork) -> fx.GraphModule:
    """The dense network's graph. Raises NotPatchable where it cannot run patch by patch."""
    if not any(one.runs_base for one in network.subnetworks):
        raise NotPatchable('its candidates are networks of their own')
    try:
        graph = trace(network.dense.net)
    except NotTraceable as error:
        raise NotPatchable(str(error)) from None
    for node in graph.graph.nodes:
        _check(graph, node)
    return graph


def _check(graph: fx.GraphModule, node: fx.Node) -> None:
    """Raises NotPatchable for a step that sees more of the image than the pixels around its own."""
    if node.op in ('placeholder', 'get_attr', 'output'):
        return
    module = module_of(graph, node)
    if isinstance(module, nn.Conv2d):
        why = _why_not(module)
        if why:
            raise NotPatchable(f'{node.target} is a convolution {why}')
        return
    name = type(module).__name__ if module is not None else function_name(node)
    if isinstance(module, _POINTWISE_MODULES) or name in _POINTWISE_FUNCTIONS:
        return
    raise NotPatchable(f'{node.name} ({name}) may see more of the image than a patch')


def _why_not(layer: nn.Conv2d) -> str:
    """Why a convolution cannot run cell by cell; empty where it can."""
    if layer.stride != (1, 1):
        return f'that changes the size (stride {layer.stride[0]})'
    side, dilation = layer.kernel_size[0], layer.dilation[0]
    if layer.kernel_size != (side, side) or layer.dilation != (dilation, dilation):
        return 'that is not square'
    if side % 2 == 0 or layer.padding != ((dilation * (side - 1)) // 2,) * 2:
        return f'that changes the size or shifts its input (kernel {side}, padding {layer.padding})'
    return '' if layer.padding_mode == 'zeros' else f'with padding {layer.padding_mode!r}'
