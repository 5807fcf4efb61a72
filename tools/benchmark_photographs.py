#!/usr/bin/env python
"""Measures what routing saves on photographs of two megapixels and what it loses, and what else one could run.

    python tools/benchmark_photographs.py [NAME ...]            quality at many budgets
    python tools/benchmark_photographs.py [NAME ...] --engines  time, against every engine that is installed
    python tools/benchmark_photographs.py NAME --on datasets/BSD100  quality on other pictures

Each network is pruned with the photographs in ``datasets/photos2k/train`` unless it is at hand, gets a bypass and a
classifier that is fitted to them and to some of the pictures in ``datasets/BSDS500/train``, and restores those in
``datasets/photos2k/test`` in patches. It works in a folder that holds ``datasets/``, ``checkpoints/`` and ``zoo/``;
models that are there already are kept. ``docs/results/photographs/`` gets what the comparisons wrote: ``NAME.json``,
``NAME_BSD100.json`` for other pictures, and with ``--engines`` ``NAME_engines.json``, whose times are shown only if the
machine was idle at the start (a load average of at most 0.2).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from basicsr_classpruning.sizes import SizeRequirements

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'docs' / 'results' / 'photographs'
CALIBRATION = 'datasets/photos2k/train'
OTHERS = 'datasets/BSDS500/train'
TEST = 'datasets/photos2k/test'
IDLE = 0.2
_LOAD = os.getloadavg()[0]  # before this program's own work counts, imports that take seconds included
_TIMED, _REPEATS = 2, 3  # photographs that all engines restore, and how often
BUDGETS = ('0.1', '0.15', '0.2', '0.25', '0.3', '0.4', '0.5', '0.63', '0.8', '1.0')
TIMED_BUDGETS = ('0.2', '0.25', '0.3', '0.4', '0.5')
"""As parts of the dense network's time."""
_OVERLAP = 8  # of tiles, where nobody says another
PATCH = ('--patch', '32', '--tile', '192')


@dataclass(frozen=True)
class Network:
    """One network that photographs are restored with."""

    name: str
    """Of its files."""
    label: str
    dense: str
    """Checkpoint of the dense network."""
    degrade: str
    psnr: str
    """The row's key that is compared: as usual, the luma for super-resolution."""
    fitted: str | None = None
    """Checkpoint of its trained candidates, which get a bypass and a classifier; None: the dense network is pruned."""
    tiled: str | None = None
    """Name of the table in docs/results/tables, where its candidates restore whole tiles of smaller pictures."""
    candidates: tuple[str, ...] = ('0:16', '4:16', '8:16', '16:16')
    """Of what is pruned."""
    trained: str | None = None
    """Options file of a training that the pruned candidates and their classifier get."""
    pruned_for: str | None = None
    """The degradation that pruning sees, where it is another one than the classifier is fitted to."""
    per_layer: bool = False
    """Whether pruning gives each layer its own N."""
    int8: tuple[str, ...] = ()
    """Candidates of a second model, pruned in 8-bit integers, which takes turns with the others where time counts."""
    fitted_int8: str | None = None
    """That model, where it is at hand, trained."""
    trained_int8: str | None = None
    """Options file of its training, where it is not."""
    narrower: tuple[str, str] | None = None
    """A smaller dense network of the same task, whose time is about that of a small budget, and its label."""
    against_dense: bool = False
    """Whether the truth is what the dense network makes of the degraded pictures: a network that was trained to please
    the eye is far from the clean ones."""
    middle: int | None = None
    """Quality is measured on the middle of each photograph, of this many pixels a side: where whole ones take long."""


