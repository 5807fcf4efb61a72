"""Measures pruning without training: prunes dense networks with data and by magnitude, and benchmarks what comes out.

    python tools/benchmark_pruning.py [NAME ...]

It works in a folder that holds ``datasets/`` and ``checkpoints/``; what is there already is kept.
``docs/results/prune/`` gets what the commands wrote with ``--json``: ``NAME_prune.json``, for each test set
``NAME_SET.json``, and of plain magnitude ``NAME_magnitude_SET.json``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tools.commands import classpruning

RESULTS = Path(__file__).resolve().parents[1] / 'docs' / 'results' / 'prune'
LADDER = ('4:16', '6:16', '8:16', '11:16', '16:16')
BUDGETS = ('0.4', '0.5', '0.6', '0.7', '0.8')
CALIBRATION = 'datasets/bsds500_train400'


@dataclass(frozen=True)
class Network:
    """One dense network that is pruned."""

    name: str
    """Of its result files."""
    label: str
    checkpoint: str
    """Below ``checkpoints/``, without its ending."""
    degrade: str
    psnr: str
    """The row's key that is compared: as usual, the luma for super-resolution."""
    arch: bool = False
    """Whether ``checkpoints/CHECKPOINT.yml`` says what it is."""
    candidates: tuple[str, ...] = LADDER
    budgets: tuple[str, ...] = BUDGETS
    test_sets: tuple[str, ...] = ('BSD100',)
    magnitude: bool = True
    """Whether plain magnitude is measured too."""
    against_dense: bool = False
    """Whether the truth is what the dense network makes of the degraded pictures: a network that was trained to please
    the eye is far from the clean ones. Routing is then compared by SSIM: the PSNR of a picture that goes to the dense
    candidate as a whole is infinite."""


NETWORKS = (
    Network(
        'dncnn_gray_sigma25', 'DnCNN 64×17, grey, σ = 25', 'dncnn_gray_sigma25', 'noise25-25', 'psnr', magnitude=False
    ),
    Network(
        'dncnn_gray_sigma25_m4', 'the same', 'dncnn_gray_sigma25', 'noise25-25', 'psnr',
        candidates=('1:4', '2:4', '4:4'), budgets=(), magnitude=False,
    ),
    Network('edsr_x2_32', 'EDSR 32×8, ×2', 'edsr_x2_32', 'bicubic2', 'psnr_y', arch=True),
    Network(
        'msrresnet_x4_32', 'MSRResNet 32×8, ×4', 'msrresnet_x4_32', 'bicubic4', 'psnr_y', arch=True,
        candidates=('3:16', '6:16', '10:16', '16:16'),
    ),
    Network(
        'realesr-animevideov3', 'realesr-animevideov3, ×4', 'realesr-animevideov3', 'bicubic4', 'psnr_y',
        candidates=('3:16', '6:16', '10:16', '16:16'), against_dense=True,
    ),
)  # fmt: skip


def measure(network: Network) -> None:
    """Prunes a network with data and by magnitude, and benchmarks both; in the current folder."""

    def keep(name: str, *argv: str) -> None:
        """Runs a command that writes a result, unless it is there."""
        if not (RESULTS / name).exists():
            classpruning(*argv, '--json', f'results/{name}')  # relative, as the file records the command
            shutil.copy(f'results/{name}', RESULTS / name)

    RESULTS.mkdir(parents=True, exist_ok=True)
    for folder in ('models', 'results'):
        Path(folder).mkdir(exist_ok=True)
    dense = f'checkpoints/{network.checkpoint}.pth'
    pruned, magnitude = (f'models/{name}.pth' for name in (network.name, f'{network.name}_magnitude'))
    how = [dense, '--candidates', *network.candidates]
    how += ['--arch', f'checkpoints/{network.checkpoint}.yml'] if network.arch else []
    calibration = ['--calibration', CALIBRATION, '--degrade', network.degrade]
    if network.against_dense:
        degraded = f'{CALIBRATION}_{network.degrade}'
        write_degraded(CALIBRATION, degraded, network.degrade)
        calibration = ['--calibration', degraded, '--degrade', 'none']
    keep(f'{network.name}_prune.json', 'prune', *how, '--out', pruned, *calibration)
    if network.magnitude and not Path(magnitude).exists():
        classpruning('prune', *how, '--out', magnitude)
    for test_set in network.test_sets:
        pictures = ['--gt', f'datasets/{test_set}', '--degrade', network.degrade]
        if network.against_dense:
            lq, gt = f'datasets/{test_set}_{network.degrade}', f'datasets/{test_set}_{network.name}'
            write_degraded(f'datasets/{test_set}', lq, network.degrade)
            classpruning('restore', lq, '--model', dense, '--output', gt)
            pictures = ['--gt', gt, '--lq', lq]
        sparse = ['--candidates', *network.candidates]
        runs = [(pruned, network.name, [*sparse, *(['--budgets', *network.budgets] if network.budgets else [])])]
        if network.magnitude:
            runs.append((magnitude, f'{network.name}_magnitude', sparse))
        for model, name, what in runs:
            fixed = ['--repeats', '1', '--threads', '1']
            keep(f'{name}_{test_set}.json', 'benchmark', '--models', model, *pictures, *what, *fixed)


def write_degraded(source: str, target: str, degrade: str) -> None:
    """Degrades a folder of pictures into PNG files, unless that is done."""
    if Path(target).is_dir():
        return
    import cv2
    import numpy as np

    from basicsr_classpruning.benchmark.pairs import Pairs
    from basicsr_classpruning.data.degradations import Degradation

    degradation = Degradation.parse(degrade)
    pairs = Pairs(source, None, degradation)
    made = Path(f'{target}.making')  # a folder of the name is whole
    made.mkdir(exist_ok=True)
    for index in range(len(pairs)):
        pair = pairs.pair(index, 3, degradation.scale)
        pixels = np.rint(pair.degraded.clip(0, 1) * 255).astype(np.uint8)
        cv2.imwrite(f'{made}/{pair.name}.png', pixels[:, :, ::-1])
    made.rename(target)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [network.name for network in NETWORKS]
    parser.add_argument('names', metavar='NAME', nargs='*', help=f'{", ".join(names)}; all by default')
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f'no such network: {", ".join(unknown)}')
    for network in NETWORKS:
        if network.name in (arguments.names or names):
            measure(network)


if __name__ == '__main__':
    main()
