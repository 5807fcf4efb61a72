#!/usr/bin/env python
"""Measures what restoring photographs of two megapixels takes, and what it loses, with all that one could run.

    python tools/benchmark_photographs.py [NAME ...] [--photographs N] [--threads N]

Each network is pruned with the photographs in ``datasets/photos2k/train``, in fp32 and in int8, and compared on those
in ``datasets/photos2k/test`` in one run: the dense network in every engine that is installed, its sparse candidates
everywhere, and ClassPruning at budgets. It works in a folder that holds ``datasets/`` and ``checkpoints/``; models that
are there already are kept. ``docs/results/photographs/NAME.json`` gets what the comparison wrote.

Times are kept only if the machine was idle at the start: a load average of at most 0.2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr_classpruning.safe_files import write_atomically
from tools.benchmark_pruning import write_degraded
from tools.commands import classpruning

RESULTS = Path(__file__).resolve().parents[1] / 'docs' / 'results' / 'photographs'
CALIBRATION = 'datasets/photos2k/train'
TEST = 'datasets/photos2k/test'
IDLE = 0.2
LADDER = ('0:16', '4:16', '8:16', '16:16')
INT8_LADDER = ('0:16', '4:16-int8', '8:16-int8', '16:16-int8')
BUDGETS = ('0.2', '0.3', '0.4')


@dataclass(frozen=True)
class Network:
    """One dense network that photographs are restored with."""

    name: str
    """Of its files."""
    label: str
    dense: str
    """Its checkpoint."""
    degrade: str
    psnr: str
    """The row's key that is compared: as usual, the luma for super-resolution."""
    against_dense: bool = False
    """Whether the truth is what the dense network makes of the degraded pictures: a network that was trained to please
    the eye is far from the clean ones."""


NETWORKS = (
    Network('edsr_x2_64', 'EDSR ×2, 64 features, 16 blocks', 'zoo/edsr_x2_64_dense.pth', 'bicubic2', 'psnr_y'),
    Network(
        'realesr-animevideov3', 'SRVGGNetCompact ×4 (realesr-animevideov3)', 'checkpoints/realesr-animevideov3.pth',
        'bicubic4', 'psnr_y', against_dense=True,
    ),
    Network(
        'dncnn_color_blind', 'DnCNN, blind colour noise (KAIR), noise of 1 + half-normal σ 10',
        'checkpoints/dncnn_color_blind.pth', 'noise~10', 'psnr',
    ),
)  # fmt: skip


def measure(network: Network, photographs: int, threads: int) -> None:
    """Prunes a network and compares what comes out with everything else, in the current folder."""
    idle = os.getloadavg()[0] <= IDLE
    for folder in ('models', 'results'):
        Path(folder).mkdir(exist_ok=True)
    calibration = ['--calibration', CALIBRATION, '--degrade', network.degrade]
    engine_pictures = CALIBRATION
    if network.against_dense:
        engine_pictures = f'{CALIBRATION}_{network.degrade}'
        write_degraded(CALIBRATION, engine_pictures, network.degrade)
        calibration = ['--calibration', engine_pictures, '--degrade', 'none']
    models = [network.dense]
    for name, ladder, how in ((network.name, LADDER, []), (f'{network.name}_int8', INT8_LADDER, ['--int8'])):
        model = f'models/{name}.pth'
        if not Path(model).exists():
            classpruning('prune', network.dense, '--out', model, '--candidates', *ladder, *how, *calibration)
            idle = False  # the load average still knows
        models.append(model)
    pictures = _some(TEST, photographs)
    what = ['--gt', pictures, '--degrade', network.degrade]
    if network.against_dense:
        lq, gt = f'{pictures}_{network.degrade}', f'{pictures}_{network.name}'
        write_degraded(pictures, lq, network.degrade)
        if not Path(gt).is_dir():
            classpruning('restore', lq, '--model', network.dense, '--output', gt)
            idle = False
        what = ['--gt', gt, '--lq', lq]
    result = f'results/{network.name}.json'
    sparse = [name for name in (*LADDER, *INT8_LADDER) if not name.startswith('0:')]
    classpruning(
        'benchmark', '--models', *models, *what, '--candidates', *sparse, '--budgets', *BUDGETS, '--patch', '32',
        '--engines', '--calibration', engine_pictures, '--repeats', '1', '--threads', str(threads), '--json', result,
    )  # fmt: skip
    report = json.loads(Path(result).read_text(encoding='utf-8'))
    report['idle'] = idle
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = json.dumps(report, indent=1) + '\n'
    write_atomically(RESULTS / f'{network.name}.json', lambda file: file.write(content.encode()))


def _some(folder: str, count: int) -> str:
    """A folder with the first pictures of another one, by name."""
    found = sorted(path for path in Path(folder).iterdir() if path.suffix == '.png')
    if count >= len(found):
        return folder
    some = Path(f'{folder}_{count}')
    some.mkdir(exist_ok=True)
    for path in found[:count]:
        if not (some / path.name).exists():
            shutil.copy(path, some)
    return str(some)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [network.name for network in NETWORKS]
    parser.add_argument('names', metavar='NAME', nargs='*', help=f'{", ".join(names)}; all by default')
    parser.add_argument('--photographs', type=int, default=10, metavar='N', help='the first N of them (default: all)')
    parser.add_argument('--threads', type=int, default=1, metavar='N')
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f'no such network: {", ".join(unknown)}')
    for network in NETWORKS:
        if network.name in (arguments.names or names):
            measure(network, arguments.photographs, arguments.threads)


if __name__ == '__main__':
    main()