NETWORKS = (
    Network(
        'edsr_x2_64', 'EDSR ×2, 64 features, 16 blocks', 'zoo/edsr_x2_64_dense.pth', 'bicubic2', 'psnr_y',
        candidates=('0:16', '4:16', '6:16', '10:16', '16:16'), per_layer=True, middle=768,
        trained='options/photographs/edsr_x2_64.yml',
        int8=('0:16', '4:16-int8', '8:16-int8', '16:16-int8'), fitted_int8='zoo/edsr_x2_64_int8.pth',
        narrower=('zoo/edsr_x2_32_layers_dense.pth', 'smaller dense: 32 features, 8 blocks'),
    ),
    Network(
        'edsr_x2_32_layers', 'EDSR ×2, 32 features, 8 blocks, per-layer N', 'zoo/edsr_x2_32_layers_dense.pth',
        'bicubic2', 'psnr_y', fitted='zoo/edsr_x2_32_layers.pth', tiled='edsr_x2_32_layers',
    ),
    Network(
        'dncnn_noise_32', 'DnCNN, 32 features, noise of 1 + half-normal σ 10', 'zoo/dncnn_noise_32_dense.pth',
        'noise~10', 'psnr', fitted='zoo/dncnn_noise_32_patches.pth', middle=768,
    ),
    Network(
        'dncnn_color_blind', 'DnCNN, published, blind, noise of 1 + half-normal σ 10',
        'checkpoints/dncnn_color_blind.pth', 'noise~10', 'psnr', pruned_for='noise0-50', middle=512,
        trained='options/photographs/dncnn_color_blind.yml',
        candidates=('0:16', '4:16', '6:16', '8:16', '10:16', '12:16', '16:16'),
    ),
    Network(
        'msrresnet_x4_32', 'MSRResNet ×4, 32 features, 8 blocks', 'zoo/msrresnet_x4_32_dense.pth', 'bicubic4', 'psnr_y',
        candidates=('0:16', '4:16', '6:16', '10:16', '16:16'), per_layer=True,
        int8=('0:16', '4:16-int8', '8:16-int8', '16:16-int8'),
        trained_int8='options/photographs/msrresnet_x4_32_int8.yml',
    ),
    Network(
        'dncnn_jpeg_32', 'DnCNN, 32 features, JPEG of quality 30 to 95', 'zoo/dncnn_jpeg_32_dense.pth', 'jpeg30-95',
        'psnr', candidates=('0:16', '4:16', '6:16', '10:16', '16:16'), middle=768,
    ),
    Network(
        'dncnn_noise_uniform', 'DnCNN, 32 features, noise of 0 to 50', 'zoo/dncnn_noise_32_dense.pth', 'noise0-50',
        'psnr', fitted='zoo/dncnn_noise_32_patches.pth', middle=768, tiled='dncnn_noise_32',
    ),
    Network(
        'realesr-animevideov3', 'SRVGGNetCompact ×4, published', 'checkpoints/realesr-animevideov3.pth', 'bicubic4',
        'psnr_y', against_dense=True, int8=('0:16', '4:16-int8', '8:16-int8', '16:16-int8'),
    ),
)  # fmt: skip


def measure(network: Network, engines: bool, threads: int, others: str | None = None) -> None:
    """Makes the routed network unless it is there, compares it, and keeps the result; in the current folder.

    Args:
        network: which.
        engines: whether time is measured, against every engine that is installed.
        threads: of the kernels and engines.
        others: a folder of pictures that takes the place of the photographs.
    """
    from basicsr_classpruning import load
    from basicsr_classpruning.archs.forms import as_routed
    from basicsr_classpruning.safe_files import write_atomically
    from tools.benchmark_pruning import write_degraded
    from tools.commands import classpruning

    idle = _LOAD <= IDLE
    for folder in ('models', 'results'):
        Path(folder).mkdir(exist_ok=True)
    model = f'models/{network.name}_photographs.pth'
    if not Path(model).exists():
        idle = False  # the load average still knows
        make(network, model, network.candidates, network.fitted, network.trained)
    models = [model]
    if engines and network.int8:
        models.append(f'models/{network.name}_int8_photographs.pth')
        if network.fitted_int8 and not Path(models[-1]).exists():
            shutil.copy(network.fitted_int8, models[-1])
        if not Path(models[-1]).exists():
            idle = False
            make(network, models[-1], network.int8, trained=network.trained_int8)
    if others is not None:
        pictures = others
    elif engines:
        pictures = _some(TEST, _TIMED)
    else:
        pictures = TEST if network.middle is None else _middles(TEST, network.middle)
    if engines and network.narrower:
        models.append(network.narrower[0])
    what = ['--gt', pictures, '--degrade', network.degrade]
    if network.against_dense:
        lq, gt = f'{pictures}_{network.degrade}', f'{pictures}_{network.name}'
        write_degraded(pictures, lq, network.degrade)
        if not Path(gt).is_dir():
            idle = False
            classpruning('restore', lq, '--model', network.dense, '--output', gt)
        what = ['--gt', gt, '--lq', lq]
    routed = as_routed(load(model))
    budgets = TIMED_BUDGETS if engines else [one for one in BUDGETS if float(one) >= routed.info.costs[0]]
    fixed = network.int8[1:] if engines else ()
    calibration, _ = _inputs(network, CALIBRATION)
    rivals = ['--engines', '--calibration', calibration, '--budget-in', 'time'] if engines else []
    # Single measurements differ by a tenth. Quality is the same each time.
    repeats = _REPEATS if engines else 1
    name = network.name + (f'_{Path(others).name}' if others else '') + ('_engines' if engines else '')
    classpruning(
        'benchmark', '--models', network.dense, *models, *what, '--candidates', *routed.candidates[1:], *fixed,
        '--budgets', *budgets, *PATCH, *rivals, '--repeats', str(repeats), '--threads', str(threads),
        '--json', f'results/{name}.json',
    )  # fmt: skip
    report = json.loads(Path(f'results/{name}.json').read_text(encoding='utf-8'))
    report['idle'] = idle and engines
    if others is not None:
        report['halos_of_tiles'] = _halos(others, routed.sizes)
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = json.dumps(report, indent=1) + '\n'
    write_atomically(RESULTS / f'{name}.json', lambda file: file.write(content.encode()))


