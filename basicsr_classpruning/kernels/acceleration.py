"""Turns a frozen candidate network into one whose layers run on the N:M kernels."""

from __future__ import annotations

import collections
import copy
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from basicsr_classpruning.kernels import int8_native, native
from basicsr_classpruning.kernels.block_fusion import fuse_depthwise
from basicsr_classpruning.kernels.blocks import (
    NOTHING_AROUND,
    SWIN_LAYERS,
    Around,
    KernelPointwise,
    is_pointwise,
    swin_block,
)
from basicsr_classpruning.kernels.enlargement import replace_bilinear
from basicsr_classpruning.kernels.fusion import activation_of_module, fuse_graph
from basicsr_classpruning.kernels.int8_graph import keep_integers
from basicsr_classpruning.kernels.int8_layers import Int8KernelLayer, int8_layer, is_int8
from basicsr_classpruning.kernels.layers import Epilogue, KernelConv2d, KernelLayer
from basicsr_classpruning.kernels.tracing import NotTraceable, trace
from basicsr_classpruning.sparsity.pattern import Pattern

logger = logging.getLogger('basicsr_classpruning')


@dataclass(frozen=True)
class LayerPlan:
    """What one layer of an accelerated network runs on."""

    name: str
    """Dotted name in the network."""
    engine: str
    """``'avx512'``, ``'avx2'`` or ``'reference'`` (the N:M kernels), or ``'torch'``; for layers of 8-bit integers
    ``'int8-avx512vnni'``, ``'int8-avxvnni'``, ``'int8-avx2'`` or ``'int8-reference'``."""
    why: str
    """Why the layer stays with torch; empty otherwise."""
    fused: tuple[str, ...]
    """What is computed before the layer's output is stored: ``'scale'``, an activation, ``'residual'``."""


def accelerate(net: nn.Module, patterns: Mapping[str, Pattern]) -> nn.Module:
    """Copies a frozen candidate network, its layers packed for the N:M kernels.

    Bias, scale, activation and residual are fused into the kernels where the network can be traced; elsewhere the
    activations inside an ``nn.Sequential`` are. Dense convolutions run on the same kernels, so that all activations
    stay in one memory format. Layers of 8-bit integers (``sparsity.int8``) run on kernels of their own, which compute
    the same bits; in a network that can be traced, what only such layers read stays in integers between them. Whatever
    the kernels cannot run stays as it is.

    Args:
        net: plain ``nn.Conv2d`` and ``nn.Linear`` layers with zeros in place, eval mode, float32, on the CPU. It is not
            changed.
        patterns: patterns of the pruned layers, by dotted name. Only linear layers need one: a dense linear layer stays
            with torch.

    Returns:
        A module with the same forward, for inference: ``(B, C, H, W)`` float32.
    """
    return _Acceleration(net, patterns).run()


def plan(net: nn.Module, patterns: Mapping[str, Pattern]) -> list[LayerPlan]:
    """What each convolution and linear layer runs on after ``accelerate(net, patterns)``, in the network's order."""
    acceleration = _Acceleration(net, patterns)
    acceleration.run()
    engine = native.available() or native.REFERENCE
    int8_engine = f'int8-{int8_native.available() or native.REFERENCE}'
    plans = []
    for name, why in acceleration.why_torch.items():
        fused = acceleration.fused.get(name)
        if fused is None:
            plans.append(LayerPlan(name, 'torch', why or 'not called in the forward pass', ()))
        else:
            used = int8_engine if is_int8(acceleration.layers[name]) else engine
            plans.append(LayerPlan(name, used, '', fused))
    return plans


def why_torch(layer: nn.Module, pruned: bool) -> str:
    """Why the kernels do not run a layer; empty where they do."""
    if not is_int8(layer) and type(layer) not in (nn.Conv2d, nn.Linear):
        return f'{type(layer).__name__}: not an nn.Conv2d or nn.Linear itself'
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    if weight.dtype != torch.float32 or weight.device.type != 'cpu':
        return f'weights are {weight.dtype} on {weight.device.type}, not float32 on the CPU'
    if isinstance(layer, nn.Linear):
        return '' if pruned or is_int8(layer) else 'a dense linear layer'
    assert isinstance(layer, nn.Conv2d)
    if layer.groups != 1:
        return f'a convolution in {layer.groups} groups'
    if layer.padding_mode != 'zeros' or isinstance(layer.padding, str):
        return f'padding {layer.padding_mode!r}, {layer.padding!r}'
    if max(layer.stride) > native.MAX_STRIDE:
        return f'stride {layer.stride}'
    return ''


