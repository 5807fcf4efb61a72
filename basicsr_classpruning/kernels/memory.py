"""Memory of large features, lent again as soon as nobody has it: new memory costs a page fault for each of its pages,
which takes up to ten times as long as computing the few patches that lie in it."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 2**22  # bytes; of less, malloc keeps some itself
_MOST_KEPT = 2**29


class Pool:
    """Buffers that nobody has, at most half a gibibyte of them. Safe to use from several threads."""

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = {}
        """By size in bytes, that of which one came back last at the end."""
        self._lock = threading.RLock()  # garbage that is collected meanwhile comes back through it too

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised contiguous tensor on the CPU, whose memory comes back when its last view is gone."""
        size = math.prod(shape) * dtype.itemsize
        if size < _LEAST:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            kept = self._free.get(size)
            buffer = kept.pop() if kept else torch.empty(size, dtype=torch.uint8)
        # A tensor made from an array keeps that array for as long as any view of its own memory lives.
        array = buffer.numpy()
        weakref.finalize(array, self._take_back, buffer).atexit = False
        return torch.from_numpy(array).view(dtype).view(*shape)

    def _take_back(self, buffer: Tensor) -> None:
        size = buffer.numel()
        with self._lock:
            kept = self._free.pop(size, [])
            kept.append(buffer)  # in place: whoever is taking one from this list meanwhile must not see a copy
            self._free[size] = kept
            while sum(each * len(buffers) for each, buffers in list(self._free.items())) > _MOST_KEPT:
                self._free.pop(next(iter(self._free)))


features = Pool()
"""Of all layers of this process."""
