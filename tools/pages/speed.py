"""Writes what was aimed at in speed, and what was reached, into docs/kernels.md, from the kept results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.pages.kernels import FP32_COLUMN, INT8, fastest_fp32, geometric_mean, times
from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.photographs import Comparison, in_int8, read_timed
from tools.pages.results import read_result

LARGE = ('EDSR 64x16 x2', 'MSRResNet x4', 'SRVGGNetCompact x4', 'DnCNN')
SMALL = ('EDSR 32x8 x2', 'DnCNN, 32 features')
FIRST = 'edsr_x2_64'  # the network whose photographs are timed
ROUTED_MACS = 0.25
ROUTED_LOSS = 0.1  # dB, that routing in int8 may lose
_SETTINGS = (('', 1), ('', 2), ('_avx2', 1))  # of a result file's name, and threads
_HEADINGS = ('1 thread', '2 threads', 'AVX2, 1 thread')

Rival = Callable[[dict[str, float]], str]


@dataclass(frozen=True)
class Target:
    """How many times as fast as a rival something should be: floor and goal."""

    what: str
    floor: float
    goal: float
    result: str
    """Name of the result file, without what says the instruction set."""
    rival: Rival
    ours: str
    """Column of the result."""
    networks: tuple[str, ...] = ()
    """Whose rows count, each for itself; none: the geometric mean of all rows counts."""
    kernel_size: int | None = None

    def reached(self, rows: Iterable[dict[str, Any]]) -> str:
        """The cell of rows of one instruction set and number of threads."""
        ratios = []
        for row in rows:
            if row.get('network', '') in (self.networks or ('',)) and row.get('kernel_size') == self.kernel_size:
                seconds = times(row)
                if self.ours not in seconds:
                    continue
                seconds[FP32_COLUMN] = seconds[fastest_fp32(seconds)]
                ratios.append(seconds[self.rival(seconds)] / seconds[self.ours])
        if not ratios:
            return ''
        if not self.networks:
            return f'{geometric_mean(ratios):.2f}×'
        return f'{min(ratios):.2f}×' if len(ratios) == 1 else f'{min(ratios):.2f} to {max(ratios):.2f}×'


def _named(name: str) -> Rival:
    return lambda seconds: name


TARGETS = (
    Target('dense candidate against ncnn: EDSR 64×16, MSRResNet, SRVGGNetCompact, DnCNN', 1.1, 1.4,
           'kernels_networks', _named('ncnn'), 'kernels', LARGE),
    Target('3 × 3 layers, dense, against PyTorch', 2.2, 2.8, 'kernels_layers', _named('eager'), 'kernels',
           kernel_size=3),
    Target('3 × 3 layers, 4:16, against PyTorch’s dense one', 3.0, 4.0, 'kernels_layers', _named('eager'),
           '4:16 block 1', kernel_size=3),
    Target('the same, taps and 32 output channels sharing a mask', 3.0, 4.0, 'kernels_layers', _named('eager'),
           '4:16 block 32', kernel_size=3),
    Target('1 × 1 layers, 8:16, against the fastest dense one', 1.5, 1.8, 'kernels_layers', fastest_fp32,
           '8:16 block 1', kernel_size=1),
    Target('1 × 1 layers, 4:16, against the fastest dense one', 2.4, 3.2, 'kernels_layers', fastest_fp32,
           '4:16 block 1', kernel_size=1),
    Target('NAFNet 32, 8:16, against the fastest fp32 engine', 1.3, 1.7, 'kernels_networks', fastest_fp32,
           '8:16 block 1', ('NAFNet width 32',)),
    Target('SwinIR-light, 8:16, against the fastest fp32 engine', 1.3, 1.7, 'kernels_networks', fastest_fp32,
           '8:16 block 1', ('SwinIR-light x2',)),
    Target('EDSR and DnCNN of 32 features: dense against ncnn', 1.0, 1.3, 'kernels_networks', _named('ncnn'),
           'kernels', SMALL),
    Target('the same: 4:16 against the dense candidate', 1.5, 2.0, 'kernels_networks', _named('kernels'),
           '4:16 block 1', SMALL),
    Target('the same, taps and 32 output channels sharing a mask', 1.5, 2.0, 'kernels_networks', _named('kernels'),
           '4:16 block 32', SMALL),
    Target('int8, 3 × 3 layers, dense, against OpenVINO’s int8', 0.9, 1.0, 'int8_layers', _named(INT8), 'dense'),
    Target('the same, 8:16', 1.4, 1.7, 'int8_layers', _named(INT8), '8:16'),
    Target('the same, 4:16', 2.3, 3.0, 'int8_layers', _named(INT8), '4:16'),
    Target('int8, the four networks, 8:16, against OpenVINO’s int8', 1.3, 1.6, 'int8_networks', _named(INT8), '8:16',
           LARGE),
    Target('the same, 4:16', 2.0, 2.6, 'int8_networks', _named(INT8), '4:16', LARGE),
    Target('the same, 8:16, against the fastest fp32 engine (floor and goal are for AVX2)', 1.2, 1.8, 'int8_networks',
           fastest_fp32, '8:16', LARGE),
)  # fmt: skip


def table(results: dict[str, dict[str, Any]], photographs: Comparison | None) -> str:
    """What was aimed at, and what was reached.

    Args:
        results: by the names of their files.
        photographs: times of the network that is routed, if they are there.
    """
    lines = []
    for target in TARGETS:
        cells = [
            target.reached(row for row in results.get(target.result + suffix, {'rows': []})['rows']
                           if row['threads'] == threads)
            for suffix, threads in _SETTINGS
        ]  # fmt: skip
        lines.append([target.what, f'{target.floor:g}×', f'{target.goal:g}×', *cells])
    if photographs is not None:
        lines += [[*cells, '', ''] for cells in _routed(photographs)]
    return markdown_table(['what', 'floor', 'goal', *_HEADINGS], lines)


def _routed(one: Comparison) -> list[list[str]]:
    """Rows of whole photographs."""
    fp32, int8 = ([row for row in one.rows('budget') if in_int8(row) == wanted] for wanted in (False, True))
    same = one.densest(fp32[0]['model'])['seconds']
    xs, ys = zip(*sorted((row['macs'] / row['macs_dense'], same / row['seconds']) for row in fp32))
    at_macs = f'{np.interp(ROUTED_MACS, xs, ys):.2f}×'
    rows = [[f'a photograph at {ROUTED_MACS:.0%} of the MACs, fp32, against dense on the same kernels', '3.4×', '3.8×',
             at_macs]]  # fmt: skip
    seconds = one.seconds_at(one.psnr(one.dense) - ROUTED_LOSS, int8)
    engines = {'eager': ('8×', '15×'), 'openvino-fp32': ('7×', '13×'), INT8: ('2.5×', '4×')}
    for row in one.rows('dense'):
        if row['model'] == one.dense['model'] and row['backend'] in engines:
            what = f'a photograph at −{ROUTED_LOSS} dB, int8, against {row["backend"]}'
            rows.append([what, *engines[row['backend']], f'{row["seconds"] / seconds:.1f}×'])
    return rows


def write(root: Path) -> None:
    """Writes the table into docs/kernels.md, if its results are there."""
    names = {target.result + suffix for target in TARGETS for suffix, _ in _SETTINGS}
    paths = {name: root / 'docs' / 'results' / f'{name}.json' for name in sorted(names)}
    found = {name: read_result(path) for name, path in paths.items() if path.is_file()}
    timed = [one for one in read_timed(root) if one.network.name == FIRST]
    write_blocks(root / 'docs' / 'kernels.md', {'speed targets': table(found, timed[0] if timed else None)})