class _Acceleration:
    """One network on its way: which layers the kernels run, and what was fused into them."""

    def __init__(self, net: nn.Module, patterns: Mapping[str, Pattern]) -> None:
        self.net = net
        self.layers = {n: m for n, m in net.named_modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))}
        self.why_torch = {name: why_torch(layer, name in patterns) for name, layer in self.layers.items()}
        self.fused: dict[str, tuple[str, ...]] = {}

    def run(self) -> nn.Module:
        """The accelerated copy."""
        chosen = {name for name, why in self.why_torch.items() if not why}
        try:
            traced = trace(self.net)
        except NotTraceable as error:
            logger.info('%s: only neighbours in an nn.Sequential are fused', error)
            return self._replace(chosen).eval()
        if native.available() is not None:
            self.fused.update(fuse_depthwise(traced))
            replace_bilinear(traced, (self.layers[name] for name in chosen))
        fuse_graph(traced, chosen, self._make)
        keep_integers(traced)
        return traced.eval()

    def _make(self, name: str, epilogue: Epilogue, around: Around = NOTHING_AROUND) -> KernelLayer | Int8KernelLayer:
        self.fused[name] = (*around.fused, *epilogue.fused)
        layer = self.layers[name]
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        if is_int8(layer):
            return int8_layer(layer, epilogue)
        if is_pointwise(layer) and epilogue.shuffle == 1:
            return KernelPointwise(layer, epilogue, around)
        assert isinstance(layer, nn.Conv2d)
        return KernelConv2d(layer, epilogue)

    def _replace(self, chosen: set[str]) -> nn.Module:
        """A copy with the chosen layers replaced where they are, and the activations that follow them in a sequence."""
        following = dict(_activations_in_sequence(self.net))
        made: dict[int, object] = {}
        for name in self._replace_blocks(chosen, made):
            layer = self._make(name, following[name][1] if name in following else Epilogue())
            layer.weight = self.layers[name].weight.detach()  # code that could not be traced may read it
            made[id(self.layers[name])] = layer
        replaced = copy.deepcopy(self.net, made)
        for name, (activation, _) in following.items():
            if name in chosen:
                parent, _, child = activation.rpartition('.')
                replaced.get_submodule(parent)._modules[child] = nn.Identity()
        return replaced

    def _replace_blocks(self, chosen: set[str], made: dict[int, object]) -> list[str]:
        """Makes the Swin blocks, by the ids of those that they replace. Returns the names of the layers in no block."""
        left = set(chosen)
        if native.available() is None:
            return sorted(left)
        for name, module in self.net.named_modules():
            block = swin_block(module)
            if block is None:
                continue
            made[id(module)] = block
            for part in SWIN_LAYERS:
                path = f'{name}.{part}'.lstrip('.')
                self.fused[path] = block.fused(part)
                left.discard(path)
        return sorted(left)


def _activations_in_sequence(net: nn.Module) -> Iterator[tuple[str, tuple[str, Epilogue]]]:
    """Layers that an activation follows in a plain ``nn.Sequential``: (layer, (name of the activation, epilogue))."""
    places = collections.Counter(id(module) for _, module in net.named_modules(remove_duplicate=False))
    for name, parent in net.named_modules():
        if type(parent) is not nn.Sequential:
            continue
        for (child, layer), (after, activation) in itertools.pairwise(parent.named_children()):
            epilogue = activation_of_module(activation)
            fits = epilogue is not None and (epilogue.activation != 'prelu' or isinstance(layer, nn.Conv2d))
            fits = fits and not (is_int8(layer) and epilogue is not None and epilogue.activation == 'gelu')
            if epilogue is not None and fits and places[id(layer)] == 1:
                prefix = f'{name}.' if name else ''
                yield prefix + child, (prefix + after, epilogue)
