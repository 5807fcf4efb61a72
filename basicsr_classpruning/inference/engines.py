"""What runs a candidate network: PyTorch as it is, or the sparse CPU kernels, or the faster of the two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from basicsr_classpruning import kernels
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.devices import device_of
from basicsr_classpruning.devices import pick_device as pick_device
from basicsr_classpruning.errors import UsageError

Engine = Callable[[Tensor], Tensor]
"""Restores a batch ``(B, C, H, W)`` in [0, 1] of any one size, without gradients."""

BACKENDS = ('auto', 'dense', 'cpu')


def dense_engine(module: nn.Module) -> Engine:
    """PyTorch's own convolutions, channels-last: the fastest layout of oneDNN and cuDNN."""
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        return module(x.contiguous(memory_format=torch.channels_last))

    return run


def kernel_engine(net: ClassPruning | DenseNetwork, index: int) -> Engine:
    """The N:M kernels of this package, for a candidate or a dense network."""
    if isinstance(net, ClassPruning):
        module = kernels.accelerate(net.frozen(index), net.patterns(index))
    else:
        module = kernels.accelerate(net.net, {})

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        return module(x.contiguous())

    return run


class FasterEngine:
    """Takes whichever engine is the faster one for tiles of a size, measured once on a single tile of that size."""

    def __init__(self, dense: Engine, sparse: Engine) -> None:
        self._fastest = kernels.Fastest({'dense': dense, 'cpu': sparse})

    def measure(self, x: Tensor) -> None:
        """Finds out which engine is the faster one for inputs such as the first image of ``x``."""
        self._fastest.choose(x[:1])

    def __call__(self, x: Tensor) -> Tensor:
        return self._fastest.engines[self._fastest.choose(x[:1])](x)


class Engines:
    """The engines of one network's candidates. Safe to use from several threads.

    All are made at once: tracing a network changes how modules are called in the whole process (torch.fx), so none may
    be traced while another thread computes.

    Args:
        net: in eval mode, on the device that is to restore.
        backend: ``dense`` (PyTorch), ``cpu`` (the sparse kernels) or ``auto`` (the faster one where both run).
        only: the one candidate that is wanted, by its index; by default all are.

    Raises:
        UsageError: unknown backend, or kernels for a network that is not on the CPU.
    """

    def __init__(self, net: ClassPruning | DenseNetwork, backend: str, only: int | None = None) -> None:
        if backend not in BACKENDS:
            raise UsageError(f'backend {backend!r}: allowed are {", ".join(BACKENDS)}')
        on_cpu = device_of(net).type == 'cpu'
        if backend == 'cpu' and not on_cpu:
            raise UsageError('backend cpu: the network is not on the CPU (give --device cpu)')
        if backend == 'auto' and not (on_cpu and kernels.available()):
            backend = 'dense'
        self._net, self._backend = net, backend
        everything = range(len(net.candidates) if isinstance(net, ClassPruning) else 1)
        self._made = {index: self._make(index) for index in (everything if only is None else (only,))}

    def __getitem__(self, index: int) -> Engine:
        """The engine of a candidate, by its index; a dense network has only index 0."""
        return self._made[index]

    def prepare(self, index: int, x: Tensor) -> None:
        """Makes an engine ready for inputs such as ``x``, so that nothing is measured while others compute."""
        engine = self[index]
        if isinstance(engine, FasterEngine):
            engine.measure(x)

    def _make(self, index: int) -> Engine:
        module = self._net.frozen(index) if isinstance(self._net, ClassPruning) else self._net.net
        if self._backend == 'dense':
            return dense_engine(module)
        sparse = kernel_engine(self._net, index)
        return sparse if self._backend == 'cpu' else FasterEngine(dense_engine(module), sparse)
