"""A static checkpoint in BasicSR's format, for BasicSR itself and for programs built on spandrel."""

from __future__ import annotations

import os

from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.export.weights import plain_state_dict
from basicsr_classpruning.routing.network import Subnetwork


def export_basicsr(network: Subnetwork, path: str | os.PathLike[str]) -> None:
    """Writes ``{'params': …, 'network_g': …}``, zeros in place, whole or not at all.

    Raises UserError where the file cannot be written.
    """
    write_checkpoint(path, {'params': plain_state_dict(network)}, network.options)
