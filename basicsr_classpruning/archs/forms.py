"""A network in the form that a step of the work needs, whatever form it has."""

from __future__ import annotations

from torch import nn

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.archs.one_image_arch import as_one_image
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.routing.network import RoutedNetwork


def as_routed(net: nn.Module | RoutedNetwork) -> RoutedNetwork:
    """As inference sees it: what ``basicsr_classpruning.load`` returns, or any module, taken as a dense network.

    Raises UserError for a network that takes no image of any size.
    """
    if isinstance(net, RoutedNetwork):
        return net
    if isinstance(net, (ClassPruning, DenseNetwork)):
        return net.eval().routed()
    net, options, inputs = as_one_image(net.eval(), {'type': type(net).__name__})
    return DenseNetwork(net, inputs, options).routed()


def as_dense(net: ClassPruning | DenseNetwork) -> DenseNetwork:
    """The unpruned network: of a ClassPruning one the dense weights of its base network."""
    if isinstance(net, DenseNetwork):
        return net
    return DenseNetwork(net.dense.net, net.inputs, net.options['base'])


def as_classpruning(net: ClassPruning | DenseNetwork) -> ClassPruning:
    """The network, if it is one that routes. Raises UsageError for a dense one."""
    if isinstance(net, DenseNetwork):
        raise UsageError('a dense network has no classifier; prune it first')
    return net
