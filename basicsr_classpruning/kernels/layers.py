"""Layers that run on the N:M kernels, with what follows them fused in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from basicsr_classpruning.kernels import native
from basicsr_classpruning.kernels.ops import activate, nm_conv2d, output_size


@dataclass(frozen=True)
class Epilogue:
    """What is computed with a layer's output before it is stored.

    ``y = activation(scale * layer(x) + residual)`` or ``activation(scale * layer(x)) + residual``; with a pixel
    shuffle, ``shuffle(activation(scale * layer(x))) + residual``.
    """

    activation: str = 'none'
    """One of ``native.ACTIVATIONS``."""
    slope: Tensor | None = None
    """Slope below zero: one value (leaky_relu) or one for each output channel (prelu)."""
    order: str = 'none'
    """Where a residual is added: ``'none'``, ``'before'`` or ``'after'`` the activation."""
    scale: Tensor | None = None
    """Factor of the layer's own output, one value or one for each output channel; folded into weight and bias."""
    shuffle: int = 1
    """Factor of a pixel shuffle, up to ``native.MAX_SHUFFLE``; 1 is none. Only of a convolution."""

    @property
    def fused(self) -> tuple[str, ...]:
        """The names of what is fused, in the order of computation."""
        steps = [self.activation]
        if self.shuffle > 1:
            steps.append('pixel_shuffle')
        if self.order != 'none':
            steps.insert(0 if self.order == 'before' else len(steps), 'residual')
        if self.scale is not None:
            steps.insert(0, 'scale')
        return tuple(step for step in steps if step != 'none')


def _fold_scale(weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if scale is None:
        return weight, bias
    factors = scale.detach().to(weight.dtype).expand(weight.shape[0])
    folded = weight * factors.reshape(-1, *[1] * (weight.dim() - 1))
    return folded, None if bias is None else bias * factors


class EpilogueLayer(nn.Module):
    """A layer with an epilogue, on an operator of its own."""

    geometry: list[int]
    epilogue: tuple[str, str]
    """The activation, and where a residual is added."""
    slope: Tensor | None

    def run(self, x: Tensor, residual: Tensor | None, activation: str, order: str) -> Tensor:
        """Calls the layer's operator."""
        raise NotImplementedError

    def slope_of(self, activation: str) -> Tensor | None:
        """The slope, where an activation has one: without activation the operator takes none."""
        return None if activation == 'none' else self.slope

    def output_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the output for an input."""
        raise NotImplementedError

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The layer with its epilogue. ``residual`` is given where the epilogue adds one, in any shape that fits."""
        activation, order = self.epilogue
        if residual is None or tuple(residual.shape) == self.output_shape(x):
            return self.run(x, residual, activation, order)
        if order == 'after':
            return self.run(x, None, activation, 'none') + residual
        return activate(self.run(x, None, 'none', 'none') + residual, activation, self.slope)

    def extra_repr(self) -> str:
        """Sizes and fused steps, as ``print(net)`` shows them."""
        out_channels, in_channels, *kernel = self.geometry[:4]
        activation, order = self.epilogue
        return f'{in_channels}, {out_channels}, kernel_size={tuple(kernel)}, {activation=}, residual={order!r}'


class KernelLayer(EpilogueLayer):
    """Weight and epilogue of a layer, packed once."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, geometry: Sequence[int], epilogue: Epilogue) -> None:
        super().__init__()
        self.geometry = list(geometry)
        self.epilogue = (epilogue.activation, epilogue.order)
        weight, bias = _fold_scale(layer.weight.detach(), layer.bias, epilogue.scale)
        packed, bias = self.pack(weight.reshape(*weight.shape[:2], *geometry[2:4]), bias)
        self.register_buffer('packed', packed)
        for name, value in (('bias', bias), ('slope', epilogue.slope)):
            self.register_buffer(name, None if value is None else value.detach().float().contiguous().clone())

    def pack(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight as the layer's operator takes it, and the bias."""
        return _pack(weight, self.geometry), bias


def _pack(weight: Tensor, geometry: Sequence[int]) -> Tensor:
    isa, library = native.isa_in_use(), native.load()
    if isa is None or library is None:
        return weight.clone()
    return library.pack(weight, native.Geometry(*geometry), isa)


def _pack_winograd(weight: Tensor, geometry: Sequence[int]) -> Tensor | None:
    isa, library = native.available(), native.load()
    return None if isa is None or library is None else library.pack_winograd(weight, native.Geometry(*geometry), isa)


class KernelConv2d(KernelLayer):
    """A convolution without groups. (B, C, H, W) float32 to (B, O, H', W')."""

    winograd: Tensor | None

    def __init__(self, layer: nn.Conv2d, epilogue: Epilogue) -> None:
        self.shuffle = epilogue.shuffle
        super().__init__(layer, conv_geometry(layer), epilogue)

    def pack(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight with the zeros skipped and, where it fits, for Winograd's algorithm; the bias."""
        fits = native.fits_winograd(self.geometry, self.shuffle)
        self.register_buffer('winograd', _pack_winograd(weight, self.geometry) if fits else None)
        return super().pack(weight, bias)

    def output_shape(self, x: Tensor) -> tuple[int, ...]:
        """(B, O, H', W'), shuffled."""
        sizes = (self.shuffle * output_size(x.shape[2 + i], *self.geometry[2 + i :: 2]) for i in range(2))
        return (x.shape[0], self.geometry[0] // self.shuffle**2, *sizes)

    def run(self, x: Tensor, residual: Tensor | None, activation: str, order: str) -> Tensor:
        """Calls ``classpruning::nm_conv2d``."""
        epilogue = (self.bias, self.slope_of(activation), residual, activation, order)
        return nm_conv2d(x, self.packed, *epilogue, self.geometry, self.shuffle, self.winograd)


def conv_geometry(layer: nn.Conv2d) -> list[int]:
    """The sizes of a convolution with numeric padding, as ``nm_conv2d`` takes them."""
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return [layer.out_channels, layer.in_channels, *(int(size) for pair in sizes for size in pair)]


def linear_geometry(layer: nn.Linear) -> list[int]:
    """A linear layer as a 1 x 1 convolution."""
    return [layer.out_features, layer.in_features, 1, 1, 1, 1, 0, 0, 1, 1]
