"""Bilinear enlargement on the convolution kernels, which take a seventh of PyTorch's time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from basicsr_classpruning.kernels import native
from basicsr_classpruning.kernels.int8_layers import is_int8
from basicsr_classpruning.kernels.layers import Epilogue, KernelConv2d
from basicsr_classpruning.kernels.tracing import function_name, module_of


class BilinearEnlargement(nn.Module):
    """``functional.interpolate(mode='bilinear')`` by a whole factor: a filter of 3 × 3 pixels for each phase.

    Args:
        scale: output side over input side, 2 to ``native.MAX_SHUFFLE``.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        along = torch.zeros(scale, 3)
        for phase in range(scale):
            place = (phase + 0.5) / scale - 0.5
            before = math.floor(place)
            along[phase, before + 1] += 1 - (place - before)
            along[phase, before + 2] += place - before
        filters = nn.Conv2d(1, scale**2, 3, bias=False).requires_grad_(False)
        filters.weight.copy_(torch.einsum('iy,jx->ijyx', along, along).reshape(filters.weight.shape))
        self.filters = KernelConv2d(filters, Epilogue(shuffle=scale))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H · scale, W · scale)``."""
        planes = functional.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode='replicate')
        return self.filters(planes).unflatten(0, x.shape[:2])[:, :, 0]


def replace_bilinear(graph: fx.GraphModule, layers: Iterable[nn.Module]) -> None:
    """Lets bilinear enlargements of a graph run on the kernels, in place.

    Not where all layers on the kernels are of 8-bit integers: such networks give PyTorch's bits.

    Args:
        graph: the network's.
        layers: those that run on the kernels.
    """
    if all(is_int8(layer) for layer in layers):
        return
    for node in list(graph.graph.nodes):
        scale = _scale_of(graph, node)
        if scale is None:
            continue
        graph.add_submodule(f'enlarge_{node.name}', BilinearEnlargement(scale))
        with graph.graph.inserting_after(node):
            enlarged = graph.graph.call_module(f'enlarge_{node.name}', (node.args[0],))
        node.replace_all_uses_with(enlarged)
        graph.graph.erase_node(node)


def _scale_of(graph: fx.GraphModule, node: fx.Node) -> int | None:
    """The factor of a bilinear enlargement by 2 to ``native.MAX_SHUFFLE``; None of anything else."""
    module = module_of(graph, node)
    given: dict[str, Any]
    if isinstance(module, nn.Upsample):
        given = {name: getattr(module, name) for name in ('size', 'scale_factor', 'mode', 'align_corners')}
    elif function_name(node) == 'interpolate' and len(node.args) == 1:
        given = dict(node.kwargs)
    else:
        return None
    if given.pop('mode', None) != 'bilinear':
        return None
    scale = given.pop('scale_factor', None)
    if any(given.values()) or not isinstance(scale, (int, float)) or scale != int(scale):
        return None
    return int(scale) if 1 < scale <= native.MAX_SHUFFLE else None
