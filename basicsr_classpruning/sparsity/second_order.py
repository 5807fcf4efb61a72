"""Calibrated pruning: masks and weights chosen from data, layer by layer, with no training.

All candidates are pruned in one forward pass. The calibration pictures are repeated along the batch axis, once for the
dense network and once for each candidate; when the pass reaches a layer, its part of the batch shows what the layer
receives in each network so far pruned, and what it answers in the dense one. The layer is then solved for on the spot
(``mask_search``), towards the dense network's answer, so that it also mends what the layers before it lost, and the
pass goes on with the pruned layers. The cost grows with the number of layers, not with its square.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.progress import Progress, untold
from basicsr_classpruning.sparsity import mask_search
from basicsr_classpruning.sparsity.calibration import (
    CalibrationOptions,
    Moments,
    PrunedLayer,
    columns_of,
    draw_sampling,
    observe,
    weight_of,
)
from basicsr_classpruning.sparsity.int8 import Grid, InputRange, largest_scale, rounded_weight
from basicsr_classpruning.sparsity.layers import run_transposed
from basicsr_classpruning.sparsity.masks import mask_of
from basicsr_classpruning.sparsity.nested_search import nested_ranks
from basicsr_classpruning.sparsity.orientation import PrunableLayer, as_stored, by_output, channels_of
from basicsr_classpruning.sparsity.pattern import Pattern

_MOMENTS_BYTES = 2**29  # of the moments of several layers together

LayerSolver = Callable[[str, PrunableLayer, Sequence[Moments]], Sequence[PrunedLayer]]


def prune_second_order(
    net: nn.Module,
    layers: Sequence[Mapping[str, Pattern]],
    batches: Sequence[Tensor],
    options: CalibrationOptions | None = None,
    progress: Progress = untold,
    int8: Sequence[Mapping[str, InputRange]] = (),
) -> list[dict[str, PrunedLayer]]:
    """Prunes a network to several candidates, each with its own weights.

    Args:
        net: the dense network; it is not changed.
        layers: for each sparse candidate the pattern of each layer that it prunes, which are
            ``nn.Conv2d``, ``nn.ConvTranspose2d`` or ``nn.Linear``.
        batches: calibration inputs ``(B, C, H, W)``, all of one C, H and W, as the network will meet them. They run
            together: memory grows with their number times that of the candidates.
        options: how much work to spend.
        progress: is told how many layers are done.
        int8: for each candidate the ranges of the inputs of those of its layers that multiply 8-bit integers; by
            default there are none.

    Returns:
        For each candidate its pruned layers by name, in the order in which they run. Biases are corrected too; a layer
        without a bias gets none. A layer with a dense pattern is as it was, unless it multiplies 8-bit integers. A
        layer that the network never calls is pruned by magnitude (see ``unreached_layers``).

    Raises:
        UserError: the network treats a batch as something else than independent pictures.
    """
    options = options or CalibrationOptions()
    int8 = int8 or [{} for _ in layers]

    def solve(name: str, layer: PrunableLayer, moments: Sequence[Moments]) -> list[PrunedLayer]:
        return [
            prune_layer(layer, seen, candidate[name], options, ranges.get(name))
            if name in candidate
            else _as_it_was(layer)
            for candidate, seen, ranges in zip(layers, moments, int8)
        ]

    told = partial(progress, 'pruning, own weights')
    solved = _sweep(net, _named_layers(net, layers), len(layers), batches, solve, options, told, int8)
    return [
        {name: pruned[index] for name, pruned in solved.items() if name in candidate}
        for index, candidate in enumerate(layers)
    ]


@dataclass(frozen=True)
class NestedMasks:
    """Nested masks of weights that all candidates share."""

    ranks: dict[str, Tensor]
    """By layer, uint8 of the weight's shape: candidate N keeps the weights ranked below N in their group."""
    biases: list[dict[str, Tensor]]
    """For each candidate the bias ``(O,)`` of each layer that it prunes and that has one."""


