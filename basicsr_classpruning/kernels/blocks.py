"""Modules of whole blocks: layers without taps with what stands around them, depthwise convolutions, Swin blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr_classpruning.kernels import native
from basicsr_classpruning.kernels.block_ops import (
    PreparedPointwise,
    depthwise,
    nm_pointwise,
    run_depthwise,
    run_pointwise,
    window_attention,
)
from basicsr_classpruning.kernels.layers import Epilogue, KernelLayer, conv_geometry, linear_geometry
from basicsr_classpruning.kernels.ops import activate
from basicsr_classpruning.sparsity.int8 import Int8Conv2d, Int8Linear

_MOST_PREPARED = 32  # calls that a layer remembers: sizes of pictures, as tiles of one have few


@dataclass(frozen=True)
class Norm:
    """A normalisation of each pixel's channels, as ``nn.LayerNorm`` over them."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class Around:
    """What is computed with a layer without taps beside its epilogue."""

    norm: Norm | None = None
    """Of the input."""
    factors: bool = False
    """Whether the input's channels are multiplied by factors (B, C, 1, 1), before they are normalised."""
    gate: bool = False
    """Whether the output channels' two halves are multiplied with each other, before the activation."""

    @property
    def fused(self) -> tuple[str, ...]:
        """The names of what is fused."""
        steps = (('factors', self.factors), ('norm', self.norm is not None), ('gate', self.gate))
        return tuple(name for name, there in steps if there)


NOTHING_AROUND = Around()


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer of floats has no taps: a linear layer or a 1 x 1 convolution with strides of 1 and no padding."""
    if isinstance(layer, (Int8Conv2d, Int8Linear)):
        return False
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, nn.Conv2d) and conv_geometry(layer)[2:] == [1, 1, 1, 1, 0, 0, 1, 1]


class KernelPointwise(KernelLayer):
    """A layer without taps and what stands around it.

    (B, C, H, W) float32 to (B, O, H, W); of a linear layer, (…, C) to (…, O).

    Args:
        layer: see ``is_pointwise``.
        epilogue: without a pixel shuffle, and with a gate without a scale.
        around: with a linear layer, no factors.
    """

    lists: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, epilogue: Epilogue, around: Around = NOTHING_AROUND) -> None:
        self.around = around
        self._prepared: dict[tuple, PreparedPointwise] = {}
        self.linear = isinstance(layer, nn.Linear)
        geometry = linear_geometry(layer) if isinstance(layer, nn.Linear) else conv_geometry(layer)
        super().__init__(layer, geometry, epilogue)
        self.eps = -1.0 if around.norm is None else around.norm.eps
        self.fused = (*around.fused, *epilogue.fused)

    def pack(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight (O, C, 1, 1) for ``nm_pointwise``, and the bias; both with what the norm multiplies and adds."""
        norm = self.around.norm
        if norm is not None:
            added = weight[:, :, 0, 0].double() @ norm.bias.detach().double()
            bias = (added if bias is None else added + bias.double()).float()
            weight = (weight.double() * norm.weight.detach().double()[None, :, None, None]).float()
        isa, library = native.isa_in_use(), native.load()
        self.register_buffer('lists', None)
        if isa is None or library is None:
            return weight.clone(), bias
        if self.around.gate:  # its two halves in turns
            weight = weight.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
        geometry = native.Geometry(*self.geometry)
        self.register_buffer('lists', library.pack_pointwise(weight, geometry, isa))
        return library.pack(weight, geometry, isa), bias

    def output_shape(self, x: Tensor) -> tuple[int, ...]:
        """(B, O, H, W) or (…, O)."""
        channels = self.geometry[0] // (2 if self.around.gate else 1)
        return (*x.shape[:-1], channels) if self.linear else (x.shape[0], channels, *x.shape[2:])

    def forward(self, x: Tensor, residual: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
        """The layer and what is around it. ``factors`` in any shape that fits x."""
        if type(x) is not Tensor or torch.compiler.is_compiling():
            return self._call(x, residual, factors, nm_pointwise)
        given = tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in (x, residual, factors))
        case = (*given, torch.get_num_threads())
        known = self._prepared.get(case)
        if known is not None:
            return known.run(x, residual, factors)
        return self._call(x, residual, factors, run_pointwise, partial(self._remember, case))

    def _call(
        self,
        x: Tensor,
        residual: Tensor | None,
        factors: Tensor | None,
        operator: Callable[..., Tensor],
        prepared: Callable[[PreparedPointwise], None] | None = None,
    ) -> Tensor:
        """Calls ``classpruning::nm_pointwise``. ``prepared`` is given the call where nothing else has to be done."""
        scale = None
        if factors is not None and factors.shape == (*x.shape[:2], 1, 1):
            scale = factors.flatten(1)
        elif factors is not None:
            x, prepared = x * factors, None

        def run(residual: Tensor | None, activation: str, order: str, **others: Any) -> Tensor:
            around = (self.geometry[0], self.around.gate, self.eps, self.linear)
            slope = self.slope_of(activation)
            return operator(
                x, self.packed, self.bias, slope, residual, scale, activation, order, *around, self.lists, **others
            )

        activation, order = self.epilogue
        if residual is None or tuple(residual.shape) == self.output_shape(x):
            return run(residual, activation, order, **({} if prepared is None else {'prepared': prepared}))
        if order == 'after':
            return run(None, activation, 'none') + residual
        return activate(run(None, 'none', 'none') + residual, activation, self.slope)

    def _remember(self, case: tuple, call: PreparedPointwise) -> None:
        if len(self._prepared) >= _MOST_PREPARED:
            self._prepared.clear()
        self._prepared[case] = call

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self._prepared.clear()  # they know where the weights were
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_prepared': {}}


