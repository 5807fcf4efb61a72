"""Trainings, pictures and checkpoints that the harnesses work with; built from what the tests use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.cli import main
from basicsr_classpruning.untrusted.files import load_file
from tests.tiny import NETWORKS, int8_network, training_options, write_pictures, write_yaml
from tests.tiny import classpruning as tiny_network
from tools.reliability.common import Child

NETWORK = 'DnCNN'
EXPERIMENT = Path('experiments/tiny')
TERMS = {
    'distill_opt': {'type': 'DistillationLoss'},
    'budget_opt': {'type': 'ComputeBudgetLoss', 'target': 0.6},
    'class_opt': {'type': 'ClassificationLoss', 'loss_weight': 0.1},
}


def training(folder: Path, stages: tuple[int, int, int], save_every: int, validate_every: int = 0) -> dict[str, Any]:
    """Options of a training through all stages, with everything that keeps a state: averaged weights, masks that are
    renewed, a learning rate with restarts, all loss terms. Its pictures are written to ``folder`` where they lack."""
    pictures = folder / 'pictures'
    if not pictures.exists():
        write_pictures(pictures)
    length = sum(stages)
    options = training_options(
        pictures,
        NETWORK,
        stages=dict(zip(('supernet', 'classifier', 'joint'), stages)),
        ema_decay=0.9,
        mask_interval=2,
        scheduler={
            'type': 'CosineAnnealingRestartLR', 'periods': [length, length], 'restart_weights': [1, 0.5],
            'eta_min': 1e-6,
        },
        **TERMS,
    )  # fmt: skip
    options['logger']['save_checkpoint_freq'] = save_every
    if validate_every:
        options['val'] = {
            'val_freq': validate_every, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}},
        }  # fmt: skip
        options['datasets']['val'] = {
            'name': 'val', 'type': 'DegradedImageDataset', 'dataroot_gt': str(pictures),
            'degradation': {'type': 'noise', 'sigma': [0, 50]},
        }  # fmt: skip
    return options


def with_int8(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The same training of a network with a bypass and candidates of 8-bit integers, in units of 4 and groups that are
    not whole, from a checkpoint that is written to ``folder``."""
    base = {**NETWORKS[NETWORK], 'num_feat': 18}
    net = int8_network(NETWORK, base=base, classifier={'type': 'BandClassifier'})
    start = folder / 'int8.pth'
    write_checkpoint(start, {'params': net.state_dict()}, net.options)
    network = {key: net.options[key] for key in ('type', 'base', 'candidates', 'unit', 'weights', 'classifier')}
    return {**options, 'network_g': network, 'path': {'pretrain_network_g': str(start)}}


def write_options(folder: Path, options: dict[str, Any]) -> str:
    """Writes an options file into a new folder and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_yaml(folder / 'train.yml', options)


def start_training(folder: Path, options: dict[str, Any], threads: int = 1) -> Child:
    """Starts a training in a folder."""
    file = write_options(folder, options)

    def work() -> int:
        os.chdir(folder)
        torch.set_num_threads(threads)
        return main(['train', '-opt', file])

    return Child(work)


def write_model(path: Path, **options: Any) -> Path:
    """A checkpoint of a small ClassPruning network with random weights."""
    net = tiny_network(NETWORK, **options)
    write_checkpoint(path, {'params': net.state_dict()}, net.options)
    return path


def checkpoints(experiment: Path) -> list[Path]:
    """Every checkpoint and training state of a run, unfinished ones not counted."""
    return sorted((*experiment.glob('models/[!.]*'), *experiment.glob('training_states/[!.]*')))


def damage_of(path: Path) -> str:
    """What is wrong with a checkpoint or training state, in one line; empty for a whole file of finite numbers."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            return f'{path.name}: check sum of {damaged}'
        return '' if all_finite(load_file(path)) else f'{path.name}: numbers that are none'
    except Exception as error:  # whatever it is, the file is not whole
        return f'{path.name}: {type(error).__name__}: {error}'


def all_finite(value: Any) -> bool:
    """Whether all tensors in a nested value are finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(all_finite, value))
    return True
