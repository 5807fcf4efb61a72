"""A network as a graph without in-place operations, where that is possible without running it."""

from __future__ import annotations

import copy
import operator

from torch import fx, nn

from basicsr_classpruning.kernels.blocks import norm_of_planes
from basicsr_classpruning.sparsity.int8 import Int8Conv2d, Int8Linear

_INPLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
# What certainly returns memory of its own: only such results may be changed in place without another name for the
# same memory seeing it.
_FRESH_MODULES = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.BatchNorm2d,
    nn.LayerNorm,
    nn.PReLU,
    nn.GELU,
    nn.Sigmoid,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ReLU,
    nn.LeakyReLU,
    nn.AdaptiveAvgPool2d,
)
_FRESH_FUNCTIONS = {
    'add',
    'sub',
    'mul',
    'truediv',
    'conv2d',
    'linear',
    'cat',
    'interpolate',
    'pixel_shuffle',
    'prelu',
    'gelu',
}


class NotTraceable(Exception):
    """A network that cannot be turned into a graph; the message says why."""


class _Tracer(fx.Tracer):
    """Keeps whole, beside torch's layers, those of 8-bit integers, and normalisations of channels, which every code
    base writes in its own way."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        # Found before tracing, which changes what modules and parameters are.
        self.norms = {name for name, module in net.named_modules() if norm_of_planes(module) is not None}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is not traced into."""
        own = module_qualified_name in self.norms or type(m) in (Int8Conv2d, Int8Linear)
        return own or super().is_leaf_module(m, module_qualified_name)


def trace(net: nn.Module) -> fx.GraphModule:
    """A copy of a network as a graph module whose operations all return new tensors.

    Raises NotTraceable where the network's control flow depends on its input, or where in-place operations cannot be
    told apart. The trace holds for every input size: sizes are traced too, never fixed.
    """
    # Some networks keep a value of the forward pass on themselves: the traced copy is thrown away.
    try:
        graph = _Tracer(net).trace(copy.deepcopy(net))
        traced = fx.GraphModule(copy.deepcopy(net), graph)
    except Exception as error:  # tracing runs the network's own code, which may fail in any way
        raise NotTraceable(f'{type(net).__name__} cannot be traced ({str(error).splitlines()[0]})') from error
    inplace = [node for node in graph.nodes if _is_inplace(traced, node)]
    for node in inplace:
        _rename_changed(traced, node, inplace)
    for node in inplace:
        _make_pure(traced, node)
    graph.lint()
    traced.recompile()
    return traced


def module_of(net: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, or None."""
    return net.get_submodule(str(node.target)) if node.op == 'call_module' else None


def function_name(node: fx.Node) -> str:
    """The name of the function or tensor method that a node calls: ``'add'`` for all additions; otherwise ''."""
    if node.op == 'call_function':
        return getattr(node.target, '__name__', '')
    return str(node.target) if node.op == 'call_method' else ''


def _is_inplace(net: nn.Module, node: fx.Node) -> bool:
    if node.op not in ('call_function', 'call_method', 'call_module'):
        return False
    name = function_name(node)
    if name == 'setitem' or 'out' in node.kwargs:
        raise NotTraceable(f'it writes into a tensor ({node.format_node()})')
    module = module_of(net, node)
    return (
        node.target in _INPLACE_OPERATORS
        or (name.endswith('_') and not name.endswith('__'))
        or bool(node.kwargs.get('inplace'))
        or bool(getattr(module, 'inplace', False))
    )


def _is_fresh(net: nn.Module, node: fx.Node) -> bool:
    module = module_of(net, node)
    if module is not None:
        return isinstance(module, _FRESH_MODULES)
    return function_name(node) in _FRESH_FUNCTIONS


def _rename_changed(traced: fx.GraphModule, node: fx.Node, inplace: list[fx.Node]) -> None:
    """Lets every later reader of the tensor that an in-place node changes read the node's own result."""
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node) or not (changed in inplace or _is_fresh(traced, changed)):
        raise NotTraceable(f'{node.format_node()} changes a tensor in place that may have another name')
    if not all(reader in inplace or _is_fresh(traced, reader) for reader in changed.users):
        raise NotTraceable(f'{node.format_node()} changes a tensor in place that may have another name')
    order = {other: i for i, other in enumerate(traced.graph.nodes)}
    for reader in list(changed.users):
        if order[reader] > order[node]:
            reader.replace_input_with(changed, node)


def _make_pure(traced: fx.GraphModule, node: fx.Node) -> None:
    """Lets an in-place node return a new tensor."""
    if node.op == 'call_module':
        name = str(node.target)
        module = copy.copy(traced.get_submodule(name))
        setattr(module, 'inplace', False)  # noqa: B010  (an attribute of some modules only)
        traced.add_submodule(name, module)
    elif node.target in _INPLACE_OPERATORS:
        node.target = _INPLACE_OPERATORS[node.target]
    elif node.op == 'call_method':
        node.target = str(node.target)[:-1]
    elif 'inplace' in node.kwargs:
        node.update_kwarg('inplace', False)
    else:
        raise NotTraceable(f'{node.format_node()} changes a tensor in place')
