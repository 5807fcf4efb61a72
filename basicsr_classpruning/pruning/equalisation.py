"""Gives the hidden channels of a network ranges of one size, before its layers round their inputs to 8-bit integers.

All channels that a layer receives share the steps of one range, so those with small values keep few of the 256 levels.
Between layers that are tied by nothing but ReLUs, sums and factors, a channel may be divided by any s > 0 where it is
made and multiplied by it where it is read, and the network computes the same: relu(x / s) · s = relu(x). With s the
channel's own largest value, each has all levels ("Data-Free Quantization Through Weight Equalization and Bias
Correction", Nagel et al., ICCV 2019, there from the weights' ranges; here from the activations').
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, fx, nn

from basicsr_classpruning.kernels.tracing import NotTraceable, function_name, module_of, trace

_LEAST = 1 / 4
"""The least s. The rounding of the largest channels is most of what is lost by then; the others keep some room above
what calibration pictures show, and the weights that read them enough of their integers."""
_SAME_CHANNELS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout)
_SAME_CHANNELS_CALLED = ('relu', 'leaky_relu', 'add', 'sub', 'mul', 'truediv', 'div')


@dataclass
class ChannelGroup:
    """Values whose channels are scaled together, as they are added to each other or made of each other."""

    producers: list[str] = field(default_factory=list)
    """Convolutions that make them."""
    consumers: list[str] = field(default_factory=list)
    """Convolutions that read them."""
    fixed: bool = False
    """Whether something else makes or reads them too."""


def channel_groups(net: nn.Module) -> list[ChannelGroup]:
    """The groups of a network's values that can be scaled; none where it cannot be traced."""
    try:
        graph = trace(net)
    except NotTraceable:
        return []
    groups: dict[fx.Node, ChannelGroup] = {}

    def join(first: fx.Node, second: fx.Node) -> None:
        one, other = groups[first], groups[second]
        if one is other:
            return
        one.producers += other.producers
        one.consumers += other.consumers
        one.fixed |= other.fixed
        groups.update({node: one for node, group in groups.items() if group is other})

    # What is called several times, or whose weight other code reads too, is left alone.
    uses = [str(node.target) for node in graph.graph.nodes if node.op == 'call_module']
    uses += [str(node.target).rpartition('.')[0] for node in graph.graph.nodes if node.op == 'get_attr']
    for node in graph.graph.nodes:
        groups[node] = ChannelGroup()
        module = module_of(graph, node)
        if _is_plain(module) and uses.count(str(node.target)) == 1 and len(node.all_input_nodes) == 1:
            groups[node].producers.append(str(node.target))
            groups[node.all_input_nodes[0]].consumers.append(str(node.target))
        elif _keeps_channels(node, module):
            for source in node.all_input_nodes:
                join(node, source)
        else:
            for value in (node, *node.all_input_nodes):
                groups[value].fixed = True
    found = {id(group): group for group in groups.values()}.values()
    return [group for group in found if group.producers and group.consumers and not group.fixed and _fit(net, group)]


def _is_plain(module: nn.Module | None) -> bool:
    # The class itself: another may compute something else with its weight.
    return type(module) is nn.Conv2d and module.groups == 1 and 'weight' in module._parameters


def _convolution(net: nn.Module, name: str) -> nn.Conv2d:
    layer = net.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return layer


def _keeps_channels(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node makes s · y of s · x, channel by channel."""
    if module is not None:
        return isinstance(module, _SAME_CHANNELS)
    name = function_name(node)
    if name not in _SAME_CHANNELS_CALLED or not node.args or 'rounding_mode' in node.kwargs:
        return False
    values = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
    if name in ('add', 'sub'):
        return len(values) == 2
    return len(values) == 1 and (values[0] is node.args[0] or name == 'mul')


def _fit(net: nn.Module, group: ChannelGroup) -> bool:
    """Whether all layers count the same channels: a sum may repeat the one of its terms."""
    made = {_convolution(net, name).out_channels for name in group.producers}
    read = {_convolution(net, name).in_channels for name in group.consumers}
    return len(made | read) == 1


@torch.no_grad()
def equalise_channels(net: nn.Module, names: Collection[str], batches: Sequence[Tensor]) -> int:
    """Equalises in place what layers receive; the network computes the same, up to the rounding of float32.

    Args:
        net: the dense network, in eval mode.
        names: the layers that are to round their inputs.
        batches: calibration inputs ``(B, C, H, W)``.

    Returns:
        How many groups of channels were scaled.
    """
    groups = [group for group in channel_groups(net) if not set(names).isdisjoint(group.consumers)]
    largest = _largest_inputs(net, [name for group in groups for name in group.consumers if name in names], batches)
    scaled = 0
    for group in groups:
        seen = [largest[name] for name in group.consumers if name in largest]
        # A layer that is not reached says nothing; values that are not finite are reported where ranges are measured.
        shares = [each / each.max() for each in seen if 0 < float(each.max()) < math.inf]
        if not shares:
            continue
        share = torch.stack(shares).amax(0)
        scale = (share / share.max()).clamp(min=_LEAST)
        for name in group.producers:
            layer = _convolution(net, name)
            layer.weight.div_(scale.reshape(-1, 1, 1, 1))
            if layer.bias is not None:
                layer.bias.div_(scale)
        for name in group.consumers:
            _convolution(net, name).weight.mul_(scale.reshape(1, -1, 1, 1))
        scaled += 1
    return scaled


def _largest_inputs(net: nn.Module, names: Sequence[str], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """The largest absolute value of each channel ``(C,)`` that layers receive, over all batches."""
    largest: dict[str, Tensor] = {}

    def see(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = inputs[0].abs().amax((0, 2, 3))
        largest[name] = torch.maximum(largest[name], found) if name in largest else found

    hooks = [net.get_submodule(name).register_forward_pre_hook(partial(see, name)) for name in names]
    try:
        for batch in batches:
            net(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
