"""A static checkpoint in BasicSR's format, for BasicSR itself and for programs built on spandrel."""

from __future__ import annotations

import os

from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.export.static import StaticNetwork


def export_basicsr(static: StaticNetwork, path: str | os.PathLike[str]) -> None:
    """Writes ``{'params': …, 'network_g': …}``, zeros in place, whole or not at all.

    Raises UserError where the file cannot be written.
    """
    write_checkpoint(path, {'params': static.state_dict()}, static.options)
