"""Layers of 8-bit integers that run on the compiled kernels, with what follows them fused in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from basicsr_classpruning.kernels import int8_native, native
from basicsr_classpruning.kernels.int8_ops import (
    BOTH,
    FLOATS,
    INTEGERS,
    PreparedConv2d,
    int8_conv2d,
    int8_linear,
    int8_quantize,
    prepare_conv2d,
)
from basicsr_classpruning.kernels.layers import Epilogue, EpilogueLayer, conv_geometry, linear_geometry
from basicsr_classpruning.kernels.ops import output_size
from basicsr_classpruning.sparsity.int8 import Int8Conv2d, Int8Linear


@dataclass(frozen=True)
class Range:
    """What floats become as activations: ``clamp(round(x · inverse_scale) + zero, 0, 255)``."""

    inverse_scale: float
    """A float32 number."""
    zero: int

    @classmethod
    def of(cls, layer: Int8Conv2d | Int8Linear) -> Range:
        """The range of a layer's inputs."""
        return cls(float(layer.input_scale.reciprocal()), int(layer.input_zero))

    @property
    def numbers(self) -> list[float]:
        """As the operators take it."""
        return [self.inverse_scale, float(self.zero)]


class Int8KernelLayer(EpilogueLayer):
    """Integers and epilogue of a layer, packed once."""

    packed: Tensor
    scale: Tensor
    bias: Tensor | None
    factor: Tensor | None

    def __init__(self, layer: Int8Conv2d | Int8Linear, geometry: list[int], epilogue: Epilogue) -> None:
        super().__init__()
        self.geometry = geometry
        self.epilogue = (epilogue.activation, epilogue.order)
        self.range = Range.of(layer)
        integers = layer.integers.reshape(*layer.weight.shape[:2], *geometry[2:4])
        isa = int8_native.available()
        packed = integers.clone() if isa is None else int8_native.pack(integers, native.Geometry(*geometry), isa)
        self.register_buffer('packed', packed)
        factor = None if epilogue.scale is None else epilogue.scale.expand(geometry[0])
        scale = layer.weight_scale * layer.input_scale
        for name, value in (('scale', scale), ('bias', layer.bias), ('factor', factor), ('slope', epilogue.slope)):
            self.register_buffer(name, None if value is None else value.detach().float().contiguous().clone())


class _Prepared(dict[tuple, PreparedConv2d]):
    """Calls that were checked, by what they depend on: a layer is called with few shapes. Not copied with the layer."""

    MOST = 64

    def __reduce__(self) -> tuple:
        return _Prepared, ()

    def keep(self, key: tuple, prepared: PreparedConv2d) -> None:
        """Remembers a call, and forgets the others where they are many."""
        if len(self) >= self.MOST:
            self.clear()
        self[key] = prepared


