"""Layers that multiply 8-bit integers: what is computed, in PyTorch, bit for bit as the compiled kernels do it.

An input x becomes ``q = clamp(round(x · (1 / input_scale)) + input_zero, 0, 255)``, rounded half to even; a weight is
``integer · weight_scale`` with integers from −127 to 127. The layer sums ``integer · (q − input_zero)`` exactly
(padding adds nothing) and gives ``y = sum · (weight_scale · input_scale) + bias`` in float32, product and sum rounded
one after the other. Whatever follows (activation, residual) is float32.

Ranges are a layer's own, and the same in all candidates of a network that differ in their weights only: so patches of
several candidates share their features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class InputRange:
    """How a layer's inputs become integers: 0 exactly, and the range of what it was seen to receive in 255 steps."""

    scale: Tensor
    """A float32 scalar, above 0."""
    zero: Tensor
    """A float32 scalar, an integer from 0 to 255: what 0 becomes."""

    @classmethod
    def covering(cls, low: float, high: float) -> InputRange:
        """The range that holds 0 and all values between two finite ones."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / LARGEST_INPUT or 1.0
        return cls(torch.tensor(scale), torch.tensor(float(round(-low / scale))))

    def to(self, device: torch.device) -> InputRange:
        """The same on a device."""
        return InputRange(self.scale.to(device), self.zero.to(device))

    def rounded(self, x: Tensor) -> Tensor:
        """Inputs as the layer sees them."""
        return quantize_input(x, self.scale, self.zero) * self.scale


@dataclass(frozen=True)
class Grid:
    """How a layer's weights and inputs become integers."""

    weight_scale: Tensor
    """``(O,)`` float32, above 0."""
    input_scale: Tensor
    """A float32 scalar, above 0."""
    input_zero: Tensor
    """A float32 scalar, an integer from 0 to 255: what 0 becomes."""

    @property
    def values(self) -> tuple[Tensor, float, int]:
        """What ``from_float`` takes."""
        return self.weight_scale, float(self.input_scale), int(self.input_zero)


def is_usable(grid: Grid) -> bool:
    """Whether scales are finite and above 0, and 0 is one of the integers that inputs become."""
    scales = torch.cat([grid.weight_scale, grid.input_scale.reshape(1)])
    zero = float(grid.input_zero)
    return bool((scales > 0).all() and scales.isfinite().all()) and 0 <= zero <= LARGEST_INPUT and zero == round(zero)


class _Rounded(torch.autograd.Function):
    """Rounds, half to even; the gradient goes through as if it did not (straight-through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _QuantizedInput(torch.autograd.Function):
    """``quantize_input``, in few passes over the memory, which its time goes into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        rounded = (x * scale.reciprocal()).round_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((rounded >= -zero) & (rounded <= LARGEST_INPUT - zero), scale)
        return rounded.clamp_(-zero, LARGEST_INPUT - zero)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        inside, scale = ctx.saved_tensors
        return (grads[0] * inside).div_(scale), None, None


def quantize_input(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """``q − zero`` as floats of integers, differentiable by the straight-through estimator; 0 where clamped."""
    return cast('Tensor', _QuantizedInput.apply(x, scale, zero))


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """The integers of a weight ``(O, …)`` as floats, differentiable as ``quantize_input``; ``scale`` is ``(O,)``."""
    rounded = cast('Tensor', _Rounded.apply(weight / _per_output(scale, weight)))
    return rounded.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)


def rounded_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """A weight as it is computed with: what ``quantize_weight`` leaves of it."""
    return quantize_weight(weight, scale) * _per_output(scale, weight)


def largest_scale(weight: Tensor) -> Tensor:
    """Scales ``(O,)`` with which each output channel's largest weight becomes the largest integer."""
    largest = weight.detach().abs().flatten(1).amax(1) / LARGEST_WEIGHT
    return largest.masked_fill(largest == 0, 1.0)


def _per_output(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


def multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: Grid,
    sums: Callable[[Tensor, Tensor], Tensor],
    channel_axis: int,
) -> Tensor:
    """What an int8 layer computes; differentiable in x, weight and bias.

    A training with ``amp: bf16`` adds up in bfloat16, which holds the integers but not their sums.

    Args:
        x: inputs.
        weight: ``(O, …)``; what is computed with is its rounding to the grid.
        bias: ``(O,)``.
        grid: scales and zero point.
        sums: the layer without bias, of inputs and a weight.
        channel_axis: of its outputs.
    """
    device = x.device.type
    brief = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    with torch.autocast(device, enabled=False):
        x, weight = x.float(), weight.float()
        integers = quantize_weight(weight, grid.weight_scale)
        q = quantize_input(x, grid.input_scale, grid.input_zero)
        if brief and integers.requires_grad:
            summed = sums(q.bfloat16(), integers.bfloat16()).float()
        elif integers.detach().abs().flatten(1).sum(1).max() * LARGEST_INPUT >= _EXACT:
            summed = sums(q.double(), integers.double()).float()
        else:
            summed = sums(q, integers)
        shape = (-1, 1, 1) if channel_axis == 1 else (-1,)
        y = summed * (grid.weight_scale * grid.input_scale).reshape(shape)
        return y if bias is None else y + bias.float().reshape(shape)


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
        made.register_buffer('input_scale', weight_scale.new_tensor(float(input_scale)))
        made.register_buffer('input_zero', weight_scale.new_tensor(float(input_zero)))
        return made

    @property
    def grid(self) -> Grid:
        """Scales and zero point."""
        return Grid(self.weight_scale, self.input_scale, self.input_zero)

    @property
    def integers(self) -> Tensor:
        """The weight's integers, int8, in the weight's shape."""
        return quantize_weight(self.weight, self.weight_scale).to(torch.int8)


def int8_layers(net: nn.Module) -> dict[str, Int8Conv2d | Int8Linear]:
    """The layers of a network that multiply 8-bit integers, by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, (Int8Conv2d, Int8Linear))}


@torch.no_grad()
def as_float(net: nn.Module) -> nn.Module:
    """A copy of a network with plain layers, whose weights are those that its 8-bit integers stand for.

    Their inputs are not rounded, so it gives nearly the same; a network without such layers is returned itself.
    """
    if not int8_layers(net):
        return net
    plain = copy.deepcopy(net)
    for layer in int8_layers(plain).values():
        layer.weight.copy_(rounded_weight(layer.weight, layer.weight_scale))
        for name in ('weight_scale', 'input_scale', 'input_zero'):
            delattr(layer, name)
        kind: Any = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
        layer.__class__ = kind
    return plain


class Int8Conv2d(_Int8Layer, nn.Conv2d):
    """A convolution of 8-bit integers. (B, C, H, W) float32 to (B, O, H', W')."""

    def forward(self, input: Tensor) -> Tensor:
        return multiply(input, self.weight, self.bias, self.grid, lambda q, w: self._conv_forward(q, w, None), 1)

    def without_padding(self, x: Tensor) -> Tensor:
        """The same for inputs that are padded already."""
        return multiply(
            x, self.weight, self.bias, self.grid,
            lambda q, w: functional.conv2d(q, w, None, self.stride, 0, self.dilation, self.groups), 1,
        )  # fmt: skip


class Int8Linear(_Int8Layer, nn.Linear):  # type: ignore[misc]  # nn.Linear's bias may be None too
    """A linear layer of 8-bit integers. (…, C) float32 to (…, O)."""

    def forward(self, input: Tensor) -> Tensor:
        return multiply(input, self.weight, self.bias, self.grid, functional.linear, -1)
