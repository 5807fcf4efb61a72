"""What a layer sees when calibration pictures run through a network, and what it should answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_classpruning.sparsity.int8 import Grid
from basicsr_classpruning.sparsity.orientation import PrunableLayer, as_stored, by_output, groups_of

_CHUNK_BYTES = 64 * 2**20  # of unfolded inputs at a time


@dataclass(frozen=True)
class PrunedLayer:
    """One layer of one candidate."""

    weight: Tensor
    """In the shape of the layer's, zeros in place."""
    bias: Tensor | None
    """``(O,)``; None where the dense layer has none."""
    grid: Grid | None = None
    """Scales of weights that are multiples of them, and the range of the inputs; None of a layer in float32."""


@dataclass(frozen=True)
class CalibrationOptions:
    """How much data and work second-order pruning spends."""

    samples: int = 60_000
    """Positions (output pixels, or tokens of a linear layer) used of each layer, spread evenly; more is slower."""
    damping: float = 0.01
    """How strongly weights are held at the dense ones, as a share of the mean square of a layer's inputs; above 0."""
    rounds: int = 4
    """Rounds of mask improvement; 0 keeps the greedy masks."""
    seed: int = 0
    """Of the choice of positions."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f'samples {self.samples}: must be at least 1')
        if not self.damping > 0:
            raise ValueError(f'damping {self.damping}: must be above 0')
        if self.rounds < 0:
            raise ValueError(f'rounds {self.rounds}: must not be negative')


class Moments:
    """Second moments of a layer's inputs ``(G, K, N)``, and of them with the outputs wanted ``(G, O / G, N)``.

    G are the convolution groups, each of which sees only inputs of its own. Sums are kept about the mean of the first
    chunk and in double precision: activations far from zero would cost a single-precision sum its digits.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Adds N samples: inputs ``(G, K, N)``, in the order of a weight's columns, and outputs ``(G, O / G, N)``."""
        if self.count == 0:
            groups, columns, channels = len(inputs), inputs.shape[1], outputs.shape[1]
            self._input_shift, self._output_shift = inputs.mean(2), outputs.mean(2)
            self._inputs = inputs.new_zeros(groups, columns, dtype=torch.float64)
            self._outputs = inputs.new_zeros(groups, channels, dtype=torch.float64)
            self._squares = inputs.new_zeros(groups, columns, columns, dtype=torch.float64)
            self._products = inputs.new_zeros(groups, channels, columns, dtype=torch.float64)
        inputs, outputs = inputs - self._input_shift[:, :, None], outputs - self._output_shift[:, :, None]
        self.count += inputs.shape[2]
        self._inputs += inputs.sum(2)
        self._outputs += outputs.sum(2)
        self._squares += inputs @ inputs.mT
        self._products += outputs @ inputs.mT

    def means(self) -> tuple[Tensor, Tensor]:
        """The mean input ``(G, K)`` and the mean wanted output ``(G, O / G)``, float64."""
        return self._inputs / self.count + self._input_shift, self._outputs / self.count + self._output_shift

    def second(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Means of x xᵀ ``(G, K, K)`` and of y xᵀ ``(G, O / G, K)``, float64; about the means if ``centred``."""
        inputs, outputs = self._inputs / self.count, self._outputs / self.count
        squares = self._squares / self.count - inputs[:, :, None] * inputs[:, None]
        products = self._products / self.count - outputs[:, :, None] * inputs[:, None]
        if not centred:
            mean_inputs, mean_outputs = self.means()
            squares += mean_inputs[:, :, None] * mean_inputs[:, None]
            products += mean_outputs[:, :, None] * mean_inputs[:, None]
        return squares, products


@dataclass(frozen=True)
class Sampling:
    """Positions at which a layer is observed: the same for all candidates."""

    step: int
    """Every step-th position, along both axes of a picture."""
    offsets: Tensor
    """Where each picture's lattice starts, ``(B, 2)``; ``(1, 2)`` of a linear layer, whose first number counts."""


def draw_sampling(layer: PrunableLayer, outputs: Tensor, limit: int, generator: torch.Generator) -> Sampling:
    """Draws a lattice with about ``limit`` positions (never two thirds more) in a layer's outputs.

    Each picture's lattice starts elsewhere, so that no phase of a grid (a pixel shuffle's) is preferred.
    """
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        positions = outputs.numel() // outputs.shape[1]
        step = max(1, math.ceil(math.sqrt(positions / limit) - 0.25))
        if isinstance(layer, nn.ConvTranspose2d):
            # Which taps make an output pixel depends on its phase: each picture must show all phases.
            while math.gcd(step, math.prod(layer.stride)) > 1:
                step += 1
        pictures = len(outputs)
    else:
        step = max(1, math.ceil(outputs.numel() / outputs.shape[-1] / limit - 0.5))
        pictures = 1
    return Sampling(step, torch.randint(step, (pictures, 2), generator=generator))


def observe(
    layer: PrunableLayer, inputs: Tensor, outputs: Tensor, sampling: Sampling
) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples of one call of a layer, in chunks: unfolded inputs ``(G, K, N)`` and outputs ``(G, O / G, N)``."""
    groups = groups_of(layer)
    if isinstance(layer, nn.ConvTranspose2d):
        pieces = _observe_pictures(_as_convolution(layer), _zeros_between(layer, inputs, outputs), outputs, sampling)
    elif isinstance(layer, nn.Conv2d):
        pieces = _observe_pictures(layer, inputs, outputs, sampling)
    else:
        pieces = _observe_rows(inputs, outputs, sampling)
    # Small pictures are put together: each chunk costs a pass over the (K, K) sums.
    gathered: list[tuple[Tensor, Tensor]] = []
    samples = 0
    for piece in pieces:
        gathered.append(piece)
        samples += piece[0].shape[1]
        if samples * len(piece[0]) * 4 > _CHUNK_BYTES // 4:
            yield _joined(gathered, groups)
            gathered, samples = [], 0
    if gathered:
        yield _joined(gathered, groups)


def _joined(pieces: list[tuple[Tensor, Tensor]], groups: int) -> tuple[Tensor, Tensor]:
    inputs, outputs = (torch.cat(parts, 1).unflatten(0, (groups, -1)) for parts in zip(*pieces))
    return inputs, outputs


def _as_convolution(layer: nn.ConvTranspose2d) -> nn.Conv2d:
    """The geometry of the convolution that a transposed one is, over inputs with zeros between; without weights.

    Its taps run the other way, see ``columns_of``.
    """
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        device='meta',
    )


def _zeros_between(layer: nn.ConvTranspose2d, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Inputs of a transposed convolution with stride − 1 zeros between the pixels, and the border that it works on."""
    pictures, channels, height, width = inputs.shape
    (down, across) = layer.stride
    spread = inputs.new_zeros(pictures, channels, (height - 1) * down + 1, (width - 1) * across + 1)
    spread[:, :, ::down, ::across] = inputs
    border: list[int] = []
    for axis in (1, 0):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        before = reach - int(layer.padding[axis])
        border += [before, outputs.shape[2 + axis] + reach - before - spread.shape[2 + axis]]
    return functional.pad(spread, border)


def columns_of(layer: PrunableLayer, weight: Tensor) -> Tensor:
    """A weight in the layer's shape as what multiplies samples, ``(G, O / G, K)``: a matrix for each conv. group."""
    by_output_channel = by_output(layer, weight)
    if isinstance(layer, nn.ConvTranspose2d):
        by_output_channel = by_output_channel.flip(2, 3)
    return by_output_channel.flatten(1).unflatten(0, (groups_of(layer), -1))


def weight_of(layer: PrunableLayer, columns: Tensor) -> Tensor:
    """The inverse of ``columns_of``."""
    shape = by_output(layer, layer.weight).shape
    by_output_channel = columns.reshape(shape)
    if isinstance(layer, nn.ConvTranspose2d):
        by_output_channel = by_output_channel.flip(2, 3)
    return as_stored(layer, by_output_channel)


def _observe_pictures(
    layer: nn.Conv2d, inputs: Tensor, outputs: Tensor, sampling: Sampling
) -> Iterator[tuple[Tensor, Tensor]]:
    step = sampling.step
    mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
    strides = (layer.stride[0] * step, layer.stride[1] * step)
    for picture, wanted, (y, x) in zip(inputs, outputs, sampling.offsets.tolist()):
        if y >= wanted.shape[1] or x >= wanted.shape[2]:
            continue
        padded = functional.pad(picture[None], layer._reversed_padding_repeated_twice, mode)
        part = padded[..., y * layer.stride[0] :, x * layer.stride[1] :]
        unfolded = functional.unfold(part, layer.kernel_size, layer.dilation, 0, strides)[0]
        yield unfolded, wanted[:, y::step, x::step].flatten(1)


def _observe_rows(inputs: Tensor, outputs: Tensor, sampling: Sampling) -> Iterator[tuple[Tensor, Tensor]]:
    first = int(sampling.offsets[0, 0])
    x = inputs.flatten(0, -2)[first :: sampling.step]
    y = outputs.flatten(0, -2)[first :: sampling.step]
    size = max(1, _CHUNK_BYTES // (4 * x.shape[1]))
    yield from zip(x.T.split(size, 1), y.T.split(size, 1))
