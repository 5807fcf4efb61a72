"""The operator ``classpruning::nm_conv2d``, and what it computes, in PyTorch.

``packed`` is a packed weight: int32 words for the compiled kernels (``native``), or the dense float32 weight, zeros in
place, for the reference path. Inference only: no gradient is registered.

A convolution may be given a second weight, packed for Winograd's algorithm. Which of the two runs is measured once in a
process, on one thread and one picture, for each kind of layer (sizes, share of non-zeros) and height and width of the
input: neither the batch nor the number of threads plays a role, so that a picture comes out the same whatever they are.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr_classpruning.kernels import native
from basicsr_classpruning.kernels.choice import Choices
from basicsr_classpruning.kernels.jobs import jobs_of_call
from basicsr_classpruning.kernels.memory import features

_EPILOGUE = 'Tensor? bias, Tensor? slope, Tensor? residual, str activation, str order'
_library = torch.library.Library('classpruning', 'DEF')
# geometry: out_channels, in_channels, kernel, stride, padding and dilation, each (vertical, horizontal)
# shuffle: of a pixel shuffle that follows the activation; a residual is then added to its output
# winograd: the same weight packed for Winograd's algorithm, to choose from
_library.define(
    f'nm_conv2d(Tensor x, Tensor packed, {_EPILOGUE}, int[] geometry, int shuffle=1, Tensor? winograd=None) -> Tensor'
)

# Winograd's algorithm unless skipping the zeros is clearly faster.
_algorithms = Choices(margin=1.1)


def activate(x: Tensor, activation: str, slope: Tensor | None) -> Tensor:
    """The activation of an epilogue on ``(B, C, …)``; ``slope`` has one entry, or one for each channel (PReLU)."""
    if activation == 'relu':
        return F.relu(x)
    if activation == 'gelu':
        return F.gelu(x)
    if activation in ('leaky_relu', 'prelu'):
        assert slope is not None
        return F.prelu(x, slope)
    return x


def _finish(
    y: Tensor, slope: Tensor | None, residual: Tensor | None, activation: str, order: str, shuffle: int = 1
) -> Tensor:
    if residual is not None and order == 'before':
        y = y + residual
    y = activate(y, activation, slope)
    if shuffle > 1:
        y = F.pixel_shuffle(y, shuffle)
    return y + residual if residual is not None and order == 'after' else y


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Height or width that a convolution makes of ``size``."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _conv_output_shape(x: Tensor, geometry: list[int], shuffle: int) -> tuple[int, ...]:
    """Shape of the output of a convolution and pixel shuffle.

    Raises ValueError where x is not a float32 (B, C, H, W) that fits, or its output cannot be shuffled.
    """
    out_channels, in_channels, *sizes = geometry
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(f'nm_conv2d: x must be (B, {in_channels}, H, W), not {tuple(x.shape)}')
    if x.dtype != torch.float32:
        raise ValueError(f'nm_conv2d: x must be float32, not {x.dtype}')
    height, width = (output_size(x.shape[2 + i], *sizes[i::2]) for i in range(2))
    if height < 0 or width < 0:
        raise ValueError(f'nm_conv2d: a picture of {x.shape[2]} x {x.shape[3]} is smaller than the kernel')
    if not 1 <= shuffle <= native.MAX_SHUFFLE or out_channels % shuffle**2:
        raise ValueError(f'nm_conv2d: {out_channels} channels cannot be shuffled by {shuffle}')
    return x.shape[0], out_channels // shuffle**2, height * shuffle, width * shuffle


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _laid_out_as(y: Tensor, residual: Tensor | None) -> Tensor | None:
    """The residual in y's memory layout. Raises ValueError where it cannot be added to y as it is."""
    if residual is None:
        return None
    if residual.shape != y.shape or residual.dtype != y.dtype:
        raise ValueError(f'residual must be {tuple(y.shape)} {y.dtype}, not {tuple(residual.shape)} {residual.dtype}')
    return residual if residual.stride() == y.stride() else torch.empty_like(y).copy_(residual)


def _check_epilogue(y_channels: int, bias: Tensor | None, slope: Tensor | None, activation: str) -> None:
    for name, tensor in (('bias', bias), ('slope', slope)):
        if tensor is None:
            continue
        entries = 1 if name == 'slope' and activation == 'leaky_relu' else y_channels
        if tensor.shape != (entries,) or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f'{name} must be {entries} contiguous float32 values')
    if slope is None and activation in ('leaky_relu', 'prelu'):
        raise ValueError(f'{activation} needs a slope')


