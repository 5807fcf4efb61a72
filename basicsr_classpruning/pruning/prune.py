"""Makes a ClassPruning network from a dense one: masks and weights of all candidates, then the classifier."""

from __future__ import annotations

import copy
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.archs.forms import as_dense
from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.data.pictures import Pictures
from basicsr_classpruning.devices import device_of
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.progress import Progress
from basicsr_classpruning.pruning.allocation import allocate_layers
from basicsr_classpruning.pruning.classifier import ErrorMaps, fit_classifier, measure_errors, set_price
from basicsr_classpruning.pruning.crops import Crops, cut_crops
from basicsr_classpruning.pruning.equalisation import equalise_channels
from basicsr_classpruning.routing.budget import solve_budget
from basicsr_classpruning.routing.bypass import Bypass, LinearFilter
from basicsr_classpruning.routing.errors import LEAST_ERROR, relative_errors
from basicsr_classpruning.routing.ladder import Ladder
from basicsr_classpruning.sizes import bytes_of_image
from basicsr_classpruning.sparsity import sparse_layers
from basicsr_classpruning.sparsity.int8 import InputRange
from basicsr_classpruning.sparsity.second_order import (
    errors_of_single_int8_layers,
    input_ranges,
    last_layer,
    prune_second_order,
    rank_second_order,
    unreached_layers,
)

DEFAULT_TARGET = 0.6  # average MACs of the default routing, of which the paper speaks
# Weights are fitted on crops that run through the network together, so their number is bounded by the memory that
# the outputs take.
_WEIGHT_CROPS = (8, 48)
_WEIGHT_SIDE = 64
_WEIGHT_OUTPUT_PIXELS = 800_000
_WEIGHT_BYTES = 5 * 2**29  # and by that which all tensors take at a time
_LAYER_CROPS = 16  # of these, on which single layers are compared
_TILE = 96  # what `restore` cuts images into
_ERROR_SIDE = 128  # of the crops that the classifier is fitted to: many, all over the images
_ERROR_MACS = 8e12  # work spent on measuring the candidates' errors: a minute or two on two cores
# Seconds, after which fewer errors have to do: attention makes a quarter of the MACs of convolutions in a second. Slow
# machines are given the time, since what is learnt should not depend on them.
_ERROR_PATIENCE = 400.0
_GPU_FACTOR = 100  # more of it on a GPU, in less time
_ERROR_CROPS = (48, 600)
_FIT_STEPS = 2000
_HELD_OUT = 24
_PATIENCE = 60.0  # seconds that pruning may take if the other kind of weights is to be compared
_INT8_LOSS = 0.01  # dB that the dense candidate of 8-bit integers may lose before layers are left in float32
_OUTSTANDING = 3.0  # times the mean error of a layer, above which leaving it pays
_ASSUMED_ERROR = 1e-4  # mean squared error of a network whose clean images are not known
_BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

logger = logging.getLogger('basicsr_classpruning')


@dataclass(frozen=True)
class PruneOptions:
    """How a network is pruned."""

    candidates: tuple[str, ...]
    block: int = 1
    share_taps: bool = False
    unit: int = 1
    skip: tuple[str, ...] = ()
    weights: str = 'own'
    """``own``: each sparse candidate has weights of its own; ``shared``: one set under nested masks."""
    seed: int = 0
    """Of the calibration crops, the classifier's first weights and its fit."""
    per_layer: bool = False
    """Whether each layer gets its own N, at the candidates' MACs; needs data."""
    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """``network_g.layers``; found from data with ``per_layer``."""
    fp32: tuple[str, ...] = ()
    """``network_g.fp32``; more of them are found from data where candidates multiply 8-bit integers."""

    @property
    def alternative(self) -> PruneOptions:
        """The same with the other kind of weights."""
        return replace(self, weights='shared' if self.weights == 'own' else 'own')


@dataclass(frozen=True)
class CandidateReport:
    """What one candidate loses on images that its weights and the classifier have not seen."""

    candidate: str
    cost: float
    """MACs, as a fraction of the dense ones."""
    psnr: float
    """On 8-bit scale, all channels; against the clean images, or the dense outputs without them."""
    loss: float | None
    """dB below the dense network; None where the dense outputs are the reference."""


