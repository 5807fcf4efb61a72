"""Where networks compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from basicsr_classpruning.errors import UsageError


def device_of(net: nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU for one without."""
    parameter = next(net.parameters(), None)
    return torch.device('cpu') if parameter is None else parameter.device


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """While it is active, the caller's thread computes alone.

    For small images: threads that share little work mostly wait for each other, and busily where other programs run.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(name: str) -> torch.device:
    """The device named, or for ``auto`` a GPU if there is one. Raises UsageError if it cannot be used."""
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f'{name!r}: {str(error).splitlines()[0]}', key='device') from None
    return device
