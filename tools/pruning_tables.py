"""Measures pruning without training, and writes the tables of docs/pruning.md.

``python tools/pruning_tables.py measure [NAME ...]`` prunes the dense networks and benchmarks what comes out, in a
folder that holds ``datasets/`` and ``checkpoints/``; what is there already is kept. ``... tables`` writes the page.
``docs/results/prune/`` holds what the commands wrote with ``--json``: ``NAME_prune.json``, for each test set
``NAME_SET.json``, and of plain magnitude ``NAME_magnitude_SET.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import markdown, replace_blocks

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'pruning.md'
RESULTS = ROOT / 'docs' / 'results' / 'prune'
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


# ------------------------------------------------------------------------------------------------------- measuring


def measure(network: Network) -> None:
    """Prunes a network with data and by magnitude, and benchmarks both; in the current folder."""
    from commands import classpruning

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


# ---------------------------------------------------------------------------------------------------------- tables


def read(name: str) -> dict[str, Any] | None:
    """A result file; None where it was not measured."""
    path = RESULTS / f'{name}.json'
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def of_kind(result: dict[str, Any] | None, kind: str) -> dict[Any, dict[str, Any]]:
    """Rows of a kind, by candidate or budget."""
    rows = result['rows'] if result else []
    return {row['candidate'] if kind == 'candidate' else row['budget']: row for row in rows if row['kind'] == kind}


def losses() -> str:
    """What each candidate loses on the test pictures, beside plain magnitude."""
    lines = []
    for network in NETWORKS:
        for test_set in network.test_sets:
            candidates = of_kind(read(f'{network.name}_{test_set}'), 'candidate')
            magnitude = of_kind(read(f'{network.name}_magnitude_{test_set}'), 'candidate')
            dense = next((row for row in candidates.values() if row['saved'] == 0), None)
            for name, row in candidates.items():
                if network.against_dense and row is dense:
                    continue  # its PSNR is limited by nothing but rounding
                cells = [network.label, test_set, name, f'{1 - row["saved"]:.1%}', f'{row[network.psnr]:.3f}']
                plain = magnitude[name][network.psnr] if name in magnitude else None
                if dense is None or row is dense or network.against_dense:
                    cells += ['', '' if plain is None or row is dense else f'PSNR {plain:.3f}', '']
                else:
                    loss = dense[network.psnr] - row[network.psnr]
                    by_magnitude = None if plain is None else dense[network.psnr] - plain
                    cells.append(f'{loss:.3f}')
                    cells += ['', ''] if by_magnitude is None else [f'{by_magnitude:.3f}', f'{loss / by_magnitude:.1%}']
                lines.append(cells)
    return markdown(['network', 'pictures', 'candidate', 'MACs', 'PSNR', 'loss', 'magnitude', 'of it'], lines)


def routed() -> str:
    """Budgets beside the best single candidate within the budget, and beside the two reference curves."""
    lines = []
    for network in NETWORKS:
        for test_set in network.test_sets:
            result = read(f'{network.name}_{test_set}')
            candidates = list(of_kind(result, 'candidate').values())
            oracle, random = of_kind(result, 'oracle'), of_kind(result, 'random')
            for budget, row in of_kind(result, 'budget').items():
                key, digits = ('ssim', 4) if network.against_dense else (network.psnr, 3)
                affordable = (one for one in candidates if one['macs'] <= budget * one['macs_dense'])
                best = max(affordable, key=lambda one: one[key])
                value, fixed, by_chance, at_best = (one[key] for one in (row, best, random[budget], oracle[budget]))
                cells = [network.label, test_set, f'{budget:g}', f'{1 - row["saved"]:.1%}', f'{value:.{digits}f}']
                cells += [f'{fixed:.{digits}f} ({best["candidate"]})', f'{value - fixed:+.{digits}f}']
                cells += [f'{by_chance:.{digits}f}', f'{value - by_chance:+.{digits}f}', f'{at_best:.{digits}f}']
                lines.append(cells)
    header = ['network', 'pictures', 'budget', 'average MACs', 'routed', 'best fixed', 'gain', 'random', 'gain']
    return markdown([*header, 'oracle'], lines)


def weights() -> str:
    """Own and shared weights: loss on held-out calibration crops, and file size."""
    lines = []
    for network in NETWORKS:
        result = read(f'{network.name}_prune')
        for kind in sorted(result['weights'], key=lambda one: one['kind']) if result else ():
            sparse = [one for one in kind['candidates'] if one['candidate'] != 'dense']
            figures = ', '.join(map(_loss, sparse))
            size = kind['file_bytes'] / result['file_bytes_dense']
            lines.append([network.label, kind['kind'], f'{kind["file_bytes"] / 1e6:.2f} MB ({size:.2f}×)', figures])
    return markdown(['network', 'weights', 'file (of the dense one)', 'loss of each candidate (dB)'], lines)


def _loss(candidate: dict[str, Any]) -> str:
    """What a candidate loses; where the dense outputs are the truth, its PSNR to them."""
    loss = candidate['loss']
    return f'{candidate["candidate"]} ' + (f'PSNR {candidate["psnr"]:.2f}' if loss is None else f'{loss:.3f}')


def measured() -> str:
    """The commands, and what they ran on."""
    lines = []
    for path in sorted(RESULTS.glob('*.json')):
        result = json.loads(path.read_text(encoding='utf-8'))
        machine = result['machine']
        versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items() if version)
        processor = f'{machine["processor"]}, torch on {machine["torch_instruction_set"]}'
        lines.append(f'* `{path.name}`: `{result["command"]}` ({processor}, {result["threads"]} thread(s); {versions})')
    return '\n'.join(lines)


TABLES: dict[str, Callable[[], str]] = {
    'losses': losses, 'routed': routed, 'weights': weights, 'measured': measured,
}  # fmt: skip


def render(text: str) -> str:
    """The page with all its tables renewed."""
    return replace_blocks(text, {name: table() for name, table in TABLES.items()})


def main() -> None:
    """Measures, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='what', required=True)
    names = [network.name for network in NETWORKS]
    measuring = commands.add_parser('measure')
    measuring.add_argument('names', metavar='NAME', nargs='*', help=', '.join(names))
    commands.add_parser('tables')
    arguments = parser.parse_args()
    if arguments.what == 'tables':
        PAGE.write_text(render(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
        return
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f'no such network: {", ".join(unknown)}')
    for network in NETWORKS:
        if network.name in (arguments.names or names):
            measure(network)


if __name__ == '__main__':
    main()