@dataclass(frozen=True)
class Calibrated:
    """A network pruned with data, and what choosing the other kind of weights would have given."""

    net: ClassPruning
    """In eval mode."""
    candidates: list[CandidateReport]
    alternative: ClassPruning | None
    """The candidates with the other kind of weights, and the same classifier; only to be compared. None where
    candidates multiply 8-bit integers, which need weights of their own, and where pruning takes long."""
    alternative_candidates: list[CandidateReport]


def build(dense: DenseNetwork, options: PruneOptions, classifier: dict[str, Any]) -> ClassPruning:
    """A ClassPruning network around a dense one, which becomes part of it; all candidates by magnitude.

    Raises UsageError where the options do not fit the network, or leave no candidate sparse.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)  # of the classifier's first weights
        net = ClassPruning(
            base=dense.options,
            candidates=options.candidates,
            block=options.block,
            share_taps=options.share_taps,
            unit=options.unit,
            skip=options.skip,
            classifier=classifier,
            weights=options.weights,
            layers=options.layers,
            fp32=options.fp32,
            base_net=dense.net,
            inputs=dense.inputs,
        )
    if not any(map(net.own_layers, net.candidates)):
        raise UsageError(f'{", ".join(options.candidates)}: none of them is sparse', key='network_g.candidates')
    for _, layer in sparse_layers(net.base):
        layer.reset_candidates()
    return net.to(device_of(dense)).eval()


def with_bypass(dense: DenseNetwork, candidates: Sequence[str]) -> tuple[str, ...]:
    """The ladder with a bypass as its first rung.

    Raises UsageError where the network can have none.
    """
    rungs = Ladder.parse(candidates).candidates
    bypass = Bypass(rungs[-1].m or 1)
    bypass.build(dense.dense)
    return tuple(candidates) if bypass in rungs else (bypass.name, *candidates)


def _copy(dense: DenseNetwork) -> DenseNetwork:
    return DenseNetwork(copy.deepcopy(dense.net), dense.inputs, dense.options)


def prune_by_magnitude(dense: DenseNetwork, options: PruneOptions) -> ClassPruning:
    """Prunes without data: the largest weights stay, and details measure an image's difficulty."""
    net = build(dense, options, {'type': 'EdgeDifficulty'})
    # The densest candidate, unless a budget asks for less: there is nothing to set a price by.
    net.log_price.data.fill_(-20.0)
    return net


def prune_with_data(
    dense: DenseNetwork, options: PruneOptions, pictures: Pictures, degradation: Degradation | None, progress: Progress
) -> Calibrated:
    """Prunes towards the dense network's outputs on calibration images, and fits the classifier.

    Both kinds of weights are solved for, so that what each costs is measured; the errors to which the classifier is
    fitted are those of the kind that the options name.

    Args:
        dense: the network; it becomes part of the result. Images run on its device; masks are searched on the CPU.
        options: patterns and weights.
        pictures: clean ones with a degradation, or the network's inputs without.
        degradation: what makes the network's inputs.
        progress: is told how far the work is.

    Raises:
        UsageError: the options do not fit the network, or no image is large enough.
        UserError: an image cannot be read, or the network cannot be calibrated.
    """
    trial = build(_copy(dense), options, {'type': 'BandClassifier'})
    count = _weight_crops(trial)
    weight_crops = _cut(trial, pictures, degradation, count, _WEIGHT_SIDE, options.seed, progress)
    unreached = _unreached(trial, weight_crops)
    if unreached:
        logger.warning('left dense, because no calibration picture reaches them: %s', ', '.join(unreached))
        options = replace(options, skip=(*options.skip, *(f'^{re.escape(name)}$' for name in unreached)))
        trial = build(_copy(dense), options, {'type': 'BandClassifier'})
    if options.per_layer:
        some = next(weight_crops.batches(_LAYER_CROPS))
        options = replace(options, layers=allocate_layers(trial, some, progress))
    ranges: dict[str, InputRange] = {}
    if trial.int8:
        range_crops = _cut(trial, pictures, degradation, count, _ERROR_SIDE, options.seed + 3, progress)
        # In the base network, and so in all candidates, whose patches share their features.
        equalise_channels(dense.net, _int8_layers(trial), list(range_crops.lq.split(8)))
        trial = build(_copy(dense), options, {'type': 'BandClassifier'})
        ranges = _input_ranges(trial, range_crops)
        sensitive = sensitive_layers(trial, ranges, next(weight_crops.batches(_LAYER_CROPS)))
        options = replace(options, fp32=(*options.fp32, *(f'^{re.escape(name)}$' for name in sensitive)))
    alternative = None if trial.int8 else build(_copy(dense), options.alternative, {'type': 'BandClassifier'})
    net = build(dense, options, {'type': 'BandClassifier'})
    both = [net] if alternative is None else [net, alternative]
    start = time.perf_counter()
    for each in both:
        if each is alternative and time.perf_counter() - start > _PATIENCE:
            both, alternative = [net], None
            break
        _set_weights(each, list(weight_crops.lq.split(8)), ranges, progress)
        _fit_bypass(each, weight_crops)
    if len(net.candidates) > 1:
        _fit(net, pictures, degradation, options.seed, progress)
        if alternative is not None:
            alternative.classifier = net.classifier
    held_out = _cut(net, pictures, degradation, _HELD_OUT, _TILE, options.seed + 2, progress)
    reports = [measure_candidates(each, held_out) for each in both]
    return Calibrated(net, reports[0], alternative, [] if alternative is None else reports[1])