def make(
    network: Network, out: str, candidates: Sequence[str], start: str | None = None, trained: str | None = None
) -> None:
    """Makes a routed network. The classifier of a training is kept: it has seen more pictures than a fit would show it,
    and loses less on others. All others are fitted.

    Args:
        network: whose dense network it is pruned from.
        out: where it goes.
        candidates: of what is pruned.
        start: checkpoint of trained candidates, instead of pruning.
        trained: options file of a training that follows the pruning.
    """
    from basicsr_classpruning import load
    from basicsr_classpruning.archs.forms import as_routed
    from tools.commands import classpruning

    if start is None:
        start = out.replace('_photographs', '_pruned')
        if not Path(start).exists():
            calibration, how = _inputs(network, CALIBRATION)
            how = ['--degrade', network.pruned_for] if network.pruned_for else how
            how += ['--int8'] * any(name.endswith('-int8') for name in candidates)
            how += ['--per-layer'] * network.per_layer
            how += ['--calibration', calibration]
            classpruning('prune', network.dense, '--out', start, '--candidates', *candidates, *how)
    if trained:
        shutil.copy(train(trained), out)
        return
    bypass = [] if as_routed(load(start)).candidates[0].startswith('0:') else ['--bypass']
    seen, how = _inputs(network, _with_others(CALIBRATION, 4))
    classpruning('fit', start, *bypass, '--out', out, '--calibration', seen, *how)


def _inputs(network: Network, folder: str) -> tuple[str, list[str]]:
    """A folder of clean pictures as a network's calibration takes it, and how it was degraded."""
    from tools.benchmark_pruning import write_degraded

    if not network.against_dense:
        return folder, ['--degrade', network.degrade]
    degraded = f'{folder}_{network.degrade}'
    write_degraded(folder, degraded, network.degrade)
    return degraded, ['--degrade', 'none']


def train(options: str) -> str:
    """Trains by an options file of the repository, unless that is done; returns the checkpoint."""
    from tools.commands import classpruning

    path = ROOT / options
    name = yaml.safe_load(path.read_text(encoding='utf-8'))['name']
    trained = f'experiments/{name}/models/net_g_latest.pth'
    if not Path(trained).exists():
        _with_others(CALIBRATION, 16)  # some train with these
        classpruning('train', '-opt', str(path))
    return trained


def _with_others(folder: str, every: int) -> str:
    """A folder with the pictures of another one, and some of those that networks are trained with.

    Chosen on photographs held back and on Set5: classifiers of EDSR that saw both lose 0.015 dB less at budgets 0.2 to
    0.5, on photographs too; with 100 different pictures 0.005 less than with 25, of as many crops.
    """
    others = sorted(Path(OTHERS).glob('*.jpg'))[::every]
    both = Path(f'{folder}_and_{len(others)}')
    both.mkdir(exist_ok=True)
    for path in (*Path(folder).glob('*.png'), *others):
        if not (both / path.name).exists():
            shutil.copy(path, both)
    return str(both)


def _halos(folder: str, sizes: SizeRequirements) -> float:
    """How many times the pixels of pictures their usual tiles compute, where whole tiles are routed."""
    import cv2

    from basicsr_classpruning.inference.tiling import plan_tiles, usual_tile

    tile, computed, pixels = usual_tile(_OVERLAP, sizes), 0, 0
    for path in sorted(Path(folder).glob('*.png')):
        image = cv2.imread(str(path))
        assert image is not None, path
        height, width = (side // sizes.scale for side in image.shape[:2])
        computed += plan_tiles(height, width, tile, _OVERLAP, sizes).pixels
        pixels += height * width
    return computed / pixels


def _some(folder: str, count: int) -> str:
    """A folder with the first pictures of another one, by name."""
    some = Path(f'{folder}_{count}')
    some.mkdir(exist_ok=True)
    for path in sorted(Path(folder).glob('*.png'))[:count]:
        if not (some / path.name).exists():
            shutil.copy(path, some)
    return str(some)


def _middles(folder: str, side: int) -> str:
    """A folder with the middles of another one's pictures."""
    import cv2

    cut = Path(f'{folder}_middle{side}')
    cut.mkdir(exist_ok=True)
    for path in sorted(Path(folder).glob('*.png')):
        image = cv2.imread(str(path))
        assert image is not None, path
        top, left = ((length - side) // 2 for length in image.shape[:2])
        cv2.imwrite(str(cut / path.name), image[top : top + side, left : left + side])
    return str(cut)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [network.name for network in NETWORKS]
    parser.add_argument('names', metavar='NAME', nargs='*', help=f'{", ".join(names)}; all by default')
    parser.add_argument('--on', metavar='FOLDER', help='clean pictures that take the place of the photographs')
    parser.add_argument('--engines', action='store_true', help='measure time, against other engines')
    parser.add_argument('--threads', type=int, default=1, metavar='N')
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f'no such network: {", ".join(unknown)}')
    for network in NETWORKS:
        if network.name in (arguments.names or names):
            measure(network, arguments.engines, arguments.threads, arguments.on)


if __name__ == '__main__':
    main()
