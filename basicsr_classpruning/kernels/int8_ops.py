"""The operators ``classpruning::int8_quantize``, ``int8_conv2d`` and ``int8_linear``, and what they compute in PyTorch.

Activations are ``(B, ceil(C / 4), H, W, 4)`` uint8: four neighbouring channels of a pixel lie together, and channels
that fill the last unit hold the zero point. A range is ``[1 / scale, zero]``, the first as float32 computes it.
``packed`` is a packed weight (int32 words, ``int8_native``), or the integers, ``(O, C, kh, kw)`` int8, for the
reference path. Both give the same bits, whatever the processor and the number of threads: those of
``sparsity/int8.py``. Inputs that are not numbers count as the smallest. Inference only: no gradient is registered.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr_classpruning.kernels import int8_native, native
from basicsr_classpruning.kernels.memory import features
from basicsr_classpruning.kernels.ops import activate, output_size
from basicsr_classpruning.sparsity.int8 import LARGEST_INPUT

UNIT = 4
_LAYER = 'Tensor packed, Tensor scale, Tensor? bias, Tensor? factor, Tensor? slope'
_library = torch.library.Library('classpruning', 'FRAGMENT')
_library.define('int8_quantize(Tensor x, float[] range) -> Tensor')
# x: float32 (B, C, H, W), or activations in `range`, the layer's input range
# geometry, activation, order, shuffle: as of nm_conv2d; factor: of the output before all that follows
# made: 1 makes floats, 2 activations in `next_range`, 3 both; what is not made is empty
_library.define(
    f'int8_conv2d(Tensor x, {_LAYER}, Tensor? residual, str activation, str order, int[] geometry, float[] range, '
    'int shuffle=1, int made=1, float[]? next_range=None) -> (Tensor, Tensor)'
)
_library.define(
    f'int8_linear(Tensor x, {_LAYER}, Tensor? residual, str activation, str order, int out_features, '
    'float[] range) -> Tensor'
)
FLOATS, INTEGERS, BOTH = 1, 2, 3


def units(channels: int) -> int:
    """How many units of four hold some channels."""
    return -(-channels // UNIT)


# --- activations ----------------------------------------------------------------------------------------------------


def _empty_activations(x: Tensor) -> Tensor:
    if x.dim() != 4 or x.dtype != torch.float32:
        raise ValueError(f'int8_quantize: x must be (B, C, H, W) float32, not {tuple(x.shape)} {x.dtype}')
    batch, channels, height, width = x.shape
    return x.new_empty((batch, units(channels), height, width, UNIT), dtype=torch.uint8)


def _levels(x: Tensor, value_range: Sequence[float]) -> Tensor:
    inverse_scale, zero = value_range
    q = (x * torch.tensor(inverse_scale, dtype=torch.float32)).round() + zero
    return q.nan_to_num(nan=0.0).clamp(0, LARGEST_INPUT).to(torch.uint8)


def _interleaved(q: Tensor, zero: float) -> Tensor:
    """(B, C, H, W) uint8 in units of four channels."""
    padded = F.pad(q, (0, 0, 0, 0, 0, -q.shape[1] % UNIT), value=zero)
    return padded.unflatten(1, (-1, UNIT)).movedim(2, -1).contiguous()


def _planes(activations: Tensor, channels: int) -> Tensor:
    return activations.movedim(-1, 2).flatten(1, 2)[:, :channels]


def _int8_quantize(x: Tensor, range: Sequence[float]) -> Tensor:
    q = _empty_activations(x)
    isa = int8_native.available()
    if isa is None:
        return q.copy_(_interleaved(_levels(x, range), range[1]))
    if q.numel():
        call = int8_native.QuantizeCall(
            x.data_ptr(), q.data_ptr(), *x.shape, *x.stride(), range[0], int(range[1]), 0, torch.get_num_threads()
        )
        int8_native.quantize(call, isa)
    return q


# --- convolutions ---------------------------------------------------------------------------------------------------


def _is_activations(x: Tensor) -> bool:
    return x.dtype == torch.uint8


def _empty_outputs(x: Tensor, geometry: Sequence[int], shuffle: int, made: int) -> tuple[Tensor, Tensor]:
    """Uninitialised floats and activations of a layer. Raises ValueError where x does not fit it."""
    out_channels, in_channels, *sizes = geometry
    channels, shape = x.shape[1], f'(B, {in_channels}, H, W) float32'
    if _is_activations(x):
        in_channels, shape = units(in_channels), f'(B, {units(in_channels)}, H, W, 4) uint8'
    if x.dim() != 4 + _is_activations(x) or channels != in_channels or x.dtype not in (torch.float32, torch.uint8):
        raise ValueError(f'int8_conv2d: x must be {shape}, not {tuple(x.shape)} {x.dtype}')
    height, width = (output_size(x.shape[2 + i], *sizes[i::2]) for i in range(2))
    if height < 0 or width < 0:
        raise ValueError(f'int8_conv2d: a picture of {x.shape[2]} x {x.shape[3]} is smaller than the kernel')
    if not 1 <= shuffle <= native.MAX_SHUFFLE or out_channels % shuffle**2:
        raise ValueError(f'int8_conv2d: {out_channels} channels cannot be shuffled by {shuffle}')
    out_channels, height, width = out_channels // shuffle**2, height * shuffle, width * shuffle
    y_shape = (x.shape[0], out_channels, height, width) if made & FLOATS else (0,)
    q_shape = (x.shape[0], units(out_channels), height, width, UNIT) if made & INTEGERS else (0,)
    device = x.device
    return torch.empty(y_shape, dtype=torch.float32, device=device), torch.empty(
        q_shape, dtype=torch.uint8, device=device
    )


def _check(
    geometry: Sequence[int],
    scale: Tensor,
    bias: Tensor | None,
    factor: Tensor | None,
    slope: Tensor | None,
    activation: str,
) -> None:
    for name, tensor in (('scale', scale), ('bias', bias), ('factor', factor), ('slope', slope)):
        entries = 1 if name == 'slope' and activation == 'leaky_relu' else geometry[0]
        if tensor is not None and (tensor.numel() != entries or tensor.dtype != torch.float32):
            raise ValueError(f'{name} must be {entries} float32 values')
    if slope is None and activation in ('leaky_relu', 'prelu'):
        raise ValueError(f'{activation} needs a slope')
    if activation not in native.ACTIVATIONS or activation == 'gelu':
        raise ValueError(f'int8_conv2d: no activation {activation!r}')


def _reference(
    q: Tensor,
    integers: Tensor,
    layer: Sequence[Tensor | None],
    residual: Tensor | None,
    activation: str,
    order: str,
    geometry: Sequence[int],
    zero: float,
    shuffle: int,
) -> Tensor:
    """The layer on planes of levels."""
    scale, bias, factor, slope = layer
    assert scale is not None
    stride, padding, dilation = geometry[4:6], geometry[6:8], geometry[8:10]
    sums = F.conv2d(q.double() - zero, integers.double(), None, stride, padding, dilation)
    y = sums.float() * scale[:, None, None]
    y = y if bias is None else y + bias[:, None, None]
    y = y if factor is None else y * factor[:, None, None]
    if residual is not None and order == 'before':
        y = y + residual
    y = activate(y, activation, slope)
    y = F.pixel_shuffle(y, shuffle) if shuffle > 1 else y
    return y + residual if residual is not None and order == 'after' else y


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None or not x.numel() else x.data_ptr()


@dataclass(frozen=True)
class PreparedConv2d:
    """A call of a packed convolution on activations of one shape, for which all sizes were checked."""

    call: int8_native.Call
    """Without inputs, outputs and threads. Several threads may run it: each works on a copy."""
    kept: tuple[Tensor | None, ...]
    """What the call points to."""
    shape: tuple[int, ...]
    """Of the output, (B, O, H', W'), shuffled."""
    makes_floats: bool
    q_shape: tuple[int, ...] | None
    """Of the activations, or None where none are made."""

    def takes(self, x: Tensor, residual: Tensor | None) -> bool:
        """Whether ``run`` takes inputs as they lie in memory; x has the shape that was checked."""
        if residual is None:
            return x.is_contiguous()
        fits = residual.shape == self.shape and residual.dtype == torch.float32
        return fits and residual.is_contiguous() and x.is_contiguous()

    def run(
        self, x: Tensor, residual: Tensor | None, overwrite: bool, jobs: native.Jobs | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Floats and activations of inputs that it takes; ``overwrite``: the floats are stored over the residual.

        With ``jobs`` only what they name is computed, with their weights; the rest stays as it was.
        """
        y = None
        if self.makes_floats:
            y = residual if overwrite and residual is not None else features.empty(self.shape)
        q = None if self.q_shape is None else features.empty(self.q_shape, torch.uint8)
        call = int8_native.Call.from_buffer_copy(self.call)
        call.x, call.threads = x.data_ptr(), torch.get_num_threads()
        call.y, call.q, call.residual = _pointer(y), _pointer(q), _pointer(residual)
        if jobs is not None:
            call.jobs = ctypes.pointer(jobs)
        int8_native.run(call)
        return y, q


