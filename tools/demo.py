#!/usr/bin/env python
"""The demo of `make demo`: prunes a small denoiser of the zoo, trains its candidates a little on scikit-image's
photographs, and compares the two on others. What an earlier run finished is used again.

Leaves `results/demo/report.html` and `report.json`, the noisy pictures and the restored ones.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import cv2

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr_classpruning.data.degradations import Degradation, as_uint8, picture_rng
from basicsr_classpruning.data.demo import make_demo_data
from tools.commands import classpruning

DATA = Path('datasets/demo')
RESULTS = Path('results/demo')
DENSE = Path('zoo/dncnn_noise_32_dense.pth')
PRUNED = Path('experiments/demo_pruned.pth')
TRAINED = Path('experiments/demo/models/net_g_latest.pth')
DEGRADATION = 'noise0-50'
BUDGETS = ('0.4', '0.5', '0.6', '0.8')


def prune(pictures: Path) -> None:
    """Prunes the dense network with data, from which the training of the candidates starts."""
    if PRUNED.is_file():
        print(f'{PRUNED} is there already')
        return
    PRUNED.parent.mkdir(parents=True, exist_ok=True)
    classpruning('prune', DENSE, '--out', PRUNED, '--candidates', '4:16', '8:16', '16:16',
                 '--calibration', pictures, '--degrade', DEGRADATION)  # fmt: skip


def train() -> None:
    """Trains, or goes on training, unless it is done."""
    if TRAINED.is_file():
        print(f'{TRAINED} is there already')
    else:
        classpruning('train', '-opt', 'options/train/demo.yml', '--auto_resume')


def write_noisy_pictures(clean: Path, folder: Path) -> None:
    """Writes what the networks are given to restore, as 8-bit pictures."""
    degradation = Degradation.parse(DEGRADATION)
    folder.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(sorted(clean.glob('*.png'))):
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert picture is not None, path
        noisy = degradation.degrade(picture, picture_rng(path.stem, index))
        cv2.imwrite(str(folder / path.name), as_uint8(noisy))


def main() -> None:
    start = time.perf_counter()
    data = make_demo_data(DATA)
    prune(data.train)
    train()
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_noisy_pictures(data.test, RESULTS / 'noisy')
    classpruning('benchmark', '--models', DENSE, TRAINED, '--gt', data.test,
                 '--degrade', DEGRADATION, '--budgets', *BUDGETS, '--json', RESULTS / 'report.json',
                 '--report', RESULTS / 'report.html')  # fmt: skip
    shutil.rmtree(RESULTS / 'restored', ignore_errors=True)
    classpruning('restore', RESULTS / 'noisy', '--model', TRAINED, '--output', RESULTS / 'restored',
                 '--budget', '0.6', '--class-map')  # fmt: skip
    print(f'\nDone in {time.perf_counter() - start:.0f} s. Look at {RESULTS}/report.html; pictures: {RESULTS}/restored')


if __name__ == '__main__':
    main()
