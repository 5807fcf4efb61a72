"""Convolutions, transposed convolutions and linear layers that hold every candidate's weights, for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sparsity.int8 import (
    Grid,
    Int8Conv2d,
    Int8Linear,
    is_usable,
    largest_scale,
    multiply,
    rounded_weight,
)
from basicsr_classpruning.sparsity.masks import magnitude_rank, mask_of, satisfies
from basicsr_classpruning.sparsity.mixture import Mixture
from basicsr_classpruning.sparsity.orientation import as_stored, by_output
from basicsr_classpruning.sparsity.pattern import Pattern

if TYPE_CHECKING:
    from typing_extensions import Self


class Selection:
    """The candidate that the sparse layers of one network use in a training forward pass; shared by all of them."""

    def __init__(self, decay: float = 0.0) -> None:
        self.candidate: int | None = None
        """None selects the dense weights, whether or not a candidate has them."""
        self.mixture: Mixture | None = None
        """Several candidates, each in its own places, instead of one; in convolutions that keep the size."""
        self.decay = decay
        """SR-STE's weight decay on pruned weights, per step (0 is a plain straight-through gradient)."""


class _StraightThrough(torch.autograd.Function):
    """Masks a weight; the gradient goes to all weights, with SR-STE's decay on those outside the mask.

    g(w) = dL/d(w·mask) + decay · (1 − mask) · w, from "Learning N:M Fine-grained Structured Sparse Neural Networks
    From Scratch" (Zhou et al., ICLR 2021).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, mask = ctx.saved_tensors
        (grad,) = grads
        if ctx.decay:
            grad = torch.addcmul(grad, weight, ~mask, value=ctx.decay)
        return grad, None, None


class _OwnWeight(torch.autograd.Function):
    """A weight whose zeros stay: the gradient is masked by its own non-zeros."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        return grads[0] * (weight != 0)


