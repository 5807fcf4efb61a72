"""MACs of a network and of its candidates: mmengine counts the dense layers, the patterns say what is left of them."""

from __future__ import annotations

import collections
import contextlib
import copy
import math
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from basicsr_classpruning.devices import device_of, on_one_thread
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sparsity.apply import LayerChoice

_KINDS = {
    'parameters outside of layers': ('conv', 'linear', 'addmm'),
    'attention and other products': ('matmul', 'mm', 'einsum', 'scaled_dot_product_attention'),
    'normalisation': ('norm',),
}
"""Operators that run outside of layers, by what they are; ``_OTHER`` are all others."""
_OTHER = 'resizing and pooling'
_SMALL = 128**2  # pixels of images that one thread runs through the network
_TRACING = threading.Lock()  # the analyser silences warnings in the whole process while it traces


@dataclass(frozen=True)
class LayerMacs:
    """MACs of one layer, in one forward pass at the stated size."""

    name: str
    dense: int
    candidates: tuple[int, ...]
    """One for each candidate, sparsest first."""
    reason: str
    """Why the layer is not pruned; empty where it is."""

    @property
    def pruned(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class NetworkMacs:
    """MACs of one image through a network, by candidate and by layer."""

    size: tuple[int, int, int]
    """Channels, height and width of the input."""
    dense: int
    """The base network, unpruned."""
    candidates: tuple[int, ...]
    """The base network as each candidate, without the classifier."""
    classifier: int
    layers: tuple[LayerMacs, ...]
    others: tuple[tuple[str, int], ...] = ()
    """Of the dense MACs those in no layer, by kind, as 'attention products'; they stay as they are."""

    @property
    def left_dense(self) -> dict[str, int]:
        """Dense MACs of all that is not pruned, by kind or reason, the most first; what has none is left out."""
        found = collections.Counter(dict(self.others))
        for layer in self.layers:
            if not layer.pruned:
                found[layer.reason] += layer.dense
        return {kind: macs for kind, macs in found.most_common() if macs > 0}

    @property
    def costs(self) -> tuple[float, ...]:
        """Each candidate's MACs, the classifier's included, as a fraction of the dense network's."""
        return tuple((macs + self.classifier) / self.dense for macs in self.candidates)


def count_by_module(net: nn.Module, size: tuple[int, int, int]) -> dict[str, int]:
    """Dense MACs of every module of a network for one image, by dotted name; the empty name is the whole network.

    Args:
        net: a network of plain layers; it runs in eval mode on zeros, on its own device.
        size: channels, height and width of the input.
    """
    return {name: sum(operators.values()) for name, operators in count_by_operator(net, size).items()}


def count_by_operator(net: nn.Module, size: tuple[int, int, int]) -> dict[str, dict[str, int]]:
    """Dense MACs of every module of a network for one image, by dotted name and by operator, as 'conv' or 'matmul'.

    Counted by mmengine's analyser, which calls them flops. The products of activations in attention are counted; they
    are in the sums of the modules that hold them and in no layer.

    Args:
        net: a network of plain layers; it runs in eval mode on zeros, on its own device.
        size: channels, height and width of the input.
    """
    state = random.getstate()  # importing and tracing draw numbers, and sometimes a training step is the first to count
    from mmengine.analysis import FlopAnalyzer

    image = torch.zeros((1, *size), device=device_of(net))
    net = copy.deepcopy(net).eval()
    # What it says about operators that it does not count is kept from the user.
    analyzer = FlopAnalyzer(net, (image,)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with _TRACING, torch.no_grad(), on_one_thread() if size[1] * size[2] <= _SMALL else contextlib.nullcontext():
        analyzer.set_op_handle('aten::scaled_dot_product_attention', _attention_macs)
        analyzer.set_op_handle('aten::layer_norm', _layer_norm_macs)
        counts = analyzer.tracer_warnings('none').by_module_and_operator()
    random.setstate(state)
    return {name: {kind: int(macs) for kind, macs in operators.items()} for name, operators in counts.items()}


def _layer_norm_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """As mmengine counts them, but of tensors of any number of dimensions."""
    return math.prod(inputs[0].type().sizes()) * (5 if inputs[2].isCompleteTensor() else 4)


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Of both products of an attention: of queries ``(…, L, E)`` with keys ``(…, S, E)``, and with values."""
    queries, keys, values = (value.type().sizes() for value in inputs[:3])
    return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def network_macs(
    net: nn.Module,
    classifier: nn.Module,
    choices: Sequence[LayerChoice],
    candidates: int,
    size: tuple[int, int, int],
) -> NetworkMacs:
    """MACs of the dense network, of every candidate and of the classifier for one image.

    Args:
        net: the base network with plain layers.
        classifier: takes the same input.
        choices: which layers are pruned, and to which patterns.
        candidates: their number.
        size: channels, height and width of the input.
    """
    operators = count_by_operator(net, size)
    counts = {name: sum(kinds.values()) for name, kinds in operators.items()}
    others = collections.Counter(operators[''])
    layers = []
    for choice in choices:
        dense = counts.get(choice.name, 0)
        others.subtract(operators.get(choice.name, {}))
        pruned = tuple(int(dense * choice.kept(candidate)) for candidate in range(candidates))
        layers.append(LayerMacs(choice.name, dense, pruned, choice.reason))
    total = counts['']
    if not total:
        raise UserError(f'{type(net).__name__} computes nothing that could be saved: no layer runs')
    saved = [sum(layer.dense - layer.candidates[k] for layer in layers) for k in range(candidates)]
    return NetworkMacs(
        size=size,
        dense=total,
        candidates=tuple(total - s for s in saved),
        classifier=count_by_module(classifier, size)[''],
        layers=tuple(layers),
        others=_by_kind(others),
    )


def _by_kind(operators: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """MACs of operators outside of layers, under names that say what they are."""
    kinds: collections.Counter[str] = collections.Counter()
    for operator, macs in operators.items():
        kinds[next((kind for kind, words in _KINDS.items() if operator.endswith(words)), _OTHER)] += macs
    return tuple((kind, macs) for kind, macs in kinds.items() if macs)
