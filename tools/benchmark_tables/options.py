"""The options file of every row, and the commands that make and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tools.benchmark_tables.plan import CALIBRATION, Row, Table

FOLDER = Path('options/tables')


def experiment(table: Table, row: Row) -> str:
    """Name of a row's training, and of its folder in ``experiments``."""
    return f'{table.name}_{row.name}'


def trained(table: Table, row: Row) -> Path:
    """The network that a row's training leaves."""
    return Path('experiments', experiment(table, row), 'models', 'net_g_latest.pth')


def fitted(row: Row) -> bool:
    """Whether a row's classifier is fitted to the calibration pictures at the end, instead of the last steps."""
    return row.fit > 0


def checkpoint(table: Table, row: Row) -> Path:
    """The network that is measured: after training, and after fitting where the row has that."""
    return Path('experiments', f'{experiment(table, row)}_fitted.pth') if fitted(row) else trained(table, row)


def pruned(table: Table, row: Row) -> Path:
    """Where the calibrated start of a row lies."""
    own = table.row(row.pruned_as) if row.pruned_as else row
    return Path('experiments', f'{experiment(table, own)}_pruned.pth')


def permuted(table: Table, row: Row) -> Path:
    """Where a row's start lies with its channels in another order, before it is pruned."""
    return Path('experiments', f'{experiment(table, row)}_permuted.pth')


def options_file(table: Table, row: Row) -> Path:
    """A row's options file."""
    return FOLDER / table.name / f'{row.name}.yml'


def options(table: Table, row: Row) -> dict[str, Any]:
    """What a row's options file holds."""
    task = table.task
    rate = row.trainings[0].rate
    steps = sum(training.steps for training in row.trainings)
    validation = {
        'name': 'Set5',
        'type': 'DegradedImageDataset',
        'dataroot_gt': 'datasets/Set5',
        'io_backend': {'type': 'disk'},
        'degradation': task.degradation,
    }
    return {
        'name': experiment(table, row),
        'model_type': 'ClassPruningModel' if row.sparse else 'GuardedSRModel',
        'scale': task.scale,
        'num_gpu': 'auto',
        'manual_seed': row.seed,
        'datasets': {'train': _training_data(table, row), 'val': validation},
        'network_g': row.network,
        'path': _start(table, row),
        'train': {
            'amp': 'bf16',
            'channels_last': True,
            'ema_decay': 0.999,
            'optim_g': {'type': 'Adam', 'lr': rate, 'betas': [0.9, 0.99]},
            'scheduler': {
                'type': 'CosineAnnealingRestartLR',
                'periods': [training.steps for training in row.trainings],
                'restart_weights': [training.rate / rate for training in row.trainings],
                'eta_min': 1e-7,
            },
            'total_iter': steps,
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
            **row.train,
        },
        'val': {
            'val_freq': steps,
            'save_img': False,
            'metrics': {
                'psnr': {
                    'type': 'calculate_psnr',
                    'crop_border': task.scale,
                    'test_y_channel': task.scale > 1,
                }
            },
        },
        'logger': {'print_freq': 200, 'save_checkpoint_freq': 500, 'use_tb_logger': False},
    }


def _start(table: Table, row: Row) -> dict[str, str | None]:
    if row.start is None:
        return {'pretrain_network_g': None}
    if row.calibrated:
        return {'pretrain_network_g': str(pruned(table, row))}
    return {'pretrain_network_g': str(checkpoint(table, table.row(row.start))), 'param_key_g': 'params_ema'}


def _training_data(table: Table, row: Row) -> dict[str, Any]:
    task = table.task
    return {
        'name': 'BSDS500',
        'type': 'DegradedImageDataset',
        'dataroot_gt': CALIBRATION,
        'io_backend': {'type': 'disk'},
        'degradation': task.degradation,
        'shrink': task.shrink,
        'gt_size': task.gt_size,
        'use_hflip': True,
        'use_rot': True,
        'batch_size_per_gpu': row.batch,
        'num_worker_per_gpu': 1,
        'dataset_enlarge_ratio': 100,
    }


class _Dumper(yaml.SafeDumper):
    """Writes short lists and repeated values in place, as a person would."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text(table: Table, row: Row) -> str:
    """A row's options file, with its head."""
    head = (
        f'# {table.title}: {row.label}\n'
        f'# Written by tools/reproduce_tables.py; data in {CALIBRATION} (training) and datasets/Set5 (validation)\n'
        f'# Run:  python tools/reproduce_tables.py {table.name} --rows {row.name}\n'
    )
    return head + yaml.dump(options(table, row), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)
