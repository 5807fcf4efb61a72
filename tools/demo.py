#!/usr/bin/env python
"""The demo of `make demo`: trains a small denoiser on scikit-image's photographs, prunes it, goes on with ClassPruning
training, and compares the two on photographs that neither was trained on. What an earlier run finished is used again.

Leaves `results/demo/report.html` and `report.json`, the noisy pictures and the restored ones.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import cv2
from commands import classpruning

from basicsr_classpruning.data.degradations import Degradation, as_uint8, picture_rng
from basicsr_classpruning.data.demo import make_demo_data

DATA = Path('datasets/demo')
RESULTS = Path('results/demo')
DEGRADATION = 'noise0-50'
BUDGETS = ('0.4', '0.5', '0.6', '0.8')


def checkpoint(name: str) -> Path:
    """Where a training leaves its network."""
    return Path('experiments', name, 'models', 'net_g_latest.pth')


def train(name: str) -> None:
    """Trains, or goes on training, unless it is done."""
    if checkpoint(name).is_file():
        print(f'{checkpoint(name)} is there already')
    else:
        classpruning('train', '-opt', f'options/train/{name}.yml', '--auto_resume')


def prune(pictures: Path) -> None:
    """Prunes the dense network with data, from which the ClassPruning training starts."""
    pruned = Path('experiments/demo_dense/pruned.pth')
    if pruned.is_file():
        print(f'{pruned} is there already')
    else:
        classpruning('prune', checkpoint('demo_dense'), '--out', pruned, '--candidates', '4:16', '8:16', '16:16',
            '--calibration', pictures, '--degrade', DEGRADATION)  # fmt: skip


def write_noisy_pictures(clean: Path, folder: Path) -> None:
    """Writes what the networks are given to restore, as 8-bit pictures."""
    degradation = Degradation.parse(DEGRADATION)
    folder.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(sorted(clean.glob('*.png'))):
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        noisy = degradation.degrade(picture, picture_rng(path.stem, index))
        cv2.imwrite(str(folder / path.name), as_uint8(noisy))


def main() -> None:
    start = time.perf_counter()
    data = make_demo_data(DATA)
    train('demo_dense')
    prune(data.train)
    train('demo')
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_noisy_pictures(data.test, RESULTS / 'noisy')
    classpruning('benchmark', '--models', checkpoint('demo_dense'), checkpoint('demo'), '--gt', data.test,
        '--degrade', DEGRADATION, '--budgets', *BUDGETS, '--json', RESULTS / 'report.json',
        '--report', RESULTS / 'report.html')  # fmt: skip
    shutil.rmtree(RESULTS / 'restored', ignore_errors=True)
    classpruning('restore', RESULTS / 'noisy', '--model', checkpoint('demo'), '--output', RESULTS / 'restored',
        '--budget', '0.6', '--class-map')  # fmt: skip
    print(f'\nDone in {time.perf_counter() - start:.0f} s. Look at {RESULTS}/report.html; pictures: {RESULTS}/restored')


if __name__ == '__main__':
    main()
