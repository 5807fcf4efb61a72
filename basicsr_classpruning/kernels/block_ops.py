"""Operators of whole blocks: layers without taps with what stands around them, depthwise layers, window attention.

``classpruning::nm_pointwise``, ``classpruning::depthwise`` and ``classpruning::window_attention``, and what they
compute, in PyTorch. Inference only: no gradient is registered.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr_classpruning.kernels import native
from basicsr_classpruning.kernels.ops import _check_epilogue, _finish, _laid_out_as, _pointer

_library = torch.library.Library('classpruning', 'FRAGMENT')
FEW_PIXELS = 512
"""Below, weights are most of what is read, and lists are the shorter packing. Measuring would mislead: called again and
again, a layer finds its weights in the cache, and in a network it does not."""
# scale: (B, C), factors of a picture's input channels. eps: of a normalisation of each pixel's channels, which follows;
# negative: none. gate: the two halves of the output channels are multiplied with each other, before the activation.
# lists: the same weight packed as lists, for few pixels.
_library.define(
    'nm_pointwise(Tensor x, Tensor packed, Tensor? bias, Tensor? slope, Tensor? residual, Tensor? scale, '
    'str activation, str order, int out_features, bool gate, float eps, bool linear, Tensor? lists=None) -> Tensor'
)
# y, and the mean of each of its planes (B, C)
_library.define('depthwise(Tensor x, Tensor weight, Tensor? bias, bool gate) -> (Tensor, Tensor)')
# bias: (heads, key, query)
_library.define('window_attention(Tensor qkv, Tensor bias, int window, int shift, float scale) -> Tensor')


class PointwiseCall(ctypes.Structure):
    """``cp_pointwise_call``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('packed', 'x', 'y', 'bias', 'residual', 'slope', 'scale')),
        *((name, ctypes.c_int64) for name in ('batch', 'pixels', 'in_channels', 'out_channels')),
        *((name, ctypes.c_int64) for name in ('x_stride_n', 'x_stride')),
        *((name, ctypes.c_int32) for name in ('layout', 'activation', 'order', 'gate', 'threads')),
        ('eps', ctypes.c_float),
    ]


class DepthwiseCall(ctypes.Structure):
    """``cp_depthwise_call``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('x', 'y', 'weight', 'bias', 'means', 'slope')),
        *((name, ctypes.c_int64) for name in ('batch', 'channels', 'height', 'width')),
        *((name, ctypes.c_int32) for name in ('gate', 'activation', 'isa', 'threads')),
    ]


class AttentionCall(ctypes.Structure):
    """``cp_attention_call``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('x', 'y', 'bias')),
        *((name, ctypes.c_int64) for name in ('batch', 'channels', 'heads', 'height', 'width', 'window', 'shift')),
        ('scale', ctypes.c_float),
        *((name, ctypes.c_int32) for name in ('isa', 'threads')),
    ]


# --- layers without taps ----------------------------------------------------------------------------------------------