class _SparseLayer(nn.Module):
    """What convolutions and linear layers share: weights, masks and biases of every candidate.

    The dense ``weight`` and ``bias`` keep their names. ``biases`` holds a bias for each sparse candidate, in the order
    of the candidates. With shared weights, ``ranks`` gives nested masks on ``weight``; with own weights, ``weights``
    holds one weight for each sparse candidate, whose zeros are its mask. Candidates of 8-bit integers have own weights,
    dense ones among them, and a row each of ``weight_scales``; the layer's input range is the same for all of them.
    """

    weight: Tensor
    bias: Tensor | None
    biases: nn.ParameterList
    weights: nn.ParameterList
    ranks: Tensor
    weight_scales: Tensor
    """``(candidates of 8-bit integers, O)``."""
    input_scale: Tensor
    """A scalar; 0 until ``set_input_range``."""
    input_zero: Tensor
    patterns: tuple[Pattern, ...]
    int8: tuple[int, ...]
    """The candidates that multiply 8-bit integers here."""
    selection: Selection

    @classmethod
    def from_dense(
        cls,
        dense: nn.Module,
        patterns: tuple[Pattern, ...],
        own_weights: bool,
        selection: Selection,
        int8: Sequence[int] = (),
    ) -> Self:
        """Turns a dense layer into one of this class, in place, and returns it.

        In place, so that it is sparse wherever the network refers to it: networks keep layers in plain tuples too.

        Args:
            dense: of the class that this one extends, itself.
            patterns: one for each candidate, sparsest first, alike but for N.
            own_weights: whether each sparse candidate has its own weights, or all share one set with nested masks.
            selection: says which candidate runs; shared with the other layers of the network.
            int8: the candidates that multiply 8-bit integers here; needs own weights.
        """
        dense.__class__ = cls
        layer = cast('Self', dense)
        layer._init_sparse(patterns, own_weights, selection, tuple(int8))
        return layer

    def _init_sparse(
        self, patterns: tuple[Pattern, ...], own_weights: bool, selection: Selection, int8: tuple[int, ...]
    ) -> None:
        self.patterns = patterns
        self.selection = selection
        self.int8 = int8
        self._slots: dict[int, int] = {}  # candidate -> its place among those with something of their own
        for candidate, pattern in enumerate(patterns):
            if not pattern.is_dense or candidate in int8:
                self._slots[candidate] = len(self._slots)
        count = len(self._slots)
        self.own_weights = own_weights
        self.biases = nn.ParameterList([] if self.bias is None else [self.bias.detach().clone() for _ in range(count)])
        if own_weights:
            self.weights = nn.ParameterList(self.weight.detach().clone() for _ in range(count))
        else:
            self.register_buffer('ranks', torch.zeros(self.weight.shape, dtype=torch.uint8))
        if int8:
            outputs = len(by_output(self, self.weight))
            self.register_buffer('weight_scales', self.weight.new_zeros(len(int8), outputs))
            self.register_buffer('input_scale', self.weight.new_zeros(()))
            self.register_buffer('input_zero', self.weight.new_zeros(()))
        self.reset_candidates()

    @torch.no_grad()
    def reset_candidates(self) -> None:
        """Starts every candidate afresh from the dense weights: masks by magnitude, biases as the dense layer's."""
        self.rank_by_magnitude()
        for bias in self.biases:
            bias.copy_(self.bias)
        if self.own_weights:
            ranks = self._ranks_by_magnitude()
            for candidate, slot in self._slots.items():
                self.weights[slot].copy_(self.weight * self._mask(ranks, candidate))
        for row in range(len(self.int8)):
            self.weight_scales[row].copy_(largest_scale(self.weight))

    @torch.no_grad()
    def rank_by_magnitude(self) -> None:
        """Renews the nested masks of shared weights from the weights as they are now."""
        if not self.own_weights:
            self.ranks.copy_(self._ranks_by_magnitude())

    def _ranks_by_magnitude(self) -> Tensor:
        """Ranks in the shape of the weight."""
        return as_stored(self, magnitude_rank(by_output(self, self.weight), self.patterns[0]))

    def _mask(self, ranks: Tensor, candidate: int) -> Tensor:
        """What a candidate keeps, in the shape of the weight."""
        return as_stored(self, mask_of(by_output(self, ranks), self.patterns[candidate]))

    def broken_patterns(self) -> list[Pattern]:
        """The patterns of candidates whose own weights, or masks of shared ones, have too few zeros for them."""
        kept = {
            candidate: self.weights[slot].detach() if self.own_weights else self._mask(self.ranks, candidate)
            for candidate, slot in self._slots.items()
        }
        mine = [(self.patterns[candidate], by_output(self, values)) for candidate, values in kept.items()]
        return [pattern for pattern, values in mine if not satisfies(values, pattern)]

    def own_parameters(self, candidate: int) -> list[nn.Parameter]:
        """The weight and bias that a candidate computes with alone, as far as it has such."""
        slot = self._slots.get(candidate)
        if slot is None:
            return []
        kinds = [self.biases] if self.bias is not None else []
        kinds += [self.weights] if self.own_weights else []
        return [kind[slot] for kind in kinds]

    @torch.no_grad()
    def set_candidate(self, candidate: int, weight: Tensor, bias: Tensor | None) -> None:
        """Gives a sparse candidate its own weight, zeros in place, and bias. Needs own weights."""
        self.weights[self._slots[candidate]].copy_(weight)
        if bias is not None:
            self.set_bias(candidate, bias)

    @torch.no_grad()
    def set_bias(self, candidate: int, bias: Tensor) -> None:
        """Gives a sparse candidate its own bias."""
        self.biases[self._slots[candidate]].copy_(bias)

    @torch.no_grad()
    def set_grid(self, candidate: int, grid: Grid) -> None:
        """Gives a candidate of 8-bit integers the scales of its weights, and all of them the range of the inputs."""
        self.weight_scales[self.int8.index(candidate)].copy_(grid.weight_scale)
        self.input_scale.copy_(grid.input_scale)
        self.input_zero.copy_(grid.input_zero)

    def grid(self, candidate: int | None) -> Grid | None:
        """How a candidate's weights and inputs become 8-bit integers; None where they do not.

        Raises UserError where the range of the inputs is not known yet.
        """
        if candidate is None or candidate not in self.int8:
            return None
        if not self.input_scale > 0:
            raise UserError(
                'candidates of 8-bit integers need the ranges of what their layers receive: start from a checkpoint '
                'that `prune --int8` made'
            )
        return Grid(self.weight_scales[self.int8.index(candidate)], self.input_scale, self.input_zero)

    def has_usable_grids(self) -> bool:
        """Whether all scales are finite and above 0, and 0 is an integer that inputs can become."""
        rows = self.weight_scales if self.int8 else ()
        return all(is_usable(Grid(row, self.input_scale, self.input_zero)) for row in rows)

    @torch.no_grad()
    def rounded_weights(self) -> dict[str, Tensor]:
        """The weights of candidates of 8-bit integers, by their keys, as they are computed with."""
        slots = [self._slots[candidate] for candidate in self.int8]
        rows = self.weight_scales if self.int8 else ()
        return {f'weights.{slot}': rounded_weight(self.weights[slot], scale) for slot, scale in zip(slots, rows)}

    def candidate_bias(self, candidate: int | None) -> Tensor | None:
        """The bias ``(O,)`` a candidate runs with."""
        if self.bias is None or candidate is None or candidate not in self._slots:
            return self.bias
        return self.biases[self._slots[candidate]]

    def candidate_weight(self, candidate: int | None) -> Tensor:
        """The weight a candidate runs with, zeros in place, differentiable."""
        if candidate is None or candidate not in self._slots:
            return self.weight
        if self.own_weights:
            return _OwnWeight.apply(self.weights[self._slots[candidate]])
        return _StraightThrough.apply(self.weight, self._mask(self.ranks, candidate), self.selection.decay)