class Int8KernelConv2d(Int8KernelLayer):
    """A convolution of 8-bit integers without groups.

    (B, C, H, W) float32 or activations in the layer's range to (B, O, H', W') float32, to activations in ``makes``, the
    range of the layers that read them, or to both.
    """

    def __init__(self, layer: Int8Conv2d, epilogue: Epilogue) -> None:
        super().__init__(layer, conv_geometry(layer), epilogue)
        self.shuffle = epilogue.shuffle
        self.makes: Range | None = None
        self.makes_floats = True
        self.may_overwrite = False
        """Whether nothing else reads the residual afterwards: half of what a trunk takes of the cache is saved."""
        self._prepared = _Prepared()

    def output_shape(self, x: Tensor) -> tuple[int, ...]:
        """(B, O, H', W'), shuffled."""
        sizes = (self.shuffle * output_size(x.shape[2 + i], *self.geometry[2 + i :: 2]) for i in range(2))
        return (x.shape[0], self.geometry[0] // self.shuffle**2, *sizes)

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Floats, activations, or the pair of them."""
        if type(x) is not Tensor or torch.compiler.is_compiling():
            return self._forward(x, residual)
        key = (x.shape, x.dtype, residual is None, self.makes, self.makes_floats, id(self._buffers['packed']))
        prepared = self._prepared.get(key)
        if prepared is None or not prepared.takes(x, residual):
            made = self._forward(x, residual)
            self._prepare(key, x, residual)
            return made
        y, q = prepared.run(x, residual, self.may_overwrite)
        if y is None or q is None:
            return cast('Tensor', q if y is None else y)
        return y, q

    def _forward(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        if self.makes is None:
            return super().forward(x, residual)
        if residual is None or tuple(residual.shape) == self.output_shape(x):
            y, q = self._call(x, residual, *self.epilogue, self._made)
        else:
            y = super().forward(x, residual)
            q = int8_quantize(y, self.makes.numbers)
        return (y, q) if self.makes_floats else q

    @property
    def _made(self) -> int:
        return FLOATS if self.makes is None else BOTH if self.makes_floats else INTEGERS

    def _prepare(self, key: tuple, x: Tensor, residual: Tensor | None) -> None:
        """Remembers the call of inputs that were accepted, where nothing else is to be done with them."""
        fits = residual is None or tuple(residual.shape) == self.output_shape(x)
        if not fits or x.dtype != torch.uint8 or self.packed.dtype != torch.int32 or not x.numel():
            return
        activation, order = self.epilogue
        layer = (self.packed, self.scale, self.bias, self.factor, self.slope_of(activation))
        next_range = None if self.makes is None else self.makes.numbers
        order = 'none' if residual is None else order
        rest = (self.geometry, self.range.zero, self.shuffle, self._made, next_range)
        self._prepared.keep(key, prepare_conv2d(x, layer, activation, order, *rest))

    def run(self, x: Tensor, residual: Tensor | None, activation: str, order: str) -> Tensor:
        """Calls ``classpruning::int8_conv2d`` for floats."""
        return self._call(x, residual, activation, order, FLOATS)[0]

    def _call(
        self, x: Tensor, residual: Tensor | None, activation: str, order: str, made: int
    ) -> tuple[Tensor, Tensor]:
        layer = (self.packed, self.scale, self.bias, self.factor, self.slope_of(activation))
        next_range = self.makes.numbers if self.makes is not None and made & INTEGERS else None
        geometry, numbers = self.geometry, self.range.numbers
        return int8_conv2d(x, *layer, residual, activation, order, geometry, numbers, self.shuffle, made, next_range)


class Int8KernelLinear(Int8KernelLayer):
    """A linear layer of 8-bit integers. (…, C) float32 to (…, O)."""

    def __init__(self, layer: Int8Linear, epilogue: Epilogue) -> None:
        super().__init__(layer, linear_geometry(layer), epilogue)

    def output_shape(self, x: Tensor) -> tuple[int, ...]:
        """(…, O)."""
        return (*x.shape[:-1], self.geometry[0])

    def run(self, x: Tensor, residual: Tensor | None, activation: str, order: str) -> Tensor:
        """Calls ``classpruning::int8_linear``."""
        layer = (self.packed, self.scale, self.bias, self.factor, self.slope_of(activation))
        return int8_linear(x, *layer, residual, activation, order, self.geometry[0], self.range.numbers)


class Quantize(nn.Module):
    """(B, C, H, W) float32 to activations."""

    def __init__(self, value_range: Range) -> None:
        super().__init__()
        self.range = value_range

    def forward(self, x: Tensor) -> Tensor:
        """Calls ``classpruning::int8_quantize``."""
        return int8_quantize(x, self.range.numbers)


def int8_layer(layer: nn.Module, epilogue: Epilogue) -> Int8KernelLayer:
    """A layer of ``sparsity.int8`` on the kernels."""
    if isinstance(layer, Int8Linear):
        return Int8KernelLinear(layer, epilogue)
    assert isinstance(layer, Int8Conv2d)
    return Int8KernelConv2d(layer, epilogue)


def is_int8(layer: nn.Module | None) -> bool:
    """Whether a layer is one of ``sparsity.int8``."""
    return type(layer) in (Int8Conv2d, Int8Linear)