def prepare_conv2d(
    x: Tensor,
    layer: Sequence[Tensor | None],
    activation: str,
    order: str,
    geometry: Sequence[int],
    zero: float,
    shuffle: int,
    made: int,
    next_range: Sequence[float] | None,
) -> PreparedConv2d:
    """A call for inputs such as ``x``, which ``int8_conv2d`` accepted.

    Args:
        x: activations.
        layer: packed weight, scale, bias, factor and slope; for a call with jobs, None for the first three.
        order: ``'none'`` where there is no residual.
        activation, geometry, shuffle, made, next_range: as of ``int8_conv2d``; zero: the input range's.
    """
    sizes = [output_size(x.shape[2 + i], *geometry[2 + i :: 2]) for i in range(2)]
    channels, shuffled = geometry[0] // shuffle**2, [shuffle * size for size in sizes]
    inverse_scale, next_zero = (0.0, 0) if next_range is None else next_range
    packed, scale, bias, factor, slope = map(_pointer, layer)
    call = int8_native.Call(
        packed, None, None, None, scale, bias, factor, None, slope,
        x.shape[0], geometry[1], *x.shape[2:4], geometry[0], *sizes,
        inverse_scale, int(next_zero), int(zero),
        native.ACTIVATIONS[activation], native.RESIDUALS[order], shuffle, 1,
    )  # fmt: skip
    q_shape = (x.shape[0], units(channels), *shuffled, UNIT) if made & INTEGERS else None
    return PreparedConv2d(call, tuple(layer), (x.shape[0], channels, *shuffled), bool(made & FLOATS), q_shape)


