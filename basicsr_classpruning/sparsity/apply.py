"""Puts sparse layers into a network, and takes plain candidate networks out of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from basicsr_classpruning.sparsity.layers import (
    Selection,
    SparseConv2d,
    SparseConvTranspose2d,
    SparseLayer,
    SparseLinear,
)
from basicsr_classpruning.sparsity.masks import mismatch
from basicsr_classpruning.sparsity.orientation import by_output, channels_of, groups_of
from basicsr_classpruning.sparsity.pattern import Pattern

# Exact classes only: a subclass may compute something else with its weight.
_SPARSE_CLASSES: dict[type, type[SparseLayer]] = {
    nn.Conv2d: SparseConv2d,
    nn.ConvTranspose2d: SparseConvTranspose2d,
    nn.Linear: SparseLinear,
}


@dataclass(frozen=True)
class LayerChoice:
    """Whether one layer of a network is pruned."""

    name: str
    """Dotted name of the (first place of the) layer in the network."""
    patterns: tuple[Pattern, ...]
    """Pattern of each candidate, sparsest first; empty where the layer stays dense."""
    reason: str
    """Why the layer stays dense; empty where it is pruned."""
    channels: int = 0
    """Input channels that one output channel sees; 0 where the layer stays dense."""
    fp32: str = ''
    """Why candidates of 8-bit integers compute a pruned layer in float32; empty where they do not."""

    def kept(self, candidate: int) -> Fraction:
        """Share of the layer's weights, and MACs, that a candidate keeps."""
        return Fraction(self.patterns[candidate].kept(self.channels), self.channels) if self.patterns else Fraction(1)


@dataclass(frozen=True)
class LayerUse:
    """How a network uses its layers, as a run of it shows."""

    first: str = ''
    """Name of the first layer with a weight that runs; empty where that is not known."""
    read: frozenset[str] = frozenset()
    """Names of layers whose weights the network's own code reads, besides or instead of calling the layer."""


def choose_layers(
    net: nn.Module,
    patterns: Sequence[Pattern],
    skip: Sequence[str] = (),
    layer_patterns: Mapping[str, Sequence[Pattern]] | None = None,
    use: LayerUse | None = None,
    fp32: Sequence[str] = (),
) -> list[LayerChoice]:
    """Decides for every layer with a weight whether it is pruned, and how.

    Args:
        net: any network.
        patterns: pattern of each candidate, sparsest first.
        skip: regular expressions; a layer whose dotted name one of them matches (``re.search``) stays dense.
        layer_patterns: patterns that replace the general ones in layers whose name the expression matches.
        fp32: regular expressions of layers that candidates of 8-bit integers compute in float32.
        use: what a run of the network showed. The first layer stays dense: the first that runs, or, where that is not
            known, the first one defined.
    """
    use = use or LayerUse()
    layers = {name: module for name, module in net.named_modules() if is_layer(module)}
    first = use.first or next((name for name, module in layers.items() if can_be_first(module)), '')
    choices = []
    for name, module in layers.items():
        own_patterns = tuple(patterns)
        for expression, replacement in (layer_patterns or {}).items():
            if re.search(expression, name):
                own_patterns = tuple(replacement)
        reason = 'the first layer' if name == first else _why_dense(module, own_patterns[0])
        if not reason and name in use.read:
            reason = 'its weight is used by other code too'
        if not reason and any(re.search(expression, name) for expression in skip):
            reason = 'named in skip'
        if reason:
            choices.append(LayerChoice(name, (), reason))
        else:
            named = any(re.search(expression, name) for expression in fp32)
            why = 'named in fp32' if named else why_not_int8(module)
            choices.append(LayerChoice(name, own_patterns, '', channels_of(module), why))
    return choices


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution of any kind or a linear layer, with a weight."""
    return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and getattr(module, 'weight', None) is not None


def why_not_int8(module: nn.Module) -> str:
    """Why a layer that can be pruned cannot multiply 8-bit integers; empty where it can."""
    if isinstance(module, nn.ConvTranspose2d):
        return 'a transposed convolution'
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f'a convolution in {module.groups} groups'
    if isinstance(module, nn.Conv2d) and module.padding_mode != 'zeros':
        return f'padding {module.padding_mode!r}'
    return ''


def can_be_first(module: nn.Module) -> bool:
    """Whether a layer counts as the first one of its network: one that could be pruned elsewhere."""
    return type(module) in _SPARSE_CLASSES


def _why_dense(module: nn.Module, pattern: Pattern) -> str:
    if type(module) not in _SPARSE_CLASSES:
        return f'a {type(module).__name__}, not an nn.Conv2d, nn.ConvTranspose2d or nn.Linear itself'
    if 'weight' not in module._parameters:
        return 'its weight is computed from others (weight or spectral normalisation)'
    assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    return mismatch(by_output(module, module.weight), pattern, groups_of(module))


def sparsify(net: nn.Module, choices: Sequence[LayerChoice], own_weights: bool, int8: Sequence[bool] = ()) -> Selection:
    """Turns the chosen layers of a network into sparse ones in place; parameter names stay as they are.

    Args:
        net: the network.
        choices: what ``choose_layers`` chose.
        own_weights: whether each sparse candidate has weights of its own.
        int8: which of the candidates multiply 8-bit integers, by default none.

    Returns:
        The selection that all new layers obey.
    """
    selection = Selection()
    chosen = {choice.name: choice for choice in choices if choice.patterns}
    for name, module in list(net.named_modules()):
        if name in chosen:
            choice = chosen[name]
            own_int8 = [] if choice.fp32 else [k for k, is_int8 in enumerate(int8) if is_int8]
            _SPARSE_CLASSES[type(module)].from_dense(module, choice.patterns, own_weights, selection, own_int8)
    return selection


def sparse_layers(net: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    """The sparse layers of a network with their names."""
    for name, module in net.named_modules():
        if isinstance(module, SparseLayer):
            yield name, module


def freeze(net: nn.Module, candidate: int | None) -> nn.Module:
    """Copies a network as one candidate: plain layers, zeros in place, no gradients, eval mode.

    Args:
        net: a network with sparse layers.
        candidate: index of the candidate, or None for the dense weights.
    """
    memo: dict[int, object] = {id(layer): layer.frozen(candidate) for _, layer in sparse_layers(net)}
    frozen = copy.deepcopy(net, memo)
    return frozen.eval().requires_grad_(False)