def rank_second_order(
    net: nn.Module,
    layers: Sequence[Mapping[str, Pattern]],
    batches: Sequence[Tensor],
    options: CalibrationOptions | None = None,
    progress: Progress = untold,
) -> NestedMasks:
    """Chooses nested masks for candidates that share the dense weights, and corrects each candidate's biases.

    Arguments and errors are those of ``prune_second_order``; the patterns that a layer has in several candidates are
    alike but for N.
    """
    options = options or CalibrationOptions()
    ranks: dict[str, Tensor] = {}

    def solve(name: str, layer: PrunableLayer, moments: Sequence[Moments]) -> list[PrunedLayer]:
        dense = columns_of(layer, layer.weight.detach()).double().cpu()
        own = [k for k, candidate in enumerate(layers) if name in candidate]
        losses = [damped(moments[k], dense, layer.bias is not None, options.damping) for k in own]
        patterns = [layers[k][name] for k in own]
        columns = [
            nested_ranks([(squares[g], cross[g]) for squares, cross in losses], part, channels_of(layer), patterns)
            for g, part in enumerate(dense)
        ]
        ranks[name] = weight_of(layer, torch.stack(columns)).to(layer.weight.device)
        pruned = [_as_it_was(layer)] * len(layers)
        for k in own:
            mask = as_stored(layer, mask_of(by_output(layer, ranks[name]), layers[k][name]))
            weight = layer.weight.detach() * mask
            bias = corrected_bias(layer, moments[k], columns_of(layer, weight).double().cpu())
            pruned[k] = PrunedLayer(weight, bias)
        return pruned

    told = partial(progress, 'pruning, shared weights')
    solved = _sweep(net, _named_layers(net, layers), len(layers), batches, solve, options, told)
    biases: list[dict[str, Tensor]] = [{} for _ in layers]
    for name, pruned in solved.items():
        for k, candidate in enumerate(layers):
            bias = pruned[k].bias
            if name in candidate and bias is not None:
                biases[k][name] = bias
    return NestedMasks(ranks, biases)


@torch.no_grad()
def errors_of_single_layers(
    net: nn.Module,
    layers: Mapping[str, Sequence[Pattern]],
    batches: Sequence[Tensor],
    importance: Tensor,
    options: CalibrationOptions | None = None,
    progress: Progress = untold,
) -> dict[str, list[float]]:
    """How far the network's output moves when one layer alone is pruned with data.

    Args:
        net: the dense network; it is not changed.
        layers: the patterns to try in each layer.
        batches: calibration inputs ``(B, C, H, W)``, all of one C, H and W.
        importance: what a unit of mean squared error counts in each of the pictures, ``(N,)``.
        options: how much work to spend.
        progress: is told how many layers are done.

    Returns:
        For each layer and pattern the mean over the pictures of importance times mean squared difference between the
        outputs, both clipped to [0, 1].
    """
    options = options or CalibrationOptions()
    named = _named_layers(net, [{name: patterns[0] for name, patterns in layers.items()}])
    pictures = torch.cat(list(batches))
    dense = torch.cat([net(batch) for batch in batches]).clamp(0, 1)
    errors: dict[str, list[float]] = {}
    for name, layer in named.items():
        moments = _dense_moments(net, [name], pictures, options)[name]
        errors[name] = []
        for pattern in layers[name]:
            pruned = prune_layer(layer, moments, pattern, options)

            twin = _with_forwards(net, {name: partial(_run_pruned, pruned)})
            moved = torch.cat([twin(batch) for batch in batches]).clamp(0, 1) - dense
            errors[name].append(float((importance * moved.square().mean((1, 2, 3))).mean()))
        progress('comparing layers', len(errors), len(named))
    return errors


def prune_layer(
    layer: PrunableLayer,
    moments: Moments,
    pattern: Pattern,
    options: CalibrationOptions,
    inputs: InputRange | None = None,
) -> PrunedLayer:
    """Prunes one layer so that it answers as wanted on the inputs observed; see ``mask_search.solve``.

    With the range of its ``inputs`` its weights become 8-bit integers, see ``mask_search.solve_int8``.
    """
    if inputs is not None:
        return _prune_to_int8(layer, moments, pattern, options, inputs)
    if pattern.is_dense:
        return _as_it_was(layer)
    dense = columns_of(layer, layer.weight.detach()).double().cpu()
    hessians, crosses = damped(moments, dense, layer.bias is not None, options.damping)
    weights = torch.stack(
        [
            mask_search.solve(hessian, cross, channels_of(layer), pattern, options.rounds)
            for hessian, cross in zip(hessians, crosses)
        ]
    )
    return PrunedLayer(weight_of(layer, weights).to(layer.weight), corrected_bias(layer, moments, weights))


