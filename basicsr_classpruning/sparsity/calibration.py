"""What a layer sees when calibration pictures run through a network, and what it should answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PrunableLayer = nn.Conv2d | nn.Linear

_CHUNK_BYTES = 64 * 2**20  # of unfolded inputs at a time


@dataclass(frozen=True)
class PrunedLayer:
    """One layer of one candidate."""

    weight: Tensor
    """``(O, C, kh, kw)`` or ``(O, C)``, zeros in place."""
    bias: Tensor | None
    """``(O,)``; None where the dense layer has none."""


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
    """Second moments of a layer's inputs ``(K, N)``, and of them with the outputs wanted ``(O, N)``.

    Sums are kept about the mean of the first chunk and in double precision: activations far from zero would cost a
    single-precision sum its digits.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Adds N samples: inputs ``(K, N)``, in the order of a weight's ``flatten(1)``, and outputs ``(O, N)``."""
        if self.count == 0:
            columns, channels = len(inputs), len(outputs)
            self._input_shift, self._output_shift = inputs.mean(1), outputs.mean(1)
            self._inputs = inputs.new_zeros(columns, dtype=torch.float64)
            self._outputs = inputs.new_zeros(channels, dtype=torch.float64)
            self._squares = inputs.new_zeros(columns, columns, dtype=torch.float64)
            self._products = inputs.new_zeros(channels, columns, dtype=torch.float64)
        inputs, outputs = inputs - self._input_shift[:, None], outputs - self._output_shift[:, None]
        self.count += inputs.shape[1]
        self._inputs += inputs.sum(1)
        self._outputs += outputs.sum(1)
        self._squares += inputs @ inputs.T
        self._products += outputs @ inputs.T

    def means(self) -> tuple[Tensor, Tensor]:
        """The mean input ``(K,)`` and the mean wanted output ``(O,)``, float64."""
        return self._inputs / self.count + self._input_shift, self._outputs / self.count + self._output_shift

    def second(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Means of x xᵀ ``(K, K)`` and of y xᵀ ``(O, K)``, float64; about the means if ``centred``."""
        inputs, outputs = self._inputs / self.count, self._outputs / self.count
        squares = self._squares / self.count - torch.outer(inputs, inputs)
        products = self._products / self.count - torch.outer(outputs, inputs)
        if not centred:
            mean_inputs, mean_outputs = self.means()
            squares += torch.outer(mean_inputs, mean_inputs)
            products += torch.outer(mean_outputs, mean_inputs)
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
    if isinstance(layer, nn.Conv2d):
        positions = outputs.numel() // outputs.shape[1]
        step = max(1, math.ceil(math.sqrt(positions / limit) - 0.25))
        pictures = len(outputs)
    else:
        step = max(1, math.ceil(outputs.numel() / outputs.shape[-1] / limit - 0.5))
        pictures = 1
    return Sampling(step, torch.randint(step, (pictures, 2), generator=generator))


def observe(
    layer: PrunableLayer, inputs: Tensor, outputs: Tensor, sampling: Sampling
) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples of one call of a layer, in chunks: unfolded inputs ``(K, N)`` and wanted outputs ``(O, N)``."""
    if isinstance(layer, nn.Conv2d):
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
            yield _joined(gathered)
            gathered, samples = [], 0
    if gathered:
        yield _joined(gathered)


def _joined(pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in pieces], 1), torch.cat([y for _, y in pieces], 1)


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
