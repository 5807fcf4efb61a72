"""Shared fixtures: the environment is mended before any test imports BasicSR."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basicsr_classpruning import environment

environment.prepare()
# Two test processes on two cores: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test that fails fails every time."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small colour pictures, from flat to noisy."""
    from tiny import write_pictures

    return write_pictures(tmp_path_factory.mktemp('pictures'))


@pytest.fixture(scope='session')
def prunable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dense checkpoint that does not say what it is, its options, and pictures."""
    from tiny import NETWORKS, dense, write_pictures, write_yaml

    from basicsr_classpruning.checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp('prunable')
    write_pictures(folder / 'pictures', height=104, width=112)
    write_checkpoint(folder / 'dense.pth', {'params': dense('DnCNN').state_dict()}, None)
    write_yaml(folder / 'arch.yml', {'network_g': NETWORKS['DnCNN']})
    return folder


@pytest.fixture
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning with data as always, on few crops and with few steps."""
    for name, value in (('_ERROR_CROPS', (6, 6)), ('_FIT_STEPS', 12), ('_HELD_OUT', 6), ('_WEIGHT_CROPS', (4, 4))):
        monkeypatch.setattr(f'basicsr_classpruning.pruning.prune.{name}', value)
