"""The points there are, in the order of docs/reliability.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A harness: a module of this folder with ``run(count, seed, folder) -> Result``."""

    name: str
    count: int
    """How much it tries; what is counted, its ``run`` says."""
    short: int
    """The same, in the tests."""


POINTS = {
    point.name: point
    for point in (
        Point('kill', 50, 4),
        Point('disk', 3, 1),
        Point('bad_numbers', 40, 2),
        Point('collapse', 3, 1),
        Point('hostile', 1000, 30),
        Point('fuzz', 1000, 17),
        Point('load', 2000, 10),
        Point('repeat', 4, 1),
    )
}