def _nm_conv2d(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: str,
    order: str,
    geometry: list[int],
    shuffle: int = 1,
    winograd: Tensor | None = None,
) -> Tensor:
    geometry = list(geometry)
    y = features.empty(_conv_output_shape(x, geometry, shuffle))
    residual = _laid_out_as(y, residual)
    if shuffle > 1 and order == 'before':
        raise ValueError('nm_conv2d: a residual is added after a pixel shuffle, not before the activation')
    _check_epilogue(geometry[0], bias, slope, activation)
    if y.numel() == 0:
        return y
    if packed.dtype == torch.float32:
        stride, padding, dilation = geometry[4:6], geometry[6:8], geometry[8:10]
        reference = F.conv2d(x, packed, bias, stride, padding, dilation)
        return y.copy_(_finish(reference, slope, residual, activation, order, shuffle))
    if x.stride(3) != 1 and x.shape[3] > 1:
        x = x.contiguous()
    batch, channels, height, width = x.shape
    call = native.Call(
        packed.data_ptr(), x.data_ptr(), y.data_ptr(), _pointer(bias), _pointer(residual), _pointer(slope),
        batch, channels, height, width, geometry[0], y.shape[2] // shuffle, y.shape[3] // shuffle,
        *x.stride()[:3], native.ACTIVATIONS[activation], native.RESIDUALS[order], shuffle, torch.get_num_threads(),
    )  # fmt: skip
    if winograd is not None:
        call.packed = _faster(call, packed, winograd, geometry).data_ptr()
    _run(call)
    return y


def _faster(call: native.Call, packed: Tensor, winograd: Tensor, geometry: list[int]) -> Tensor:
    """The faster one of two packings of a convolution's weight."""
    case = (*geometry, *native.kind_of_zeros(packed, winograd, geometry), call.height, call.width, call.shuffle)

    def run(weight: Tensor) -> None:
        measured = native.Call.from_buffer_copy(call)
        measured.packed, measured.batch, measured.threads = weight.data_ptr(), 1, 1
        _run(measured)

    ways = {'winograd': lambda: run(winograd), 'direct': lambda: run(packed)}
    found = native.forced_algorithm() or _algorithms.choose(case, ways)
    return packed if found == 'direct' else winograd


def conv2d_in_jobs(
    x: Tensor,
    y: Tensor,
    jobs: Tensor,
    weights: ctypes.Array[native.Weight],
    cell: int,
    slope: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = 'none',
    order: str = 'none',
    shuffle: int = 1,
    threads: int | None = None,
) -> None:
    """A convolution of stride 1 that keeps the size, in some rectangles, each with one of several weights.

    Args:
        x: ``(B, C, H, W)`` float32.
        y: the output, contiguous; what is in no job stays as it is.
        jobs: ``(J, 5)`` int32 rows of ``native.JOB_FIELDS``.
        weights: packed for x's number of channels.
        cell: side, in pixels of x, of what jobs are counted in.
        slope, residual, activation, order, shuffle: as of ``nm_conv2d``.
        threads: by default as many as torch uses; the result does not depend on it.
    """
    if x.dtype != torch.float32 or x.dim() != 4:
        raise ValueError(f'x must be float32 (B, C, H, W), not {x.dtype} of {x.dim()} dimensions')
    x = x if x.stride(3) == 1 else x.contiguous()
    residual = _laid_out_as(y, residual)
    batch, channels, height, width = x.shape
    listed = jobs_of_call(jobs, weights, cell)
    call = native.Call(
        None, x.data_ptr(), y.data_ptr(), None, _pointer(residual), _pointer(slope),
        batch, channels, height, width, y.shape[1] * shuffle**2, height, width, *x.stride()[:3],
        native.ACTIVATIONS[activation], native.RESIDUALS[order], shuffle,
        threads or torch.get_num_threads(), ctypes.pointer(listed),
    )  # fmt: skip
    _run(call)


def _run(call: native.Call) -> None:
    library = native.load()
    if library is None:
        raise RuntimeError('N:M kernel: the layer was packed for compiled kernels, which are not installed here')
    library.run(call)


def _fake_conv2d(x, packed, bias, slope, residual, activation, order, geometry, shuffle=1, winograd=None):
    return x.new_empty(_conv_output_shape(x, list(geometry), shuffle))


_library.impl('nm_conv2d', _nm_conv2d, 'CPU')
torch.library.register_fake('classpruning::nm_conv2d', _fake_conv2d, lib=_library)

nm_conv2d = torch.ops.classpruning.nm_conv2d
