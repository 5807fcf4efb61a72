"""Finds what can be computed with a layer's output before it is stored: scales, activations, pixel shuffles, residuals.

Works on the graph of a network (``tracing``); where there is none, on the neighbours inside an ``nn.Sequential``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from basicsr_classpruning.kernels import native
from basicsr_classpruning.kernels.block_fusion import surroundings
from basicsr_classpruning.kernels.blocks import Around, is_pointwise
from basicsr_classpruning.kernels.int8_layers import is_int8
from basicsr_classpruning.kernels.layers import Epilogue
from basicsr_classpruning.kernels.tracing import function_name, module_of

MakeLayer = Callable[[str, Epilogue, Around], nn.Module]


def activation_of_module(module: nn.Module | None) -> Epilogue | None:
    """An activation module as an epilogue, or None where it is none of those that the kernels know."""
    if isinstance(module, nn.ReLU):
        return Epilogue('relu')
    if isinstance(module, nn.LeakyReLU):
        return Epilogue('leaky_relu', torch.tensor([module.negative_slope]))
    if isinstance(module, nn.PReLU):
        return Epilogue('prelu' if module.num_parameters > 1 else 'leaky_relu', module.weight)
    if isinstance(module, nn.GELU) and module.approximate == 'none':
        return Epilogue('gelu')
    return None


def _activation_of(net: nn.Module, node: fx.Node) -> Epilogue | None:
    if node.op == 'call_module':
        return activation_of_module(module_of(net, node))
    name = function_name(node)
    if name == 'relu':
        return Epilogue('relu')
    if name == 'leaky_relu':
        slope = node.args[1] if len(node.args) > 1 else node.kwargs.get('negative_slope', 0.01)
        return Epilogue('leaky_relu', torch.tensor([slope]))
    if name == 'gelu' and len(node.args) == 1 and node.kwargs.get('approximate', 'none') == 'none':
        return Epilogue('gelu')
    return None


def _factor(net: fx.GraphModule, value: object, channels: int) -> Tensor | None:
    """A number, or a parameter with one entry for each channel of (B, C, H, W), as a scale."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor([float(value)])
    if not isinstance(value, fx.Node) or value.op != 'get_attr':
        return None
    tensor: Any = functools.reduce(getattr, str(value.target).split('.'), net)
    shape = tuple(tensor.shape)
    per_channel = shape in ((1, channels, 1, 1), (channels, 1, 1))
    return tensor.reshape(-1) if per_channel or (channels and tensor.numel() == 1 and len(shape) <= 4) else None


