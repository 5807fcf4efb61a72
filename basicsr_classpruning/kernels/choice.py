"""Which of several ways to compute the same is the fastest: measured once, then remembered."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]


def seconds(run: Callable[[], object]) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Choices:
    """Remembers the fastest of several ways for each of any number of cases. Safe to use from several threads.

    Args:
        rounds: calls of each way that are measured, in turn, after one to warm up.
        margin: the first way is taken unless another one is faster by more than this factor: with more than 1, noise
            does not decide between ways that are as good as each other.
    """

    def __init__(self, rounds: int = 3, margin: float = 1.0) -> None:
        self.rounds = rounds
        self.margin = margin
        self._chosen: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def choose(self, case: Hashable, ways: Mapping[str, Callable[[], object]]) -> str:
        """Name of the fastest way in a case. All are called where the case is new."""
        found = self._chosen.get(case)
        if found is None:
            with self._lock:
                found = self._chosen.get(case) or self._measure(ways)
                self._chosen[case] = found
        return found

    def _measure(self, ways: Mapping[str, Callable[[], object]]) -> str:
        first, *others = ways
        if not others:
            return first
        times: dict[str, list[float]] = {name: [] for name in ways}
        with torch.no_grad():
            for round_number in range(self.rounds + 1):
                for name, run in ways.items():
                    elapsed = seconds(run)
                    if round_number > 0:
                        times[name].append(elapsed)
        best = min(others, key=lambda name: min(times[name]))
        return best if min(times[best]) * self.margin < min(times[first]) else first


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
        self._choices = Choices(rounds)

    def choose(self, x: Tensor) -> str:
        """Name of the fastest engine for inputs such as ``x``."""
        case = (tuple(x.shape), x.dtype, torch.get_num_threads())
        return self._choices.choose(case, {name: functools.partial(run, x) for name, run in self.engines.items()})

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the output of the fastest engine."""
        return self.engines[self.choose(x)](x)
