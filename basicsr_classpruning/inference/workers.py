"""Threads that run a network side by side, each of them on tiles of its own.

Every call runs on one thread of torch, whatever the number of workers: so a tile's values never depend on how many
there are (some of torch's operators, bilinear interpolation among them, round differently in several threads), and
no time is lost in waiting for each other inside a layer.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar('_Item')
_Result = TypeVar('_Result')


class Workers:
    """A pool of single-threaded workers. Usable from several threads at once.

    Args:
        count: number of workers, at least 1.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        before = torch.get_num_threads()
        started = threading.Barrier(count + 1)

        def prepare() -> None:
            torch.set_num_threads(1)  # of this thread ...
            torch.get_num_threads()  # ... for good: a thread's first use takes over what was set last anywhere
            started.wait()

        self._pool = ThreadPoolExecutor(count, thread_name_prefix='restore', initializer=prepare)
        for _ in range(count):  # the pool starts its threads one by one, as it is given work
            self._pool.submit(_nothing)
        started.wait()
        torch.set_num_threads(before)  # what threads made later start with

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Results in the order of the items. At most two calls a worker are ahead of the reader, to bound memory."""
        source = iter(items)
        waiting: deque[Future[_Result]] = deque(
            self._pool.submit(function, item) for item in itertools.islice(source, 2 * self.count)
        )
        try:
            while waiting:
                result = waiting.popleft().result()
                for item in itertools.islice(source, 1):
                    waiting.append(self._pool.submit(function, item))
                yield result
        finally:
            for future in waiting:
                future.cancel()

    def run(self, function: Callable[[_Item], _Result], item: _Item) -> _Result:
        """One call, on a worker."""
        return self._pool.submit(function, item).result()


def _nothing() -> None:
    pass
