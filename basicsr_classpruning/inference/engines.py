"""What runs a subnetwork: PyTorch as it is, the sparse CPU kernels, or the faster of the two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from basicsr_classpruning import kernels
from basicsr_classpruning.devices import device_of
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.routing.bypass import LinearFilter
from basicsr_classpruning.routing.network import RoutedNetwork, Subnetwork

Engine = Callable[[Tensor], Tensor]
"""Restores a batch ``(B, C, H, W)`` in [0, 1] of any one size, without gradients."""

EngineMaker = Callable[[Subnetwork], Engine]

_MAKERS: dict[str, EngineMaker] = {}


def register_engine(name: str) -> Callable[[EngineMaker], EngineMaker]:
    """Makes an engine known as a backend of that name. It is given a subnetwork, on whatever device its weights are,
    and raises UsageError where it cannot run it."""

    def register(make: EngineMaker) -> EngineMaker:
        _MAKERS[name] = make
        return make

    return register


def backends() -> tuple[str, ...]:
    """What can be asked for: ``auto`` and the names of the engines."""
    return ('auto', *_MAKERS)


@register_engine('dense')
def dense_engine(subnetwork: Subnetwork) -> Engine:
    """PyTorch's own convolutions, channels-last: the fastest layout of oneDNN and cuDNN."""
    module = subnetwork.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        return module(x.contiguous(memory_format=torch.channels_last))

    return run


@register_engine('cpu')
def kernel_engine(subnetwork: Subnetwork) -> Engine:
    """The N:M kernels of this package."""
    if device_of(subnetwork.net).type != 'cpu':
        raise UsageError('cpu: the network is not on the CPU (give `device` cpu)', key='backend')
    net = subnetwork.net.as_layers() if isinstance(subnetwork.net, LinearFilter) else subnetwork.net
    return KernelEngine(kernels.accelerate(net, subnetwork.patterns))


class KernelEngine:
    """A network on the N:M kernels, which find out at the first tile of a size how each of its layers runs fastest."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._measured: set[torch.Size] = set()

    def measure(self, x: Tensor) -> None:
        """Lets the kernels choose for inputs such as the first image of ``x``, once for each size."""
        if x.shape[1:] not in self._measured:
            self(x[:1])
            self._measured.add(x.shape[1:])

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        return self._module(x.contiguous())


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
    """The engines of one network's subnetworks. Safe to use from several threads.

    All are made at once: tracing a network changes how modules are called in the whole process (torch.fx), so none may
    be traced while another thread computes.

    Args:
        network: on the device that is to restore.
        backend: the name of an engine, ``dense`` (PyTorch) or ``cpu`` (the sparse kernels) among them, or ``auto`` (the
            faster of these two where both run).
        only: place of the one candidate that is wanted; by default all are.

    Raises:
        UsageError: unknown backend, or one that cannot run this network.
    """

    def __init__(self, network: RoutedNetwork, backend: str, only: int | None = None) -> None:
        if backend not in backends():
            raise UsageError(f'{backend!r}: allowed are {", ".join(backends())}', key='backend')
        if backend == 'auto' and not (device_of(network.module).type == 'cpu' and kernels.available()):
            backend = 'dense'
        make = _faster_engine if backend == 'auto' else _MAKERS[backend]
        wanted = range(len(network.subnetworks)) if only is None else (only,)
        self._made = {index: make(network.subnetworks[index]) for index in wanted}

    def __getitem__(self, index: int) -> Engine:
        """The engine of a subnetwork, by its place."""
        return self._made[index]

    def prepare(self, index: int, x: Tensor) -> None:
        """Makes an engine ready for inputs such as ``x``, so that nothing is measured while others compute."""
        engine = self[index]
        if isinstance(engine, (FasterEngine, KernelEngine)):
            engine.measure(x)


def _faster_engine(subnetwork: Subnetwork) -> Engine:
    return FasterEngine(dense_engine(subnetwork), kernel_engine(subnetwork))