def _int8_conv2d(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    factor: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: str,
    order: str,
    geometry: Sequence[int],
    range: Sequence[float],
    shuffle: int = 1,
    made: int = FLOATS,
    next_range: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """What ``classpruning::int8_conv2d`` runs on a CPU."""
    y, q = _empty_outputs(x, geometry, shuffle, made)
    _check(geometry, scale, bias, factor, slope, activation)
    if shuffle > 1 and order == 'before':
        raise ValueError('int8_conv2d: a residual is added after a pixel shuffle, not before the activation')
    if (next_range is None) == bool(made & INTEGERS):
        raise ValueError('int8_conv2d: next_range belongs to activations')
    sizes = [output_size(x.shape[2], *geometry[2::2]), output_size(x.shape[3], *geometry[3::2])]
    wanted = (x.shape[0], geometry[0] // shuffle**2, *(shuffle * size for size in sizes))
    if residual is not None and (residual.shape != wanted or residual.dtype != torch.float32):
        raise ValueError(f'residual must be {wanted} float32, not {tuple(residual.shape)} {residual.dtype}')
    if not y.numel() and not q.numel():
        return y, q
    x = x if _is_activations(x) else _int8_quantize(x, range)
    if packed.dtype == torch.int8:
        planes = _planes(x, geometry[1])
        found = _reference(
            planes, packed, (scale, bias, factor, slope), residual, activation, order, geometry, range[1], shuffle
        )
        if next_range is not None:
            q.copy_(_interleaved(_levels(found, next_range), next_range[1]))
        return (y.copy_(found) if made & FLOATS else y), q
    residual = None if residual is None else residual.contiguous()
    order = order if residual is not None else 'none'
    layer = (packed, scale, bias, factor, slope)
    prepared = prepare_conv2d(x, layer, activation, order, geometry, range[1], shuffle, made, next_range)
    floats, activations = prepared.run(x.contiguous(), residual, overwrite=False)
    return y if floats is None else floats, q if activations is None else activations


def _fake_conv2d(
    x,
    packed,
    scale,
    bias,
    factor,
    slope,
    residual,
    activation,
    order,
    geometry,
    range,
    shuffle=1,
    made=1,
    next_range=None,
):
    return _empty_outputs(x, geometry, shuffle, made)


# --- linear layers --------------------------------------------------------------------------------------------------

_TOKENS_ASIDE = 16  # tokens are the pixels of a picture as wide as the widest vector


def _empty_linear_output(x: Tensor, out_features: int) -> Tensor:
    if x.dtype != torch.float32:
        raise ValueError(f'int8_linear: x must be float32, not {x.dtype}')
    return x.new_empty((*x.shape[:-1], out_features))


def _int8_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    factor: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: str,
    order: str,
    out_features: int,
    range: Sequence[float],
) -> Tensor:
    y = _empty_linear_output(x, out_features)
    if y.numel() == 0:
        return y
    geometry = [out_features, x.shape[-1], 1, 1, 1, 1, 0, 0, 1, 1]
    tokens = x.reshape(-1, x.shape[-1])
    count = len(tokens)
    filled = F.pad(tokens, (0, 0, 0, -count % _TOKENS_ASIDE))
    picture = filled.reshape(1, -1, _TOKENS_ASIDE, x.shape[-1]).movedim(-1, 1)
    after = order == 'before'  # then the activation comes after what is added here
    here = ('none', None) if after else (activation, slope)
    found, _ = _int8_conv2d(picture, packed, scale, bias, factor, here[1], None, here[0], 'none', geometry, range)
    y.copy_(found.flatten(2)[0, :, :count].t().reshape(y.shape))
    if residual is None:
        return y
    y += residual
    # channels second, for PReLU
    return activate(y.movedim(-1, 0)[None], activation, slope)[0].movedim(0, -1).contiguous() if after else y


def _fake_linear(x, packed, scale, bias, factor, slope, residual, activation, order, out_features, range):
    return _empty_linear_output(x, out_features)


for _name, _kernel, _fake in (
    ('int8_quantize', _int8_quantize, lambda x, range: _empty_activations(x)),
    ('int8_conv2d', _int8_conv2d, _fake_conv2d),
    ('int8_linear', _int8_linear, _fake_linear),
):
    _library.impl(_name, _kernel, 'CPU')
    torch.library.register_fake(f'classpruning::{_name}', _fake, lib=_library)

int8_quantize = torch.ops.classpruning.int8_quantize
int8_conv2d = torch.ops.classpruning.int8_conv2d
int8_linear = torch.ops.classpruning.int8_linear