def _int8_layers(net: ClassPruning) -> list[str]:
    """The layers that can multiply 8-bit integers."""
    return [choice.name for choice in net.choices if choice.patterns and not choice.fp32]


def _input_ranges(net: ClassPruning, crops: Crops) -> dict[str, InputRange]:
    return input_ranges(net.dense.net, _int8_layers(net), list(crops.lq.split(8)))


@torch.no_grad()
def sensitive_layers(net: ClassPruning, ranges: Mapping[str, InputRange], crops: Crops) -> list[str]:
    """The layers that candidates of 8-bit integers should compute in float32.

    The last one of the network, which adds its rounding to every pixel; then, while the others together are expected to
    lose more than ``_INT8_LOSS``, those of them that lose far more than their share.

    Args:
        net: a network whose candidates multiply 8-bit integers.
        ranges: of what its layers receive.
        crops: inputs; without clean images the dense network's error is taken to be that of 40 dB.
    """
    dense, batches = net.dense.net, list(crops.lq.split(8))
    error = torch.full((len(crops),), _ASSUMED_ERROR, device=crops.lq.device)
    if crops.gt is not None:
        outputs = torch.cat([dense(batch) for batch in batches]).clamp(0, 1)
        error = (outputs - crops.gt).square().mean((1, 2, 3)).clamp(min=LEAST_ERROR)
    errors = errors_of_single_int8_layers(dense, ranges, batches, 1 / error)
    left = [last_layer(dense, list(ranges), crops.lq[:1])]
    errors.pop(left[0])
    # Errors of single layers add up nearly, as they are hardly correlated.
    for name in sorted(errors, key=errors.__getitem__, reverse=True):
        if 10 * math.log10(1 + sum(errors.values())) <= _INT8_LOSS or errors[name] < _OUTSTANDING * np.mean(
            [*errors.values()]
        ):
            break
        left.append(name)
        del errors[name]
    return left