class SparseConv2d(_SparseLayer, nn.Conv2d):
    """A convolution that runs as the selected candidate. Made with ``from_dense``."""

    def forward(self, input: Tensor) -> Tensor:
        mixture = self.selection.mixture
        return self._run(input, self.selection.candidate) if mixture is None else mixture.run(self._run, input)

    def _run(self, input: Tensor, candidate: int | None) -> Tensor:
        weight, bias, grid = self.candidate_weight(candidate), self.candidate_bias(candidate), self.grid(candidate)
        if grid is None:
            return self._conv_forward(input, weight, bias)
        return multiply(input, weight, bias, grid, lambda q, integers: self._conv_forward(q, integers, None), 1)

    def frozen(self, candidate: int | None) -> nn.Conv2d:
        """A plain convolution with the candidate's weights, detached and copied."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            device='meta',
        )
        filled, grid = _fill(conv, self, candidate), self.grid(candidate)
        return filled if grid is None else Int8Conv2d.from_float(filled, *grid.values)


class SparseConvTranspose2d(_SparseLayer, nn.ConvTranspose2d):
    """A transposed convolution that runs as the selected candidate. Made with ``from_dense``."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        candidate = self.selection.candidate
        return run_transposed(
            self, input, self.candidate_weight(candidate), self.candidate_bias(candidate), output_size
        )

    def frozen(self, candidate: int | None) -> nn.ConvTranspose2d:
        """A plain transposed convolution with the candidate's weights, detached and copied."""
        conv = nn.ConvTranspose2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.output_padding,  # type: ignore[arg-type]
            self.groups,
            bias=self.bias is not None,
            dilation=self.dilation,  # type: ignore[arg-type]
            device='meta',
        )
        return _fill(conv, self, candidate)


def run_transposed(
    layer: nn.ConvTranspose2d,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_size: list[int] | None = None,
) -> Tensor:
    """A transposed convolution with another weight and bias; as ``layer(inputs, output_size)`` otherwise."""
    padding = layer._output_padding(
        inputs,
        output_size,
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.kernel_size,  # type: ignore[arg-type]
        2,
        layer.dilation,  # type: ignore[arg-type]
    )
    return functional.conv_transpose2d(
        inputs,
        weight,
        bias,
        layer.stride,
        layer.padding,  # type: ignore[arg-type]
        padding,
        layer.groups,
        layer.dilation,
    )


class SparseLinear(_SparseLayer, nn.Linear):  # type: ignore[misc]  # nn.Linear's bias may be None too
    """A linear layer that runs as the selected candidate. Made with ``from_dense``."""

    def forward(self, input: Tensor) -> Tensor:
        candidate = self.selection.candidate
        weight, bias, grid = self.candidate_weight(candidate), self.candidate_bias(candidate), self.grid(candidate)
        if grid is None:
            return functional.linear(input, weight, bias)
        return multiply(input, weight, bias, grid, functional.linear, -1)

    def frozen(self, candidate: int | None) -> nn.Linear:
        """A plain linear layer with the candidate's weights, detached and copied."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device='meta')
        filled, grid = _fill(linear, self, candidate), self.grid(candidate)
        return filled if grid is None else Int8Linear.from_float(filled, *grid.values)


SparseLayer = SparseConv2d | SparseConvTranspose2d | SparseLinear


def _fill(plain: Any, layer: _SparseLayer, candidate: int | None) -> Any:
    weight, bias = layer.candidate_weight(candidate), layer.candidate_bias(candidate)
    plain.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return plain
