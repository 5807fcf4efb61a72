"""Trainings of tiny networks: whole runs and single steps, and how they are compared."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from basicsr.models import build_model
from tiny import scale_of, write_yaml

from basicsr_classpruning.cli import main
from basicsr_classpruning.config.loading import parse_options
from basicsr_classpruning.models.classpruning_model import ClassPruningModel

BUDGET = {'budget_opt': {'type': 'ComputeBudgetLoss', 'target': 0.6}}
CLASS = {'class_opt': {'type': 'ClassificationLoss', 'loss_weight': 0.1}}
DISTILL = {'distill_opt': {'type': 'DistillationLoss'}}
EXPERIMENT = Path('experiments/tiny')


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict, *flags: str, command: str = 'train') -> int:
    """Runs ``classpruning`` in a folder."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    return main([command, '-opt', write_yaml(folder / f'{command}.yml', options), *flags])


def model_of(folder: Path, options: dict) -> ClassPruningModel:
    """The model of an options file, as the training loop builds it."""
    opt, _ = parse_options(str(folder), True, ['-opt', write_yaml(folder / 'train.yml', options)])
    return build_model(opt)


def batch(name: str = 'EDSR', images: int = 3, side: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(images, 3, side * scale_of(name), side * scale_of(name), generator=generator)
    return {'lq': torch.rand(images, 3, side, side, generator=generator), 'gt': gt}


def step(model: ClassPruningModel, iteration: int, data: dict[str, torch.Tensor] | None = None) -> set[str]:
    """One training step; returns which of base, classifier and price it changed."""
    before = deepcopy(dict(model.net_g.named_parameters()))
    model.feed_data(data or batch())
    model.optimize_parameters(iteration)
    return {
        name.partition('.')[0]
        for name, parameter in model.net_g.named_parameters()
        if not torch.equal(parameter, before[name])
    }