def _empty_pointwise_output(x: Tensor, out_features: int, gate: bool, linear: bool) -> Tensor:
    """Uninitialised output. Raises ValueError where x is not float32 or has the wrong number of axes."""
    if x.dtype != torch.float32:
        raise ValueError(f'nm_pointwise: x must be float32, not {x.dtype}')
    stored = out_features // 2 if gate else out_features
    if linear:
        return x.new_empty((*x.shape[:-1], stored))
    if x.dim() != 4:
        raise ValueError(f'nm_pointwise: x must be (B, C, H, W), not {tuple(x.shape)}')
    layout = torch.channels_last if _is_tokens(x) else torch.contiguous_format
    shape = (x.shape[0], stored, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _is_tokens(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _reference(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    activation: str,
    order: str,
    gate: bool,
    eps: float,
) -> Tensor:
    """The layer on (B, C, H, W)."""
    if scale is not None:
        x = x * scale[:, :, None, None]
    if eps >= 0:
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=eps).movedim(-1, 1)
    y = F.conv2d(x, packed, bias)
    if gate:
        first, second = y.chunk(2, dim=1)
        y = first * second
    return _finish(y, slope, residual, activation, order)


@dataclass(frozen=True)
class PreparedPointwise:
    """A call as it was made before: of inputs of the same shapes and layouts, all of it holds but the addresses.

    Layers of small features take less time than checking their arguments and filling in the call.
    """

    call: PointwiseCall
    shape: torch.Size
    """Of the output."""
    strides: tuple[int, ...]

    def run(self, x: Tensor, residual: Tensor | None, scale: Tensor | None) -> Tensor:
        """The same with other inputs; from any thread."""
        y = torch.empty_strided(self.shape, self.strides)
        call = PointwiseCall.from_buffer_copy(self.call)
        call.x, call.y = x.data_ptr(), y.data_ptr()
        if residual is not None:
            call.residual = residual.data_ptr()
        if scale is not None:
            call.scale = scale.data_ptr()
        run_native('cp_run_pointwise', call)
        return y


def run_pointwise(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    activation: str,
    order: str,
    out_features: int,
    gate: bool,
    eps: float,
    linear: bool,
    lists: Tensor | None = None,
    prepared: Callable[[PreparedPointwise], None] | None = None,
) -> Tensor:
    """What ``classpruning::nm_pointwise`` runs on a CPU. Called as it is, the dispatcher costs nothing.

    ``prepared`` is given the call, where it reads its inputs where they are.
    """
    y = _empty_pointwise_output(x, out_features, gate, linear)
    given = [t.data_ptr() for t in (x, residual, scale) if t is not None]
    residual = _laid_out_as(y, residual)
    _check_epilogue(y.shape[-1 if linear else 1], None, slope, activation)
    _check_epilogue(out_features, bias, None, 'none')
    if scale is not None:
        if linear or tuple(scale.shape) != tuple(x.shape[:2]) or scale.dtype != torch.float32:
            raise ValueError(f'scale must be {tuple(x.shape[:2])} float32 values of (B, C, H, W)')
        scale = scale.contiguous()
    if y.numel() == 0:
        return y
    if packed.dtype == torch.float32:
        if not linear:
            return y.copy_(_reference(x, packed, bias, slope, residual, scale, activation, order, gate, eps))
        rows, added = (None if t is None else t.reshape(-1, t.shape[-1], 1, 1) for t in (x, residual))
        assert rows is not None
        return y.copy_(
            _reference(rows, packed, bias, slope, added, None, activation, order, gate, eps).reshape(y.shape)
        )
    if linear or _is_tokens(x):
        rows = x.reshape(-1, x.shape[-1]) if linear else x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        count, channels = rows.shape
        batch = 1 if linear else x.shape[0]
        layout, source = native.TOKENS, rows
        strides = (count // batch * rows.stride(0), rows.stride(0))
    else:
        source = x if x.is_contiguous() or _is_whole_planes(x) else x.contiguous()
        batch, channels, height, width = x.shape
        layout, count, strides = native.PLANES, batch * height * width, (source.stride(0), source.stride(1))
    call = PointwiseCall(
        packed.data_ptr(), source.data_ptr(), y.data_ptr(), _pointer(bias), _pointer(residual), _pointer(slope),
        _pointer(scale), batch, count // batch, channels, y.shape[-1 if linear else 1], *strides,
        layout, native.ACTIVATIONS[activation], native.RESIDUALS[order], int(gate), torch.get_num_threads(), eps,
    )  # fmt: skip
    if lists is not None and call.pixels < FEW_PIXELS:
        call.packed = lists.data_ptr()
    run_native('cp_run_pointwise', call)
    if prepared is not None and given == [t.data_ptr() for t in (source, residual, scale) if t is not None]:
        prepared(PreparedPointwise(call, y.shape, y.stride()))
    return y


def _is_whole_planes(x: Tensor) -> bool:
    return x.stride(3) == 1 and x.stride(2) == x.shape[3]


def run_native(function: str, call: ctypes.Structure) -> None:
    """Calls a function of the library. Raises RuntimeError where it refuses the call."""
    library = native.load()
    if library is None:
        raise RuntimeError('N:M kernel: the layer was packed for compiled kernels, which are not installed here')
    native.check(getattr(library.library, function)(ctypes.byref(call)))


# --- between the layers -----------------------------------------------------------------------------------------------


def _empty_depthwise_output(x: Tensor, weight: Tensor, gate: bool) -> tuple[Tensor, Tensor]:
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise ValueError(f'depthwise: x and weight must be float32, not {x.dtype} and {weight.dtype}')
    if x.dim() != 4 or tuple(weight.shape) != (x.shape[1], 1, 3, 3) or (gate and x.shape[1] % 2):
        raise ValueError(f'depthwise: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit')
    batch, channels, height, width = x.shape
    channels //= 2 if gate else 1
    return x.new_empty((batch, channels, height, width)), x.new_empty((batch, channels))


def run_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, gate: bool) -> tuple[Tensor, Tensor]:
    """What ``classpruning::depthwise`` runs on a CPU."""
    y, means = _empty_depthwise_output(x, weight, gate)
    _check_epilogue(x.shape[1], bias, None, 'none')
    isa = native.isa_in_use()
    if isa is None or y.numel() == 0:
        z = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])
        if gate:
            first, second = z.chunk(2, dim=1)
            z = first * second
        return y.copy_(z), means.copy_(z.mean((2, 3)))
    x, weight = x.contiguous(), weight.contiguous()
    call = DepthwiseCall(
        x.data_ptr(), y.data_ptr(), weight.data_ptr(), _pointer(bias), means.data_ptr(), None,
        *y.shape, int(gate), 0, native.ISA_CODES[isa], torch.get_num_threads(),
    )  # fmt: skip
    run_native('cp_run_depthwise', call)
    return y, means


