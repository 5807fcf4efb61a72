"""Finds, in the graph of a network, what is computed together with a layer without taps, and depthwise convolutions."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx, nn

from basicsr_classpruning.kernels.blocks import (
    Around,
    Depthwise,
    KernelPointwise,
    is_pointwise,
    norm_of_planes,
    norm_of_tokens,
)
from basicsr_classpruning.kernels.tracing import function_name, module_of

_ONE_BY_ONE = (
    nn.Sigmoid,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Hardsigmoid,
)  # what may stand between a mean and its use as factors


@dataclass(frozen=True)
class Surroundings:
    """What a layer takes over of its surroundings, and the nodes that then go."""

    around: Around
    x: fx.Node
    """What the layer reads."""
    factors: fx.Node | None
    before: tuple[fx.Node, ...]
    """Nodes that the layer replaces, before it, the last first."""
    gate: tuple[fx.Node, ...]
    """Those after it, in order."""


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def gate_after(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes of a gate: the two halves of a node's channels, and the product of them, last. Empty where is none."""
    halves = _only_reader(node)
    if halves is None or function_name(halves) != 'chunk' or halves.args[0] is not node:
        return ()
    arguments = (*halves.args[1:], *halves.kwargs.values())
    named = {'chunks': 2, 'dim': 1}
    if arguments != (2, 1) or any(named.get(name) != value for name, value in halves.kwargs.items()):
        return ()
    parts = sorted(halves.users, key=lambda part: str(part.args[1:]))
    if len(parts) != 2 or any(function_name(part) != 'getitem' for part in parts):
        return ()
    product = _only_reader(parts[0])
    if [part.args[1] for part in parts] != [0, 1] or product is None or _only_reader(parts[1]) is not product:
        return ()
    return (halves, *parts, product) if function_name(product) == 'mul' and len(product.args) == 2 else ()


def _pools(net: nn.Module, node: fx.Node) -> bool:
    """Whether a node makes the mean of each plane: (B, C, 1, 1)."""
    source = node.args[0] if node.args else None
    if function_name(node) == 'getitem' and isinstance(source, fx.Node) and node.args[1] == 1:
        return isinstance(module_of(net, source), Depthwise)
    module = module_of(net, node)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1))
    size = node.args[1] if len(node.args) == 2 else node.kwargs.get('output_size')
    return function_name(node) == 'adaptive_avg_pool2d' and size in (1, (1, 1), [1, 1])


def _are_factors(net: nn.Module, node: object) -> bool:
    """Whether a node certainly has one value for each picture and channel: made from means, by layers without taps."""
    while isinstance(node, fx.Node):
        if _pools(net, node):
            return True
        module = module_of(net, node)
        if module is None or not (is_pointwise(module) or isinstance(module, (KernelPointwise, *_ONE_BY_ONE))):
            return False
        node = node.args[0]
    return False


def surroundings(net: fx.GraphModule, node: fx.Node) -> Surroundings:
    """What the call of a layer without taps takes over."""
    layer = module_of(net, node)
    x = node.args[0]
    assert layer is not None
    assert isinstance(x, fx.Node)
    linear = isinstance(layer, nn.Linear)
    norm, factors, before = None, None, []
    if len(x.users) == 1:
        norm = (norm_of_tokens if linear else norm_of_planes)(module_of(net, x))
    if norm is not None:
        before.append(x)
        x = x.args[0]
        assert isinstance(x, fx.Node)
    elif not linear and len(x.users) == 1 and function_name(x) == 'mul' and len(x.args) == 2:
        for source, other in (x.args, x.args[::-1]):
            if isinstance(source, fx.Node) and isinstance(other, fx.Node) and _are_factors(net, other):
                before.append(x)
                x, factors = source, other
                break
    gate = () if linear else gate_after(node)
    return Surroundings(Around(norm, factors is not None, bool(gate)), x, factors, tuple(before), gate)


def fuse_depthwise(net: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Replaces depthwise 3 x 3 convolutions, gates after them and means of what they make, in place.

    Returns what is fused, by the names of the layers.
    """
    fused: dict[str, tuple[str, ...]] = {}
    for number, node in enumerate([n for n in net.graph.nodes if n.op == 'call_module']):
        layer = module_of(net, node)
        if not Depthwise.fits(layer):
            continue
        assert isinstance(layer, nn.Conv2d)
        gate = gate_after(node)
        net.add_submodule(f'kernel_depthwise.{number}', Depthwise(layer, bool(gate)))
        last = gate[-1] if gate else node
        with net.graph.inserting_after(last):
            both = net.graph.call_module(f'kernel_depthwise.{number}', (node.args[0],))
        with net.graph.inserting_after(both):
            y = net.graph.call_function(operator.getitem, (both, 0))
        with net.graph.inserting_after(y):
            means = net.graph.call_function(operator.getitem, (both, 1))
        last.replace_all_uses_with(y)
        for pool in [user for user in y.users if _pools(net, user)]:
            pool.replace_all_uses_with(means)
            net.graph.erase_node(pool)
        for replaced in (*reversed(gate), node):
            net.graph.erase_node(replaced)
        fused[str(node.target)] = ('gate',) if gate else ()
    return fused
