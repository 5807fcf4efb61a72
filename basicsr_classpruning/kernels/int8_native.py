"""The compiled kernels of 8-bit integers: choosing the instruction set, calling them (``csrc/int8.h``)."""

from __future__ import annotations

import ctypes
import functools
import os

import torch

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.kernels import native

ISA_VARIABLE = 'CLASSPRUNING_INT8_ISA'
_CODES = {'avx2': 0, 'avxvnni': 1, 'avx512vnni': 2}  # cp_int8_isa
_OF_FP32 = {'avx2': ('avx2',), 'wide': ('avx2',), 'avx512': ('avx512vnni', 'avxvnni', 'avx2')}


class Call(ctypes.Structure):
    """``cp_int8_call``: one call of a packed layer."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ('packed', 'x', 'y', 'q', 'scale', 'bias', 'factor', 'residual', 'slope')
        ),
        *((name, ctypes.c_int64) for name in ('batch', 'in_channels', 'height', 'width')),
        *((name, ctypes.c_int64) for name in ('out_channels', 'out_height', 'out_width')),
        ('q_inverse_scale', ctypes.c_float),
        *((name, ctypes.c_int32) for name in ('q_zero', 'x_zero', 'activation', 'order', 'shuffle', 'threads')),
        ('jobs', ctypes.POINTER(native.Jobs)),
    ]


class QuantizeCall(ctypes.Structure):
    """``cp_int8_quantize_call``: floats to activations."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('x', 'q')),
        *((name, ctypes.c_int64) for name in ('batch', 'channels', 'height', 'width')),
        *((name, ctypes.c_int64) for name in ('x_stride_n', 'x_stride_c', 'x_stride_h', 'x_stride_w')),
        ('inverse_scale', ctypes.c_float),
        *((name, ctypes.c_int32) for name in ('zero', 'isa', 'threads')),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    loaded = native.load()
    if loaded is None:
        return None
    loaded.library.cp_int8_pack.restype = ctypes.c_int64
    loaded.library.cp_int8_pack.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
    return loaded.library


def supports(isa: str) -> bool:
    """Whether this processor can run the code of ``isa``."""
    library = _library()
    return library is not None and bool(library.cp_int8_supported(_CODES[isa]))


def available() -> str | None:
    """What the kernels use here: ``'avx512vnni'``, ``'avxvnni'``, ``'avx2'``, or None (the reference path runs).

    The best that ``CLASSPRUNING_ISA`` allows, or the one that the environment variable ``CLASSPRUNING_INT8_ISA`` names.
    Raises UsageError where it names another, or one that cannot run here.
    """
    fp32 = native.available()
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return None if fp32 is None else next(isa for isa in _OF_FP32[fp32] if supports(isa))
    if wanted == native.REFERENCE:
        return None
    if wanted not in _CODES:
        raise UsageError(f'{ISA_VARIABLE}={wanted}: must be one of {", ".join(_CODES)}, {native.REFERENCE}')
    if not supports(wanted):
        raise UsageError(f'{ISA_VARIABLE}={wanted}: this processor has no {wanted}, or the kernels are not installed')
    return wanted


def pack(integers: torch.Tensor, geometry: native.Geometry, isa: str) -> torch.Tensor:
    """The units of an int8 weight ``(O, C, kh, kw)`` that are not zero in the order of the kernels, as int32 words."""
    library = _library()
    assert library is not None
    integers = integers.contiguous()
    source, sizes = ctypes.c_void_p(integers.data_ptr()), ctypes.byref(geometry)
    packed = torch.empty(library.cp_int8_pack(source, sizes, _CODES[isa], None), dtype=torch.int32)
    library.cp_int8_pack(source, sizes, _CODES[isa], ctypes.c_void_p(packed.data_ptr()))
    return packed


def run(call: Call) -> None:
    """Runs a packed layer. Raises RuntimeError where the call does not fit it or memory is short."""
    library = _library()
    if library is None:
        raise RuntimeError('int8 kernel: the layer was packed for compiled kernels, which are not installed here')
    native.check(library.cp_int8_run(ctypes.byref(call)))


def quantize(call: QuantizeCall, isa: str) -> None:
    """Turns floats into activations. Raises RuntimeError where this processor cannot."""
    library = _library()
    assert library is not None
    call.isa = _CODES[isa]
    native.check(library.cp_int8_quantize(ctypes.byref(call)))
