"""Puts sparse layers into a network, and takes plain candidate networks out of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from basicsr_classpruning.sparsity.layers import Selection, SparseConv2d, SparseLayer, SparseLinear
from basicsr_classpruning.sparsity.masks import mismatch
from basicsr_classpruning.sparsity.pattern import Pattern

# Exact classes only: a subclass may compute something else with its weight.
_SPARSE_CLASSES: dict[type, type[SparseConv2d] | type[SparseLinear]] = {
    nn.Conv2d: SparseConv2d,
    nn.Linear: SparseLinear,
}


@dataclass(frozen=True)
class LayerChoice:
    """Whether one layer of a network is pruned."""

    name: str
    """Dotted name of the (first place of the) layer in the network."""
    patterns: tuple[Pattern, ...]
    """Pattern of each candidate, cheapest first; empty where the layer stays dense."""
    reason: str
    """Why the layer stays dense; empty where it is pruned."""


def choose_layers(
    net: nn.Module,
    patterns: Sequence[Pattern],
    skip: Sequence[str] = (),
    layer_patterns: Mapping[str, Sequence[Pattern]] | None = None,
) -> list[LayerChoice]:
    """Decides for every layer with a weight whether it is pruned, and how.

    Args:
        net: any network.
        patterns: pattern of each candidate, cheapest first.
        skip: regular expressions; a layer whose dotted name one of them matches (``re.search``) stays dense.
        layer_patterns: patterns that replace the general ones in layers whose name the expression matches.
    """
    choices = []
    first = True
    for name, module in net.named_modules():
        weight = getattr(module, 'weight', None)
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) or weight is None:
            continue
        own_patterns = tuple(patterns)
        for expression, replacement in (layer_patterns or {}).items():
            if re.search(expression, name):
                own_patterns = tuple(replacement)
        reason = _why_dense(module, own_patterns[0])
        if not reason and first:
            reason = 'the first layer'
        if not reason and any(re.search(expression, name) for expression in skip):
            reason = 'named in skip'
        if type(module) in _SPARSE_CLASSES:
            first = False
        choices.append(LayerChoice(name, () if reason else own_patterns, reason))
    return choices


def _why_dense(module: nn.Module, pattern: Pattern) -> str:
    if type(module) not in _SPARSE_CLASSES:
        return f'a {type(module).__name__}, not an nn.Conv2d or nn.Linear itself'
    if getattr(module, 'groups', 1) != 1:
        return 'a grouped convolution'
    return mismatch(module.weight, pattern)  # type: ignore[arg-type]


def sparsify(net: nn.Module, choices: Sequence[LayerChoice], own_weights: bool) -> Selection:
    """Replaces the chosen layers of a network in place; parameter names stay as they are.

    Returns:
        The selection that all new layers obey.
    """
    selection = Selection()
    chosen = {choice.name: choice.patterns for choice in choices if choice.patterns}
    replaced: dict[nn.Module, nn.Module] = {}
    # With duplicates, so that a module used in several places is replaced by one layer in all of them.
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if name in chosen:
            sparse_class = _SPARSE_CLASSES[type(module)]
            replaced[module] = sparse_class.from_dense(module, chosen[name], own_weights, selection)
    for parent in list(net.modules()):
        for child_name, child in list(parent._modules.items()):
            if child in replaced:
                parent._modules[child_name] = replaced[child]
    return selection


def sparse_layers(net: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    """The sparse layers of a network with their names."""
    for name, module in net.named_modules():
        if isinstance(module, (SparseConv2d, SparseLinear)):
            yield name, module


def freeze(net: nn.Module, candidate: int) -> nn.Module:
    """Copies a network as one candidate: plain layers, zeros in place, no gradients, eval mode.

    Args:
        net: a network with sparse layers.
        candidate: index of the candidate, or ``layers.DENSE`` for the dense weights.
    """
    memo: dict[int, object] = {id(layer): layer.frozen(candidate) for _, layer in sparse_layers(net)}
    frozen = copy.deepcopy(net, memo)
    return frozen.eval().requires_grad_(False)
