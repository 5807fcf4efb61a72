"""``classpruning train`` and ``classpruning test``: BasicSR's own command line, read by the options' loader."""

from __future__ import annotations

from collections.abc import Sequence


def train(argv: Sequence[str]) -> int:
    """Runs ``classpruning train`` with the arguments after the sub-command."""
    from basicsr_classpruning.pipeline import train

    train(argv)
    return 0


def test(argv: Sequence[str]) -> int:
    """Runs ``classpruning test`` with the arguments after the sub-command."""
    from basicsr_classpruning.pipeline import test

    test(argv)
    return 0
