"""Keeps activations in integers between layers of 8-bit integers, in the graph of a network."""

from __future__ import annotations

import collections
import operator

from torch import fx

from basicsr_classpruning.kernels.int8_layers import Int8KernelConv2d, Quantize, Range
from basicsr_classpruning.kernels.tracing import module_of


def keep_integers(net: fx.GraphModule) -> None:
    """Quantises each value once for all convolutions of one input range that read it, in place.

    A convolution of integers makes the activations itself, and floats beside them only where something else reads its
    output. After any other node, and for further ranges, an operator of its own quantises.
    """
    for node in list(net.graph.nodes):
        readers = _readers(net, node)
        producer = module_of(net, node)
        if readers and isinstance(producer, Int8KernelConv2d):
            most = max(readers, key=lambda found: len(readers[found]))
            _make_integers(net, node, producer, most, readers.pop(most))
        source = _floats(node)
        for i, (value_range, layers) in enumerate(readers.items()):
            name = f'quantize.{node.name}_{i}'
            net.add_submodule(name, Quantize(value_range))
            with net.graph.inserting_after(source):
                quantized = net.graph.call_module(name, (source,))
            _read(layers, quantized)
    _overwrite_residuals(net)
    net.graph.lint()
    net.recompile()


def _overwrite_residuals(net: fx.GraphModule) -> None:
    """Lets layers of integers store their floats over a residual that only such layers read, and they last."""
    order = {node: i for i, node in enumerate(net.graph.nodes)}
    for node in net.graph.nodes:
        layer = module_of(net, node)
        residual = node.args[1] if len(node.args) > 1 else None
        if not isinstance(layer, Int8KernelConv2d) or not isinstance(residual, fx.Node):
            continue
        maker = residual.args[0] if residual.target is operator.getitem else residual
        alone = isinstance(maker, fx.Node) and isinstance(module_of(net, maker), Int8KernelConv2d)
        readers = [user for user in residual.users if isinstance(module_of(net, user), Int8KernelConv2d)]
        last = max(residual.users, key=order.__getitem__)
        layer.may_overwrite = alone and len(readers) == len(residual.users) and last is node


def _readers(net: fx.GraphModule, node: fx.Node) -> dict[Range, list[fx.Node]]:
    """The convolutions of integers that read a node as their input, by input range."""
    readers: dict[Range, list[fx.Node]] = collections.defaultdict(list)
    for reader in node.users:
        layer = module_of(net, reader)
        if isinstance(layer, Int8KernelConv2d) and reader.args[0] is node:
            readers[layer.range].append(reader)
    return readers


def _read(layers: list[fx.Node], activations: fx.Node) -> None:
    for layer in layers:
        layer.args = (activations, *layer.args[1:])


def _make_integers(
    net: fx.GraphModule, node: fx.Node, producer: Int8KernelConv2d, value_range: Range, layers: list[fx.Node]
) -> None:
    """Lets a convolution of integers make the activations that some layers read."""
    producer.makes = value_range
    others = [user for user in node.users if user not in layers or node in user.args[1:]]
    producer.makes_floats = bool(others)
    if not others:
        return
    with net.graph.inserting_after(node):
        floats = net.graph.call_function(operator.getitem, (node, 0))
        activations = net.graph.call_function(operator.getitem, (node, 1))
    _read(layers, activations)
    for user in others:
        user.replace_input_with(node, floats)


def _floats(node: fx.Node) -> fx.Node:
    """The node whose value a layer's floats are: its first item where it makes a pair."""
    items = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    return items[0] if items else node
