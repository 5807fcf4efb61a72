"""The compiled kernels: finding the library, choosing the instruction set, calling it.

The library has a plain C interface (``csrc/api.h``) and is loaded with ctypes, so it depends on no version of Python or
torch; ctypes releases the interpreter lock during a call.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from basicsr_classpruning.errors import UsageError

LIBRARY = 'libclasspruning_kernels.so'
ABI_VERSION = 10
MAX_STRIDE = 4
MAX_SHUFFLE = 4

REFERENCE = 'reference'
ISA_CODES = {'avx2': 0, 'avx512': 1, 'wide': 2}  # cp_isa; 'wide' is the AVX-512 code in AVX2 instructions, for tests
_PREFERENCE = ('avx512', 'avx2')
ISA_VARIABLE = 'CLASSPRUNING_ISA'
ALGORITHM_VARIABLE = 'CLASSPRUNING_ALGORITHM'
ALGORITHMS = ('winograd', 'direct')
LIBRARY_VARIABLE = 'CLASSPRUNING_KERNELS'  # another build of the library, such as one with a sanitizer

ACTIVATIONS = {'none': 0, 'relu': 1, 'leaky_relu': 2, 'prelu': 3, 'gelu': 4}  # cp_activation
RESIDUALS = {'none': 0, 'before': 1, 'after': 2}  # cp_residual
PLANES, TOKENS = 0, 1  # cp_layout

logger = logging.getLogger('basicsr_classpruning')


class Geometry(ctypes.Structure):
    """``cp_geometry``: the sizes of a convolution; a linear layer is a 1 x 1 convolution."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            'out_channels',
            'in_channels',
            'kernel_h',
            'kernel_w',
            'stride_h',
            'stride_w',
            'pad_h',
            'pad_w',
            'dilation_h',
            'dilation_w',
        )
    ]


class Weight(ctypes.Structure):
    """``cp_weight``: what a job may be computed with."""

    _fields_ = [(name, ctypes.c_void_p) for name in ('packed', 'bias', 'scale')]


class Jobs(ctypes.Structure):
    """``cp_jobs``: which parts of an output take which weights; ``list`` points to rows of ``JOB_FIELDS`` int32."""

    _fields_ = [
        ('list', ctypes.c_void_p),
        ('count', ctypes.c_int64),
        ('weights', ctypes.c_void_p),
        ('weight_count', ctypes.c_int32),
        ('cell', ctypes.c_int32),
    ]


JOB_FIELDS = ('y', 'x', 'rows', 'columns', 'weight')  # of cp_job: in cells, and a place among the weights
NOTHING = -1  # CP_NOTHING: a job whose sums are zero
LEFT_OUT = -2  # of cells: no job


class Call(ctypes.Structure):
    """``cp_call``: one call of a packed layer."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('packed', 'x', 'y', 'bias', 'residual', 'slope')),
        *((name, ctypes.c_int64) for name in ('batch', 'in_channels', 'height', 'width')),
        *((name, ctypes.c_int64) for name in ('out_channels', 'out_height', 'out_width')),
        *((name, ctypes.c_int64) for name in ('x_stride_n', 'x_stride_c', 'x_stride_h')),
        *((name, ctypes.c_int32) for name in ('activation', 'order', 'shuffle', 'threads')),
        ('jobs', ctypes.POINTER(Jobs)),
    ]


_FAILURES = {
    1: 'this processor cannot run the instructions that the layer was packed for: accelerate the network again here',
    2: 'the packed weight does not belong to a layer of this geometry',
    3: 'out of memory',
    4: 'the sizes of the call do not fit each other',
}


def check(status: int) -> None:
    """Raises RuntimeError where a ``cp_status`` is a failure."""
    if status:
        raise RuntimeError(f'N:M kernel: {_FAILURES[status]}')


def fits_winograd(geometry: Sequence[int], shuffle: int) -> bool:
    """Whether Winograd's algorithm computes a convolution: a 3 x 3 kernel, strides and dilations of 1.

    Args:
        geometry: the fields of ``Geometry``.
        shuffle: factor of the pixel shuffle that is fused; by 3 none can be.
    """
    return [*geometry[2:6], *geometry[8:10]] == [3, 3, 1, 1, 1, 1] and shuffle != 3


def kind_of_zeros(packed: torch.Tensor, winograd: torch.Tensor, geometry: Sequence[int]) -> tuple[int, int]:
    """What the time of a layer's two packings depends on beside its sizes. Packed words grow with the weights that are
    computed: layers that differ by a few of them are of one kind.

    Args:
        packed: the non-zeros alone.
        winograd: the same weight for Winograd's algorithm.
        geometry: the fields of ``Geometry``.
    """
    weights = geometry[0] * geometry[1]
    return packed.numel() // (4 * weights), winograd.numel() // (4 * weights)


@dataclass(frozen=True)
class Native:
    """The loaded library."""

    library: ctypes.CDLL
    path: Path

    def supports(self, isa: str) -> bool:
        """Whether this processor can run the code of ``isa``."""
        return bool(self.library.cp_supported(ISA_CODES[isa]))

    def pack(self, weight: torch.Tensor, geometry: Geometry, isa: str) -> torch.Tensor:
        """The non-zeros of a float32 weight ``(O, C, kh, kw)`` in the order of the kernels, as int32 words."""
        weight = weight.detach().to('cpu', torch.float32).contiguous()
        source, code = ctypes.c_void_p(weight.data_ptr()), ISA_CODES[isa]
        # Room for two words a weight, and for each channel's counts in every chunk of at least one input channel.
        out_channels, in_channels = weight.shape[:2]
        packed = torch.empty(64 + 2 * weight.numel() + (9 * out_channels + 1) * in_channels, dtype=torch.int32)
        words = self.library.cp_pack(source, ctypes.byref(geometry), code, ctypes.c_void_p(packed.data_ptr()))
        return packed[:words].clone()

    def pack_winograd(self, weight: torch.Tensor, geometry: Geometry, isa: str) -> torch.Tensor:
        """A 3 x 3 weight with stride 1 and dilation 1, transformed for Winograd's algorithm, as int32 words."""
        weight = weight.detach().to('cpu', torch.float32).contiguous()
        source, code = ctypes.c_void_p(weight.data_ptr()), ISA_CODES[isa]
        words = self.library.cp_pack_winograd(source, ctypes.byref(geometry), code, None)
        packed = torch.empty(words, dtype=torch.int32)
        self.library.cp_pack_winograd(source, ctypes.byref(geometry), code, ctypes.c_void_p(packed.data_ptr()))
        return packed

    def join_cells(self, cells: torch.Tensor) -> torch.Tensor:
        """Rectangles of equal cells, ``(J, 5)`` int32 rows of ``JOB_FIELDS``.

        Args:
            cells: ``(rows, columns)`` int32, places of weights, ``NOTHING`` or ``LEFT_OUT``.
        """
        cells = cells.contiguous()
        jobs = torch.empty((cells.numel(), len(JOB_FIELDS)), dtype=torch.int32)
        source, to = ctypes.c_void_p(cells.data_ptr()), ctypes.c_void_p(jobs.data_ptr())
        return jobs[: self.library.cp_join_cells(source, *cells.shape, to)].clone()

    def pack_pointwise(self, weight: torch.Tensor, geometry: Geometry, isa: str) -> torch.Tensor:
        """The non-zeros of a layer without taps ``(O, C, 1, 1)`` as lists, as int32 words."""
        weight = weight.detach().to('cpu', torch.float32).contiguous()
        packed = torch.empty(64 + 4 * weight.numel(), dtype=torch.int32)
        words = self.library.cp_pack_pointwise(
            ctypes.c_void_p(weight.data_ptr()),
            ctypes.byref(geometry),
            ISA_CODES[isa],
            ctypes.c_void_p(packed.data_ptr()),
        )
        return packed[:words].clone()

    def run(self, call: Call) -> None:
        """Runs a packed layer. Raises RuntimeError where the call does not fit it or memory is short."""
        check(self.library.cp_run(ctypes.byref(call)))


