"""Shared fixtures: the environment is mended before any test imports BasicSR."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basicsr_classpruning import environment

environment.prepare()
# Two test processes on two cores: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope='session')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small colour pictures, from flat to noisy."""
    from tiny import write_pictures

    return write_pictures(tmp_path_factory.mktemp('pictures'))
