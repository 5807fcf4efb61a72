"""The full-scale recipes: each runs three steps on stand-in pictures in the layout that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from basicsr.utils.lmdb_util import LmdbMaker
from tiny import REPOSITORY

from basicsr_classpruning.cli import main
from basicsr_classpruning.config import load_options

RECIPES = sorted((REPOSITORY / 'options' / 'recipes').glob('*.yml'))
SIDE = 64
SMALL = (
    'num_gpu=0', 'path:pretrain_network_g=~', 'datasets:train:batch_size_per_gpu=1', 'datasets:train:gt_size=32',
    'datasets:train:num_worker_per_gpu=0', 'train:stages={supernet: 3}',
    'train:scheduler:periods=[3]', 'train:amp=~', 'val:val_freq=3', 'logger:print_freq=1',
    'logger:use_tb_logger=false',
)  # fmt: skip


def write_stand_in(root: Path, backend: str, names: list[str], side: int) -> None:
    """Two pictures in a folder or LMDB, as BasicSR's data preparation leaves them."""
    rng = np.random.default_rng(side)
    pictures = {name: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in names}
    if backend == 'disk':
        root.mkdir(parents=True)
        for name, picture in pictures.items():
            cv2.imwrite(str(root / f'{name}.png'), picture)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    maker = LmdbMaker(str(root))
    for name, picture in pictures.items():
        maker.put(cv2.imencode('.png', picture)[1].tobytes(), name, picture.shape)
    maker.close()


def write_data_set(folder: Path, options: dict[str, Any], scale: int) -> None:
    backend = options['io_backend']['type']
    template = options.get('filename_tmpl', '{}')
    write_stand_in(folder / options['dataroot_gt'], backend, ['0001', '0002'], SIDE)
    low = [template.format(name) for name in ('0001', '0002')]
    write_stand_in(folder / options['dataroot_lq'], backend, low, SIDE // scale)


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_runs_three_steps(path, tmp_path, monkeypatch):
    options = load_options(str(path))
    for data_set in options['datasets'].values():
        write_data_set(tmp_path, data_set, options['scale'])
    monkeypatch.chdir(tmp_path)
    assert main(['train', '-opt', str(path), '--force_yml', *SMALL]) == 0
    assert (tmp_path / 'experiments' / options['name'] / 'models' / 'net_g_latest.pth').is_file()


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_head_names_data_start_and_command(path):
    options = load_options(str(path))
    head = path.read_text(encoding='utf-8').split('\nname:')[0]
    roots = {root for data in options['datasets'].values() for root in (data['dataroot_gt'], data['dataroot_lq'])}
    assert all(root in head for root in roots)
    assert f'--arch options/recipes/{path.name}' in head
    assert f'-opt options/recipes/{path.name}' in head
    assert f'--out {options["path"]["pretrain_network_g"]}' in head