def _empty_attention_output(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    if qkv.dim() != 4 or bias.dim() != 3 or not bias.shape[0] or window < 1:
        shapes = f'qkv {tuple(qkv.shape)} and bias {tuple(bias.shape)}'
        raise ValueError(f'window_attention: {shapes} do not fit windows of {window}')
    batch, channels, height, width = qkv.shape
    heads = bias.shape[0]
    if qkv.dtype != torch.float32 or bias.dtype != torch.float32 or channels % (3 * heads):
        raise ValueError(f'window_attention: qkv {tuple(qkv.shape)} {qkv.dtype} does not fit {heads} heads')
    fits = window % 4 == 0 and tuple(bias.shape[1:]) == (window**2, window**2) and 0 <= shift < window
    if not fits or height % window or width % window:
        raise ValueError(f'window_attention: windows of {window}, shift {shift}, do not fit {tuple(qkv.shape)}')
    return qkv.new_empty((batch, channels // 3, height, width))


def _window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int, scale: float) -> Tensor:
    y = _empty_attention_output(qkv, bias, window, shift)
    isa = native.isa_in_use()
    if isa is None or y.numel() == 0:
        return y.copy_(attention_reference(qkv, bias, window, shift, scale))
    qkv, bias = qkv.contiguous(), bias.contiguous()
    batch, channels, height, width = y.shape
    call = AttentionCall(
        qkv.data_ptr(), y.data_ptr(), bias.data_ptr(),
        batch, channels, bias.shape[0], height, width, window, shift, scale,
        native.ISA_CODES[isa], torch.get_num_threads(),
    )  # fmt: skip
    run_native('cp_run_attention', call)
    return y


def attention_reference(qkv: Tensor, bias: Tensor, window: int, shift: int, scale: float) -> Tensor:
    """``window_attention`` in PyTorch: (B, 3C, H, W) to (B, C, H, W)."""
    batch, _, height, width = qkv.shape
    heads, rows, columns = bias.shape[0], height // window, width // window
    rolled = qkv.roll((-shift, -shift), (2, 3)).reshape(batch, 3, heads, -1, rows, window, columns, window)
    # q, k, v, each (B, rows, columns, heads, tokens, channels of a head)
    q, k, v = rolled.permute(1, 0, 4, 6, 2, 5, 7, 3).flatten(5, 6)
    row, column = (torch.arange(size) >= size - shift for size in (height, width))
    far = (torch.arange(height) >= height - window, torch.arange(width) >= width - window)
    side = 2 * (row & far[0])[:, None].long() + (column & far[1])[None].long()
    sides = side.reshape(rows, window, columns, window).permute(0, 2, 1, 3).flatten(2)
    strangers = -100.0 * (sides[..., None] != sides[..., None, :])
    scores = scale * q @ k.mT + bias.mT + strangers[:, :, None]
    mixed = (scores.softmax(-1) @ v).unflatten(4, (window, window))
    return mixed.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, -1, height, width).roll((shift, shift), (2, 3))


def _fake_pointwise(
    x, packed, bias, slope, residual, scale, activation, order, out_features, gate, eps, linear, lists=None
):
    return _empty_pointwise_output(x, out_features, gate, linear)


def _fake_depthwise(x, weight, bias, gate):
    return _empty_depthwise_output(x, weight, gate)


def _fake_attention(qkv, bias, window, shift, scale):
    return _empty_attention_output(qkv, bias, window, shift)


for _name, _kernel, _fake in (
    ('nm_pointwise', run_pointwise, _fake_pointwise),
    ('depthwise', run_depthwise, _fake_depthwise),
    ('window_attention', _window_attention, _fake_attention),
):
    _library.impl(_name, _kernel, 'CPU')
    torch.library.register_fake(f'classpruning::{_name}', _fake, lib=_library)

nm_pointwise = torch.ops.classpruning.nm_pointwise
depthwise = torch.ops.classpruning.depthwise
window_attention = torch.ops.classpruning.window_attention
