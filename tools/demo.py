#!/usr/bin/env python
"""The demo of `make demo`: prunes a small denoiser of the zoo, trains its candidates a little on scikit-image's
photographs, and compares the two on others. Then EDSR of the zoo enlarges a photograph in three ways: dense in PyTorch,
the same on this package's kernels, and routed in patches among candidates of 8-bit integers and a bypass. What an
earlier run finished is used again.

Leaves `results/demo/report.html` and `report.json`, the noisy pictures and the restored ones, with class maps.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr_classpruning import load
from basicsr_classpruning.benchmark.metrics import compare
from basicsr_classpruning.data.degradations import Degradation, as_uint8, picture_rng
from basicsr_classpruning.data.demo import make_demo_data
from basicsr_classpruning.inference import Restorer
from basicsr_classpruning.text_table import format_table
from tools.commands import classpruning

DATA = Path('datasets/demo')
RESULTS = Path('results/demo')
DENSE = Path('zoo/dncnn_noise_32_dense.pth')
PRUNED = Path('experiments/demo_pruned.pth')
TRAINED = Path('experiments/demo/models/net_g_latest.pth')
ENLARGING, ENLARGING_INT8 = Path('zoo/edsr_x2_64_dense.pth'), Path('zoo/edsr_x2_64_int8.pth')
PHOTOGRAPH, SCALE, INT8_BUDGET = 'chelsea', 2, 0.4
PATCH = 32
DEGRADATION = 'noise0-50'
BUDGETS = ('0.4', '0.5', '0.6', '0.8')


def prune(pictures: Path) -> None:
    """Prunes the dense network with data, from which the training of the candidates starts."""
    if PRUNED.is_file():
        print(f'{PRUNED} is there already')
        return
    PRUNED.parent.mkdir(parents=True, exist_ok=True)
    classpruning('prune', DENSE, '--out', PRUNED, '--candidates', '0:16', '4:16', '8:16', '16:16',
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


def three_ways(clean: Path) -> str:
    """A table: what enlarges a photograph, the seconds that it takes (the least of five), and its PSNR; and which
    candidates its patches got."""
    truth = cv2.imread(str(clean / f'{PHOTOGRAPH}.png'), cv2.IMREAD_COLOR)
    assert truth is not None
    height, width = (side // SCALE * SCALE for side in truth.shape[:2])
    truth = np.ascontiguousarray(truth[:height, :width, ::-1])
    small = as_uint8(Degradation.parse(f'bicubic{SCALE}').degrade(truth, picture_rng(PHOTOGRAPH, 0)))
    routed = f'routed, 8-bit integers, budget {INT8_BUDGET:g}'
    restorers = {
        'dense network, PyTorch': Restorer(load(ENLARGING), backend='dense'),
        'the same on the kernels': Restorer(load(ENLARGING), backend='cpu'),
        routed: Restorer(load(ENLARGING_INT8), budget=INT8_BUDGET, patch=PATCH),
    }
    seconds: dict[str, list[float]] = {name: [] for name in restorers}
    restored = {}
    for _ in range(6):  # in turn, so that all have the same machine; the first time everything is made
        for name, restorer in restorers.items():
            start = time.perf_counter()
            restored[name] = restorer.restore(small)
            seconds[name].append(time.perf_counter() - start)
    rows = [
        (name, f'{min(took[1:]):.3f}', f'{compare(restored[name][0], truth, SCALE).psnr_y:.2f}')
        for name, took in seconds.items()
    ]
    shares = ', '.join(f'{name} {share:.0%}' for name, share in restored[routed][1].class_share.items())
    table = format_table([(f'{PHOTOGRAPH}, enlarged {SCALE} times', 'seconds', 'PSNR of the luma'), *rows])
    return f'{table}\nPatches routed to: {shares} (0:16 runs nothing of the network)'


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
    print(f'\n{three_ways(data.test)}')
    print(f'\nDone in {time.perf_counter() - start:.0f} s. Look at {RESULTS}/report.html; pictures: {RESULTS}/restored')


if __name__ == '__main__':
    main()
