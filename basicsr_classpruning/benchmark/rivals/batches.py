"""Batches, for what takes one image at a time."""

from __future__ import annotations

import torch

from basicsr_classpruning.inference.engines import Engine


def one_by_one(run: Engine) -> Engine:
    """Restores the images of a batch one after the other."""
    return lambda x: torch.cat([run(image) for image in x.split(1)])