class _Chain:
    """A layer's node and the nodes after it that its epilogue takes over, grown one by one."""

    def __init__(self, net: fx.GraphModule, node: fx.Node, with_around: bool) -> None:
        self.net = net
        self.nodes = [node]
        self.channels = int(getattr(module_of(net, node), 'out_channels', 0))  # 0 (linear): scales by numbers only
        self.epilogue = Epilogue()
        self.residual: fx.Node | None = None
        pointwise = with_around and is_pointwise(net.get_submodule(str(node.target)))
        self.surroundings = surroundings(net, node) if pointwise else None
        if self.around.gate:
            assert self.surroundings is not None
            self.nodes += self.surroundings.gate
            self.channels //= 2

    def grow(self) -> bool:
        """Takes over the only reader of the chain's last node, if an epilogue can."""
        if len(self.last.users) != 1:
            return False
        reader = next(iter(self.last.users))
        steps = (self._scaled, self._added, self._activated, self._shuffled)
        grown = any(step(reader) for step in steps)
        if grown:
            self.nodes.append(reader)
        return grown

    @property
    def around(self) -> Around:
        """What the layer computes beside the epilogue."""
        return Around() if self.surroundings is None else self.surroundings.around

    @property
    def last(self) -> fx.Node:
        """The node whose value the epilogue computes so far."""
        return self.nodes[-1]

    def arguments(self) -> tuple[fx.Node | None, ...]:
        """What the layer is called with."""
        found = self.surroundings
        x = found.x if found is not None else self.nodes[0].args[0]
        assert isinstance(x, fx.Node)
        factors = None if found is None else found.factors
        if factors is not None:
            return x, self.residual, factors
        return (x,) if self.residual is None else (x, self.residual)

    def _scale_by(self, factor: Tensor) -> None:
        scale = self.epilogue.scale
        self.epilogue = replace(self.epilogue, scale=factor if scale is None else scale * factor)

    def _scaled(self, reader: fx.Node) -> bool:
        if self.epilogue.activation != 'none' or self.epilogue.order != 'none' or self.epilogue.shuffle > 1:
            return False
        if self.around.gate:
            return False
        name = function_name(reader)
        left, right = (*reader.args, None)[:2]
        if name == 'mul' and left is not right:
            factor = _factor(self.net, right if left is self.last else left, self.channels)
        elif name in ('truediv', 'div') and left is self.last and isinstance(right, (int, float)):
            factor = torch.tensor([1 / right])
            if is_int8(module_of(self.net, self.nodes[0])) and math.frexp(right)[0] != 0.5:
                return False  # the product would be rounded otherwise, and int8 layers give PyTorch's bits
        elif name == 'neg':
            factor = torch.tensor([-1.0])
        else:
            return False
        if factor is not None:
            self._scale_by(factor)
        return factor is not None

    def _added(self, reader: fx.Node) -> bool:
        if self.epilogue.order != 'none' or len(reader.args) != 2 or reader.kwargs:
            return False
        name = function_name(reader)
        left, right = reader.args
        other = right if left is self.last else left
        if name not in ('add', 'sub') or not isinstance(other, fx.Node) or left is right or other.op == 'get_attr':
            return False
        if name == 'sub':
            if left is self.last or self.epilogue.activation != 'none':
                return False
            self._scale_by(torch.tensor([-1.0]))
        self.residual = other
        order = 'before' if self.epilogue.activation == 'none' and self.epilogue.shuffle == 1 else 'after'
        self.epilogue = replace(self.epilogue, order=order)
        return True

    def _activated(self, reader: fx.Node) -> bool:
        found = _activation_of(self.net, reader)
        if found is None or self.epilogue.activation != 'none' or reader.args[0] is not self.last:
            return False
        if self.epilogue.order == 'after':
            return False
        if found.activation == 'gelu' and is_int8(module_of(self.net, self.nodes[0])):
            return False  # int8 layers give PyTorch's bits, and the kernels' own GELU does not
        # Behind a shuffle, only an activation that treats all values alike may change places with it.
        allowed = (1,) if self.epilogue.shuffle > 1 else (1, self.channels)
        if found.slope is not None and found.slope.numel() not in allowed:
            return False
        self.epilogue = replace(self.epilogue, activation=found.activation, slope=found.slope)
        return True

    def _shuffled(self, reader: fx.Node) -> bool:
        module = module_of(self.net, reader)
        if isinstance(module, nn.PixelShuffle):
            factor: object = module.upscale_factor
        elif function_name(reader) == 'pixel_shuffle':
            factor = reader.args[1] if len(reader.args) > 1 else reader.kwargs.get('upscale_factor')
        else:
            return False
        if not isinstance(factor, int) or not 1 < factor <= native.MAX_SHUFFLE or self.channels % factor**2:
            return False
        if self.around != Around():  # a layer without taps and a shuffle has another kernel, for nothing but itself
            return False
        if not self.channels or self.epilogue.order != 'none' or self.epilogue.shuffle > 1:
            return False
        self.epilogue = replace(self.epilogue, shuffle=factor)
        return True


def fuse_graph(net: fx.GraphModule, names: set[str], make_layer: MakeLayer, with_around: bool = True) -> None:
    """Replaces the named layers of a graph, and what follows them, by ``make_layer(name, epilogue, around)``, in place.

    A layer that is called in several places is made once for each, as what follows it differs.

    Args:
        net: the graph.
        names: of the layers.
        make_layer: makes what replaces one.
        with_around: whether layers without taps also take over what stands before them, and gates.
    """
    calls: dict[str, int] = {}
    for node in [n for n in net.graph.nodes if n.op == 'call_module' and str(n.target) in names]:
        name = str(node.target)
        calls[name] = calls.get(name, 0) + 1
        chain = _Chain(net, node, with_around)
        while chain.grow():
            pass
        target = name if calls[name] == 1 else f'{name}_call{calls[name]}'
        net.add_submodule(f'kernel_layers.{target}', make_layer(name, chain.epilogue, chain.around))
        arguments = chain.arguments()
        with net.graph.inserting_after(chain.last):
            fused = net.graph.call_module(f'kernel_layers.{target}', arguments)
        chain.last.replace_all_uses_with(fused)
        for replaced in (*reversed(chain.nodes), *(chain.surroundings.before if chain.surroundings else ())):
            net.graph.erase_node(replaced)
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