def _openmp_parallel() -> ctypes.c_void_p | None:
    """GOMP_parallel of the OpenMP runtime that torch has loaded, if there is one."""
    bundled = sorted((Path(torch.__file__).parent / 'lib').glob('libgomp*'))
    for path in [None, *map(str, bundled)]:
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return None


@functools.cache
def load() -> Native | None:
    """The compiled library, or None where it was not built (or is older than this code)."""
    path = Path(os.environ.get(LIBRARY_VARIABLE) or Path(__file__).with_name(LIBRARY))
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    if library.cp_abi_version() != ABI_VERSION:
        logger.warning('%s is older than the package: build it again (pip install). It is not used.', path)
        return None
    for pack in (library.cp_pack, library.cp_pack_winograd):
        pack.restype = ctypes.c_int64
        pack.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
    library.cp_join_cells.restype = ctypes.c_int64
    library.cp_join_cells.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p]
    library.cp_pack_pointwise.restype = ctypes.c_int64
    library.cp_use_parallel.argtypes = [ctypes.c_void_p]
    library.cp_use_parallel(_openmp_parallel())
    return Native(library, path)


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


def available() -> str | None:
    """The instruction set that the kernels use here: ``'avx512'``, ``'avx2'``, or None (the reference path runs).

    The environment variable ``CLASSPRUNING_ISA`` (avx2, avx512 or reference) forces one. Raises UsageError where it
    names another, or one that cannot run here.
    """
    native = load()
    wanted = os.environ.get(ISA_VARIABLE)
    if wanted == REFERENCE:
        return None
    if wanted:
        if wanted not in ISA_CODES:
            raise UsageError(f'{ISA_VARIABLE}={wanted}: must be avx2, avx512 or {REFERENCE}')
        if native is None:
            raise UsageError(f'{ISA_VARIABLE}={wanted}: the compiled kernels are not installed')
        if not native.supports(wanted):
            raise UsageError(f'{ISA_VARIABLE}={wanted}: this processor has no {wanted}')
        return wanted
    return next((isa for isa in _PREFERENCE if native is not None and native.supports(isa)), None)


def forced_algorithm() -> str | None:
    """Which of the two ways to compute a 3 x 3 layer the environment variable ``CLASSPRUNING_ALGORITHM`` names; None:
    the faster one, as it is measured. Raises UsageError where it names another."""
    wanted = os.environ.get(ALGORITHM_VARIABLE)
    if wanted and wanted not in ALGORITHMS:
        raise UsageError(f'{ALGORITHM_VARIABLE}={wanted}: must be {" or ".join(ALGORITHMS)}')
    return wanted or None


def isa_in_use() -> str | None:
    """As ``available``; says once, in the log, that the reference path runs where it does."""
    isa = available()
    if isa is None:
        _say_once(describe())
    return isa


def describe() -> str:
    """One line for the user: what the N:M kernels run on, and why."""
    isa = available()
    if isa is not None:
        return f'N:M kernels: compiled, {isa}'
    if os.environ.get(ISA_VARIABLE) == REFERENCE:
        return f'N:M kernels: reference path in PyTorch ({ISA_VARIABLE}={REFERENCE}); sparsity saves no time'
    why = 'this processor has neither AVX2 nor AVX-512' if load() else 'they were not compiled at installation'
    return f'N:M kernels: reference path in PyTorch, as {why}; sparsity saves no time'