def _prune_to_int8(
    layer: PrunableLayer, moments: Moments, pattern: Pattern, options: CalibrationOptions, inputs: InputRange
) -> PrunedLayer:
    dense = columns_of(layer, layer.weight.detach()).double().cpu()
    hessians, crosses = damped(moments, dense, layer.bias is not None, options.damping)
    (hessian,), (cross,) = hessians, crosses  # of the one group that there is
    columns, scales = mask_search.solve_int8(hessian, cross, channels_of(layer), pattern, options.rounds)
    scale = scales.to(layer.weight)
    # The product is rounded as it is wherever the integers are multiplied by the scale.
    weight = rounded_weight(weight_of(layer, columns[None]).to(layer.weight), scale)
    return PrunedLayer(weight, corrected_bias(layer, moments, columns[None]), Grid(scale, inputs.scale, inputs.zero))


@torch.no_grad()
def input_ranges(net: nn.Module, names: Sequence[str], batches: Sequence[Tensor]) -> dict[str, InputRange]:
    """The ranges of what layers receive: their least and greatest input, over all calls, and 0.

    Args:
        net: the dense network; it is not changed.
        names: convolutions and linear layers. One that is never called gets a range that says nothing.
        batches: calibration inputs ``(B, C, H, W)``.

    Raises UserError where a layer receives something that is not finite.
    """
    bounds = {name: [0.0, 0.0] for name in names}

    def forward(name: str, layer: PrunableLayer, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
        low, high = inputs.aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise UserError(f'{name}: what it receives of the calibration pictures is not finite')
        bounds[name] = [min(bounds[name][0], float(low)), max(bounds[name][1], float(high))]
        return _run(layer, inputs, layer.weight, layer.bias, output_size)

    twin = _with_forwards(net, {name: partial(forward, name) for name in names})
    for batch in batches:
        twin(batch)
    return {name: InputRange.covering(low, high) for name, (low, high) in bounds.items()}


@torch.no_grad()
def errors_of_single_int8_layers(
    net: nn.Module, ranges: Mapping[str, InputRange], batches: Sequence[Tensor], importance: Tensor
) -> dict[str, float]:
    """How far the network's output moves when one dense layer alone multiplies 8-bit integers, rounded without data.

    Arguments and what is returned are those of ``errors_of_single_layers``, with one range instead of patterns.
    """
    dense = torch.cat([net(batch) for batch in batches]).clamp(0, 1)
    layers = dict(net.named_modules())
    errors = {}
    for name, inputs in ranges.items():
        layer = layers[name]
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        scale = largest_scale(layer.weight)
        grid = Grid(scale, inputs.scale, inputs.zero)
        rounded = PrunedLayer(rounded_weight(layer.weight, scale), layer.bias, grid)
        twin = _with_forwards(net, {name: partial(_run_pruned, rounded)})
        moved = torch.cat([twin(batch) for batch in batches]).clamp(0, 1) - dense
        errors[name] = float((importance * moved.square().mean((1, 2, 3))).mean())
    return errors


def damped(moments: Moments, dense: Tensor, centred: bool, damping: float) -> tuple[Tensor, Tensor]:
    """H and C H of a layer's loss: the error of its outputs plus the damping's share of |V − W|².

    Args:
        moments: what the layer receives and should answer.
        dense: its dense weights W, ``(G, O / G, K)`` float64; G are convolution groups.
        centred: whether a bias takes care of the means.
        damping: see ``CalibrationOptions``. With few samples it grows, as far as they say nothing.

    Returns:
        ``(G, K, K)`` and ``(G, O / G, K)``, float64 on the CPU.
    """
    if moments.count == 0:
        return torch.eye(dense.shape[2], dtype=torch.float64).repeat(len(dense), 1, 1), dense
    hessian, cross = (moment.cpu() for moment in moments.second(centred))
    scale = hessian.diagonal(dim1=1, dim2=2).mean(1)
    scale[scale == 0] = 1.0  # a layer that receives only zeros is pruned by magnitude
    weight = scale * max(damping, min(1.0, hessian.shape[1] / moments.count / 10))
    hessian.diagonal(dim1=1, dim2=2).add_(weight[:, None])
    return hessian, cross + weight[:, None, None] * dense


def corrected_bias(layer: PrunableLayer, moments: Moments, weights: Tensor) -> Tensor | None:
    """The bias ``(O,)`` with which weights ``(G, O / G, K)`` answer the wanted mean; None where the layer has none."""
    if layer.bias is None:
        return None
    if moments.count == 0:
        return layer.bias.detach().clone()
    inputs, outputs = moments.means()
    return (outputs - (weights.to(inputs) @ inputs[:, :, None])[:, :, 0]).flatten().to(layer.bias)


def _as_it_was(layer: PrunableLayer) -> PrunedLayer:
    return PrunedLayer(layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone())


def _named_layers(net: nn.Module, layers: Sequence[Mapping[str, Pattern]]) -> dict[str, PrunableLayer]:
    modules = dict(net.named_modules())
    named: dict[str, PrunableLayer] = {}
    for name in dict.fromkeys(name for candidate in layers for name in candidate):
        module = modules.get(name)
        if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            raise ValueError(f'{name!r} is no convolution and no linear layer of the network')
        named[name] = module
    return named


def _generator(name: str, options: CalibrationOptions) -> torch.Generator:
    """A layer's own generator: what is drawn for it does not depend on the other layers."""
    return torch.Generator().manual_seed(options.seed + zlib.crc32(name.encode()))


def _run(
    layer: PrunableLayer, inputs: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None
) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(inputs, weight, bias)
    if isinstance(layer, nn.ConvTranspose2d):
        return run_transposed(layer, inputs, weight, bias, output_size)
    return functional.linear(inputs, weight, bias)


def _run_pruned(
    pruned: PrunedLayer, layer: PrunableLayer, inputs: Tensor, output_size: list[int] | None = None
) -> Tensor:
    return _run(layer, _as_received(inputs, pruned.grid), pruned.weight, pruned.bias, output_size)


def _as_received(inputs: Tensor, grid: Grid | InputRange | None) -> Tensor:
    """Inputs as a layer computes with them, in float32: near enough to choose weights by."""
    if isinstance(grid, Grid):
        grid = InputRange(grid.input_scale, grid.input_zero)
    return inputs if grid is None else grid.to(inputs.device).rounded(inputs)


class _Sweep:
    """One forward pass of the dense network and all candidates, in which each layer is solved when it is reached."""

    def __init__(
        self,
        candidates: int,
        solve: LayerSolver,
        options: CalibrationOptions,
        known: Mapping[str, Moments],
        done: Callable[[], None],
        int8: Sequence[Mapping[str, InputRange]],
    ) -> None:
        self.solved: dict[str, Sequence[PrunedLayer]] = {}
        self._candidates = candidates
        self._solve = solve
        self._options = options
        self._known = known
        self._done = done
        self._int8 = int8

    def forward(self, name: str, layer: PrunableLayer, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Stands in for the forward of a layer; ``inputs`` are those of all networks, one after the other."""
        if len(inputs) % (self._candidates + 1):
            raise _NotByPicture
        dense, *pruned = inputs.chunk(self._candidates + 1)
        wanted = _run(layer, dense, layer.weight, layer.bias, output_size)
        pruned = [_as_received(own, ranges.get(name)) for own, ranges in zip(pruned, self._int8)]
        if name not in self.solved:
            if name in self._known:
                moments = [self._known[name]] * self._candidates
            else:
                sampling = draw_sampling(layer, wanted, self._options.samples, _generator(name, self._options))
                moments = [Moments() for _ in pruned]
                for seen, own in zip(moments, pruned):
                    for chunk in observe(layer, own, wanted, sampling):
                        seen.add(*chunk)
            self.solved[name] = self._solve(name, layer, moments)
            self._done()
        outputs = [_run(layer, own, new.weight, new.bias, output_size) for own, new in zip(pruned, self.solved[name])]
        return torch.cat([wanted, *outputs])


class _NotByPicture(Exception):
    """A layer receives something else than equal parts of the pictures of each network."""


@torch.no_grad()
def _sweep(
    net: nn.Module,
    named: Mapping[str, PrunableLayer],
    candidates: int,
    batches: Sequence[Tensor],
    solve: LayerSolver,
    options: CalibrationOptions,
    done: Callable[[int, int], None],
    int8: Sequence[Mapping[str, InputRange]] = (),
) -> dict[str, Sequence[PrunedLayer]]:
    int8 = int8 or [{}] * candidates
    pictures = torch.cat(list(batches))
    calls, reference = _count_calls(net, named, pictures[:1])
    repeated = [name for name in named if calls[name] > 1]
    known = _dense_moments(net, repeated, pictures, options)
    total = sum(count > 0 for count in calls.values())
    sweep = _Sweep(candidates, solve, options, known, lambda: done(len(sweep.solved), total), int8)
    try:
        output = _with_forwards(net, {name: partial(sweep.forward, name) for name in named})(
            pictures.repeat(candidates + 1, *[1] * (pictures.dim() - 1))
        )
        fits = _close(output[:1], reference)
    except _NotByPicture:
        fits = False
    if not fits:
        if not _close(net(pictures)[:1], reference):
            raise UserError(
                f'{type(net).__name__} does not treat a batch as independent pictures: it cannot be calibrated'
            )
        return _solve_apart(net, named, candidates, pictures, solve, options, done)
    solved = dict(sweep.solved)
    for name, layer in named.items():
        if name not in solved:
            solved[name] = solve(name, layer, [Moments() for _ in range(candidates)])
    return solved


def _close(output: Tensor, reference: Tensor) -> bool:
    return torch.allclose(output, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))


def _solve_apart(
    net: nn.Module,
    named: Mapping[str, PrunableLayer],
    candidates: int,
    pictures: Tensor,
    solve: LayerSolver,
    options: CalibrationOptions,
    done: Callable[[int, int], None],
) -> dict[str, Sequence[PrunedLayer]]:
    """Solves for each layer by what it receives in the dense network, as far as pictures reach it.

    For networks that hand a layer some pictures, or some tokens, of a batch only, as experts do that are chosen by the
    input: what a layer receives cannot be told apart by candidate then.
    """
    solved: dict[str, Sequence[PrunedLayer]] = {}
    for names in _few_at_a_time(named):
        for name, moments in _dense_moments(net, names, pictures, options).items():
            solved[name] = solve(name, named[name], [moments] * candidates)
            done(len(solved), len(named))
    return solved


def _few_at_a_time(named: Mapping[str, PrunableLayer]) -> Iterator[list[str]]:
    """Names of layers in parts whose moments fit into memory together."""
    names: list[str] = []
    size = 0
    for name, layer in named.items():
        groups, _, columns = columns_of(layer, layer.weight).shape
        size += 8 * groups * columns**2
        if names and size > _MOMENTS_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
    if names:
        yield names


@torch.no_grad()
def unreached_layers(net: nn.Module, names: Sequence[str], batches: Sequence[Tensor]) -> list[str]:
    """Those of the named layers that no picture of the batches reaches, as an expert that is chosen by the input."""
    calls = dict.fromkeys(names, 0)
    named = {name: layer for name, layer in net.named_modules() if name in calls}
    for batch in batches:
        for name, count in _count_calls(net, named, batch)[0].items():
            calls[name] += count
    return [name for name, count in calls.items() if not count]


@torch.no_grad()
def last_layer(net: nn.Module, names: Sequence[str], pictures: Tensor) -> str:
    """Of the named layers the one that runs last for pictures ``(B, C, H, W)``."""
    order: list[str] = []

    def forward(name: str, layer: PrunableLayer, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
        order.append(name)
        return _run(layer, inputs, layer.weight, layer.bias, output_size)

    _with_forwards(net, {name: partial(forward, name) for name in names})(pictures)
    return order[-1]


def _with_forwards(net: nn.Module, forwards: Mapping[str, Callable[..., Tensor]]) -> nn.Module:
    """A copy of a network in eval mode whose named layers have other forwards, called with the layer and its input."""
    twin = copy.deepcopy(net).eval()
    modules = dict(twin.named_modules())
    for name, forward in forwards.items():
        modules[name].forward = partial(forward, modules[name])
    return twin


def _count_calls(net: nn.Module, names: Mapping[str, PrunableLayer], pictures: Tensor) -> tuple[dict[str, int], Tensor]:
    """How often each layer is called for pictures ``(B, C, H, W)``, and the network's output."""
    calls = dict.fromkeys(names, 0)

    def forward(name: str, layer: PrunableLayer, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
        calls[name] += 1
        return _run(layer, inputs, layer.weight, layer.bias, output_size)

    output = _with_forwards(net, {name: partial(forward, name) for name in names})(pictures)
    return calls, output


def _dense_moments(
    net: nn.Module, names: Sequence[str], pictures: Tensor, options: CalibrationOptions
) -> dict[str, Moments]:
    """What layers that are called several times receive in the dense network, over all their calls.

    When such a layer is first reached, what a pruned network will feed it later is not known yet.
    """
    moments = {name: Moments() for name in names}
    generators = {name: _generator(name, options) for name in names}

    def forward(name: str, layer: PrunableLayer, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
        outputs = _run(layer, inputs, layer.weight, layer.bias, output_size)
        sampling = draw_sampling(layer, outputs, options.samples, generators[name])
        for chunk in observe(layer, inputs, outputs, sampling):
            moments[name].add(*chunk)
        return outputs

    if names:
        _with_forwards(net, {name: partial(forward, name) for name in names})(pictures)
    return moments