class Depthwise(nn.Module):
    """A depthwise 3 x 3 convolution, with a gate if wanted.

    (B, C, H, W) to (B, O, H, W) and the means of its planes, (B, O, 1, 1).
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, gate: bool) -> None:
        super().__init__()
        self.gate = gate
        self.register_buffer('weight', layer.weight.detach().float().contiguous().clone())
        self.register_buffer('bias', None if layer.bias is None else layer.bias.detach().float().clone())

    @staticmethod
    def fits(layer: nn.Module | None) -> bool:
        """Whether a layer is such a convolution."""
        return (
            type(layer) is nn.Conv2d
            and layer.groups == layer.in_channels == layer.out_channels
            and not isinstance(layer.padding, str)
            and conv_geometry(layer)[2:] == [3, 3, 1, 1, 1, 1, 1, 1]
            and layer.padding_mode == 'zeros'
            and layer.weight.dtype == torch.float32
            and layer.weight.device.type == 'cpu'
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Calls ``classpruning::depthwise``."""
        run = run_depthwise if type(x) is Tensor and not torch.compiler.is_compiling() else depthwise
        y, means = run(x, self.weight, self.bias, self.gate)
        return y, means[:, :, None, None]


def _as_convolution(layer: nn.Linear) -> nn.Conv2d:
    convolution = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=layer.bias is not None)
    convolution.weight = nn.Parameter(layer.weight.detach()[:, :, None, None], requires_grad=False)
    if layer.bias is not None:
        convolution.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return convolution


class SwinBlock(nn.Module):
    """A Swin transformer block as SwinIR has it: windows, shifted or not, inside pictures that they divide.

    (B, H W, C), which may lie in memory as (B, C, H, W), to the same; the output lies as (B, C, H, W).

    Args:
        block: with the parts that SwinIR's have; its linear layers may be pruned.
    """

    bias: Tensor
    qkv: nn.Module
    proj: nn.Module
    fc1: nn.Module
    fc2: nn.Module

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        attention: Any = block.attn
        self.window, self.shift = int(block.window_size), int(block.shift_size)  # type: ignore[arg-type]
        self.scale = float(attention.scale)
        table, index = attention.relative_position_bias_table.detach(), attention.relative_position_index
        query_key_head = table[index.flatten()].unflatten(0, index.shape)
        self.register_buffer('bias', query_key_head.permute(2, 1, 0).float().contiguous())
        for name, epilogue, norm in (
            ('attn.qkv', Epilogue(), 'norm1'),
            ('attn.proj', Epilogue(order='before'), None),
            ('mlp.fc1', Epilogue('gelu'), 'norm2'),
            ('mlp.fc2', Epilogue(order='before'), None),
        ):
            around = Around(None if norm is None else norm_of_tokens(block.get_submodule(norm)))
            layer = block.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            self.add_module(name.partition('.')[2], KernelPointwise(_as_convolution(layer), epilogue, around))

    def fused(self, name: str) -> tuple[str, ...]:
        """What is fused with one of ``SWIN_LAYERS``."""
        layer = getattr(self, name.partition('.')[2])
        assert isinstance(layer, KernelPointwise)
        return layer.fused

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """The block, for a picture of height and width ``x_size``."""
        planes = x.transpose(1, 2).unflatten(2, x_size)
        qkv = self.qkv(planes.contiguous())
        mixed = self.proj(window_attention(qkv, self.bias, self.window, self.shift, self.scale), planes)
        return self.fc2(self.fc1(mixed), mixed).flatten(2).transpose(1, 2)


def norm_of_tokens(module: nn.Module | None) -> Norm | None:
    """A normalisation of the last axis, as ``nn.LayerNorm`` over it, or None where a module is none."""
    if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) != 1 or module.weight is None:
        return None
    bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
    return Norm(module.weight, bias, module.eps)


def norm_of_planes(module: nn.Module | None) -> Norm | None:
    """A normalisation of the channels of (B, C, H, W), or None where a module is none.

    Every code base writes its own, under this name: what it computes is tried out.
    """
    if module is None or type(module).__name__ != 'LayerNorm2d':
        return None
    weight, bias, eps = (getattr(module, name, None) for name in ('weight', 'bias', 'eps'))
    if (
        not isinstance(weight, Tensor)
        or not isinstance(bias, Tensor)
        or not isinstance(eps, float)
        or weight.dim() != 1
    ):
        return None
    norm = Norm(weight, bias, eps)
    x = 3 * torch.rand(1, len(weight), 2, 3, generator=torch.Generator().manual_seed(0)) + 1
    wanted = F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, eps).movedim(-1, 1)
    return norm if _computes(lambda: module(x), wanted) else None


def _computes(run: Callable[[], Tensor], wanted: Tensor) -> bool:
    try:
        with torch.no_grad():
            found = run()
    except Exception:  # code of a network that was taken for something else may fail in any way
        return False
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= 1e-4 * wanted.abs().max())


SWIN_LAYERS = ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')


def swin_block(block: nn.Module) -> SwinBlock | None:
    """A block as a ``SwinBlock``, or None where it is none.

    It is recognised by the names of its parts; what it computes is tried out, on four windows.
    """
    attention = getattr(block, 'attn', None)
    if not all(hasattr(block, name) for name in ('window_size', 'shift_size', 'mlp', 'norm1', 'norm2')):
        return None
    if not hasattr(attention, 'relative_position_bias_table') or not hasattr(attention, 'relative_position_index'):
        return None
    try:
        made = SwinBlock(block)
        side, channels = 2 * made.window, block.get_parameter('attn.proj.weight').shape[0]
        x = torch.randn(1, side**2, channels, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = block(x, (side, side))
    except Exception:  # as in _computes
        return None
    return made.eval() if _computes(lambda: made(x, (side, side)), wanted) else None
