"""How work that takes long says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is finished, and how much there is."""


def untold(stage: str, done: int, total: int) -> None:
    """For callers whom it does not interest."""
