"""Layers that multiply 8-bit integers: what is computed, in PyTorch, bit for bit as the compiled kernels do it.

An input x becomes ``q = clamp(round(x · (1 / input_scale)) + input_zero, 0, 255)``, rounded half to even; a weight is
``integer · weight_scale`` with integers from −127 to 127. The layer sums ``integer · (q − input_zero)`` exactly
(padding adds nothing) and gives ``y = sum · (weight_scale · input_scale) + bias`` in float32, product and sum rounded
one after the other. Whatever follows (activation, residual) is float32.

Ranges are a layer's own, and the same in all candidates of a network that differ in their weights only: so patches of
several candidates share their features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from typing_extensions import Self

LARGEST_INPUT = 255
LARGEST_WEIGHT = 127
_EXACT = 2**24
"""Integers up to here, and so sums that stay below, are exact in float32."""


class _Rounded(torch.autograd.Function):
    """Rounds, half to even; the gradient goes through as if it did not (straight-through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def quantize_input(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """``q − zero`` as floats of integers, differentiable by the straight-through estimator; 0 where clamped."""
    rounded = cast('Tensor', _Rounded.apply(x * scale.reciprocal())) + zero
    return rounded.clamp(0, LARGEST_INPUT) - zero


class _Int8Layer(nn.Module):
    """What int8 layers share. ``weight`` is float32; what is computed with is its rounding to the grid."""

    weight: Tensor
    bias: Tensor | None
    weight_scale: Tensor
    """``(O,)`` float32, above 0."""
    input_scale: Tensor
    """A float32 scalar, above 0."""
    input_zero: Tensor
    """A float32 scalar, an integer from 0 to 255: what 0 becomes."""

    @classmethod
    def from_float(cls, layer: nn.Module, weight_scale: Tensor, input_scale: float, input_zero: int) -> Self:
        """Turns a layer into one of this class, in place, and returns it.

        Args:
            layer: of the class that this one extends, itself.
            weight_scale: ``(O,)``.
            input_scale, input_zero: of the layer's inputs.
        """
        layer.__class__ = cls
        made = cast('Self', layer)
        made.register_buffer('weight_scale', weight_scale.detach().float().clone())
        made.register_buffer('input_scale', torch.tensor(float(input_scale)))
        made.register_buffer('input_zero', torch.tensor(float(input_zero)))
        return made

    @property
    def integers(self) -> Tensor:
        """The weight's integers, int8, in the weight's shape."""
        return self._integers().to(torch.int8)

    def _integers(self) -> Tensor:
        per_output = self.weight_scale.reshape(-1, *[1] * (self.weight.dim() - 1))
        rounded = cast('Tensor', _Rounded.apply(self.weight / per_output))
        return rounded.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)

    def forward(self, x: Tensor) -> Tensor:
        """As the float layer; differentiable in x, weight and bias."""
        integers = self._integers()
        q = quantize_input(x, self.input_scale, self.input_zero)
        largest = integers.detach().abs().flatten(1).sum(1).max() * LARGEST_INPUT
        if largest >= _EXACT:
            sums = self._sums(q.double(), integers.double()).float()
        else:
            sums = self._sums(q, integers)
        shape = (-1, 1, 1) if self._channels_first else (-1,)
        y = sums * (self.weight_scale * self.input_scale).reshape(shape)
        return y if self.bias is None else y + self.bias.reshape(shape)

    _channels_first = True

    def _sums(self, q: Tensor, integers: Tensor) -> Tensor:
        raise NotImplementedError


class Int8Conv2d(_Int8Layer, nn.Conv2d):
    """A convolution of 8-bit integers. (B, C, H, W) float32 to (B, O, H', W')."""

    def _sums(self, q: Tensor, integers: Tensor) -> Tensor:
        return self._conv_forward(q, integers, None)


class Int8Linear(_Int8Layer, nn.Linear):  # type: ignore[misc]
    """A linear layer of 8-bit integers. (…, C) float32 to (…, O)."""

    _channels_first = False

    def _sums(self, q: Tensor, integers: Tensor) -> Tensor:
        return functional.linear(q, integers)
