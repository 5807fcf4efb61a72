"""Runs the project's own commands from a script."""

from __future__ import annotations

import sys
from pathlib import Path

from basicsr_classpruning.cli import main


def classpruning(*words: str | Path) -> None:
    """Runs the ``classpruning`` command, and shows it; ends the program with its status where it fails."""
    arguments = [str(word) for word in words]
    print(f'\n$ classpruning {" ".join(arguments)}', flush=True)
    status = main(arguments)
    if status:
        sys.exit(status)
