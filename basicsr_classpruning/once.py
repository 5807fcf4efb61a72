"""Things that are found out once about an object, and forgotten when it changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

_Value = TypeVar('_Value')


class Once:
    """Keeps values under names, each made when it is first asked for. Safe to use from several threads.

    A copy of the object that holds it, or one from another process, begins with nothing.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._lock = threading.RLock()

    def get(self, name: str, make: Callable[[], _Value]) -> _Value:
        """The value of that name, made if there is none."""
        with self._lock:
            if name not in self._values:
                self._values[name] = make()
            return self._values[name]

    def known(self, name: str) -> Any:
        """The value of that name, None if none was asked for yet."""
        return self._values.get(name)

    def forget(self, name: str) -> None:
        """Lets the value of that name be made anew."""
        with self._lock:
            self._values.pop(name, None)

    def __reduce__(self) -> tuple[type[Once], tuple[()]]:
        return Once, ()