def _weight_crops(net: ClassPruning) -> int:
    """How many crops the weights are fitted on: all candidates run on all of them at a time."""
    few, many = _WEIGHT_CROPS
    side = net.sizes.padded(_WEIGHT_SIDE)
    each = bytes_of_image(net.dense.net, net.num_in_ch, side) * (len(net.candidates) + 1)
    wanted = min(max(_WEIGHT_OUTPUT_PIXELS // (_WEIGHT_SIDE * net.scale) ** 2, few), many)
    return max(min(wanted, _WEIGHT_BYTES // each), 1)


def _unreached(net: ClassPruning, crops: Crops) -> list[str]:
    """Pruned layers that no crop reaches."""
    names = [choice.name for choice in net.choices if choice.patterns]
    return unreached_layers(net.dense.net, names, list(crops.lq.split(8)))


@dataclass(frozen=True)
class RoutedReport:
    """What routing is worth on images that the fit has not seen, each routed as a whole."""

    budget: float
    before: float
    """PSNR with the classifier as it was, in dB; against the clean images, or the dense outputs without them."""
    after: float
    """With the classifier fitted."""
    oracle: float
    """With the candidates' true errors."""


@dataclass(frozen=True)
class RoutingFit:
    """What ``fit_routing`` did."""

    routed: list[RoutedReport]
    kept: bool
    """Whether the classifier is as it was: on images that the fit has not seen, the fitted one lost more."""


def fit_routing(
    net: ClassPruning,
    pictures: Pictures,
    degradation: Degradation | None,
    seed: int,
    progress: Progress,
    trained: ClassPruning | None = None,
) -> RoutingFit:
    """Fits the classifier and the price of a network anew to images; the candidates stay as they are.

    A classifier that learnt beside the candidates has seen more images than are measured here, and may be the better
    one: then it stays, and only the price is set.

    Args:
        net: a network of several candidates.
        pictures, degradation, progress: as for ``prune_with_data``.
        seed: of the crops and the fit.
        trained: the network that ``with_bypass_added`` was given, which says what routing reached before.

    Raises:
        UsageError: there is nothing to fit (``check_routing``), or no image is large enough.
        UserError: an image cannot be read.
    """
    check_routing(net)
    net.eval()
    held_out = _cut(net, pictures, degradation, _HELD_OUT, _TILE, seed + 2, progress)
    maps = measure_errors(net.routed(), held_out, 4)
    if trained is None:
        before = _routed(net, maps)
    else:
        _fit_bypass(net, _cut(net, pictures, degradation, _weight_crops(net), _WEIGHT_SIDE, seed, progress))
        before = _routed(trained, measure_errors(trained.eval().routed(), held_out, 4))
    learnt = copy.deepcopy(net.classifier.state_dict())
    seen = _fit(net, pictures, degradation, seed, progress)
    after = _routed(net, maps)
    kept = trained is None and sum(psnr for psnr, _ in after.values()) < sum(psnr for psnr, _ in before.values())
    if kept:
        net.classifier.load_state_dict(learnt)
        set_price(net, seen, DEFAULT_TARGET)
        after = before
    return RoutingFit([RoutedReport(budget, before[budget][0], *after[budget]) for budget in before], kept)


def with_bypass_added(net: ClassPruning) -> ClassPruning:
    """A trained network with a bypass as the first rung of its ladder, and a new classifier, which has to be fitted.

    Raises UsageError where it has one, or can have none.
    """
    ladder = with_bypass(as_dense(net), net.candidates)
    if ladder == net.candidates:
        raise UsageError(f'{ladder[0]} is in its ladder already', key='bypass')
    options = {key: value for key, value in net.options.items() if key != 'type'}
    options |= {'candidates': list(ladder), 'classifier': {'type': 'BandClassifier'}}
    added = ClassPruning(**options, base_net=copy.deepcopy(net.dense.net))
    added.start_from(net.state_dict())
    return added.eval()


def check_routing(net: ClassPruning) -> None:
    """Raises UsageError for a network with nothing to choose, or whose classifier has nothing to learn."""
    if len(net.candidates) < 2:
        raise UsageError(f'one candidate, {net.candidates[0]}: there is nothing to choose')
    if not list(net.classifier.parameters()):
        raise UsageError(
            f'its classifier, {type(net.classifier).__name__}, learns nothing; prune with calibration pictures'
        )


@torch.no_grad()
def _routed(net: ClassPruning, maps: ErrorMaps) -> dict[float, tuple[float, float]]:
    """PSNR at budgets, as the classifier routes and at best."""
    errors = maps.errors.mean((2, 3)).double().cpu().numpy()
    costs, one = np.array(net.reference_macs.costs), np.ones(len(errors))
    predicted = relative_errors(net.predicted_errors(maps.lq)).double().cpu().numpy()
    true = relative_errors(errors)

    def psnr(classes: np.ndarray) -> float:
        return float(-10 * np.log10(errors[np.arange(len(errors)), classes].clip(1e-10)).mean())

    budgets = [budget for budget in _BUDGETS if costs[0] <= budget <= costs[-1]]
    return {
        budget: (psnr(net.router.solve(predicted, costs, one, budget)), psnr(solve_budget(true, costs, one, budget)))
        for budget in budgets
    }


def _fit(
    net: ClassPruning, pictures: Pictures, degradation: Degradation | None, seed: int, progress: Progress
) -> Tensor:
    """Fits the classifier and the price to the errors that the candidates leave in crops of images; returns these."""
    crops = _cut(net, pictures, degradation, _error_crops(net), _ERROR_SIDE, seed + 1, progress, everywhere=True)
    maps = measure_errors(net.routed(), crops, 4, progress, _ERROR_PATIENCE)
    fit_classifier(net.router, maps, _FIT_STEPS, seed, progress)
    net.eval()
    set_price(net, maps.lq, DEFAULT_TARGET)
    return maps.lq


def _cut(
    net: ClassPruning,
    pictures: Pictures,
    degradation: Degradation | None,
    count: int,
    side: int,
    seed: int,
    progress: Progress,
    everywhere: bool = False,
) -> Crops:
    step = math.lcm(net.sizes.multiple, net.router.stride or 1)
    side = max(side, net.sizes.padded(1)) // step * step
    crops = cut_crops(
        pictures,
        degradation,
        scale=net.scale,
        count=count,
        side=side,
        seed=seed,
        step=step,
        everywhere=everywhere,
        progress=progress,
    )
    return crops.to(device_of(net))


def _error_crops(net: ClassPruning) -> int:
    reference = net.reference_macs
    each = reference.dense * (_ERROR_SIDE / reference.size[1]) ** 2 * len(net.candidates)
    low, high = _ERROR_CROPS
    work = _ERROR_MACS if device_of(net).type == 'cpu' else _GPU_FACTOR * _ERROR_MACS
    return int(min(max(work / each, low), high))


def _set_weights(
    net: ClassPruning, batches: Sequence[Tensor], ranges: Mapping[str, InputRange], progress: Progress
) -> None:
    """Chooses masks, weights and biases of the sparse candidates from data; ``ranges`` are those of layers' inputs."""
    sparse = [k for k, candidate in enumerate(net.ladder.sparse) if net.own_layers(candidate)]
    patterns = [net.own_layers(net.ladder.sparse[k]) for k in sparse]
    names = _int8_layers(net)
    int8 = [{name: ranges[name] for name in names} if net.ladder.sparse[k].int8 else {} for k in sparse]
    dense: nn.Module = net.dense.net
    layers = dict(sparse_layers(net.base))

    with torch.no_grad():
        if net.options['weights'] == 'own':
            solved = prune_second_order(dense, patterns, batches, progress=progress, int8=int8)
            for k, pruned in zip(sparse, solved):
                for name, layer in pruned.items():
                    layers[name].set_candidate(k, layer.weight, layer.bias)
                    if layer.grid is not None:
                        layers[name].set_grid(k, layer.grid)
        else:
            ranking = rank_second_order(dense, patterns, batches, progress=progress)
            for name, ranks in ranking.ranks.items():
                layers[name].ranks.copy_(ranks)
            for k, biases in zip(sparse, ranking.biases):
                for name, bias in biases.items():
                    layers[name].set_bias(k, bias)
    net.forget_subnetworks()


@torch.no_grad()
def _fit_bypass(net: ClassPruning, crops: Crops) -> None:
    """Gives the bypass, where the ladder has one, the best linear filter for these images."""
    for bypass in net.others.values():
        if isinstance(bypass, LinearFilter):
            bypass.fit(crops.lq, net.dense.net(crops.lq) if crops.gt is None else crops.gt)


@torch.no_grad()
def measure_candidates(net: ClassPruning, crops: Crops) -> list[CandidateReport]:
    """PSNR of every candidate, and of the dense network first, on crops."""
    runs: list[tuple[str, float, Callable[[Tensor], Tensor]]] = [('dense', 1.0, net.dense.net)]
    macs = net.reference_macs
    for k, candidate in enumerate(net.candidates):
        if net.own_layers(candidate) or candidate in net.others:
            runs.append((candidate, macs.candidates[k] / macs.dense, partial(net.restore_with, candidate=k)))
    reports: list[CandidateReport] = []
    for name, cost, run in runs:
        errors = []
        for part in crops.batches(8):
            target = net.dense.net(part.lq) if part.gt is None else part.gt
            errors.append((run(part.lq).clamp(0, 1) - target.clamp(0, 1)).square().mean((1, 2, 3)))
        psnr = float((-10 * torch.log10(torch.cat(errors).clamp(min=1e-10))).mean())
        loss = reports[0].psnr - psnr if reports and crops.gt is not None else None
        reports.append(CandidateReport(name, cost, psnr, loss))
    return reports if crops.gt is not None else reports[1:]
