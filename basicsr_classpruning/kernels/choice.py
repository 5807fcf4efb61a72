"""Which of several ways to run a network is the fastest, measured once for each input shape."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]


def seconds(run: Run, x: Tensor) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    run(x)
    return time.perf_counter() - start


class Fastest:
    """Calls the fastest of several engines, which must compute the same.

    The first call with an input shape and a number of threads measures all engines on that input, taking turns, and
    remembers the best; the following calls only look it up. Safe to call from several threads.

    Args:
        engines: what to choose from, by name.
        rounds: calls of each engine that are measured, after one to warm up.
    """

    def __init__(self, engines: Mapping[str, Run], rounds: int = 3) -> None:
        self.engines = dict(engines)
        self.rounds = rounds
        self._chosen: dict[tuple, str] = {}
        self._lock = threading.Lock()

    def choose(self, x: Tensor) -> str:
        """Name of the fastest engine for inputs such as ``x``."""
        key = (tuple(x.shape), x.dtype, torch.get_num_threads())
        with self._lock:
            if key not in self._chosen:
                self._chosen[key] = self._measure(x)
            return self._chosen[key]

    def _measure(self, x: Tensor) -> str:
        if len(self.engines) == 1:
            return next(iter(self.engines))
        times: dict[str, list[float]] = {name: [] for name in self.engines}
        with torch.no_grad():
            for round_number in range(self.rounds + 1):
                for name, run in self.engines.items():
                    elapsed = seconds(run, x)
                    if round_number > 0:
                        times[name].append(elapsed)
        return min(times, key=lambda name: min(times[name]))

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the output of the fastest engine."""
        return self.engines[self.choose(x)](x)
