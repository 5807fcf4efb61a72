"""Shared fixtures: the environment is mended before any test imports BasicSR."""

from __future__ import annotations

from pathlib import Path

import pytest

from basicsr_classpruning import environment

environment.prepare()


@pytest.fixture(scope='session')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small colour pictures, from flat to noisy."""
    from tiny import write_pictures

    return write_pictures(tmp_path_factory.mktemp('pictures'))
