"""Writes the tables of docs/kernels.md from the result files of tools/benchmark_kernels.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from tables import markdown, write_blocks

DENSE_FP32 = ('eager', 'onnxruntime', 'openvino')
PATTERNS = ('8:16 block 1', '4:16 block 1', '8:16 block 4', '4:16 block 4')
WANTED_LAYERS = {'8:16 block 1': 1.6, '4:16 block 1': 2.6, '8:16 block 4': 1.9, '4:16 block 4': 3.3}
WANTED_NETWORKS = {1: 1.35, 4: 1.15}  # times the MACs fraction, by block
BF16 = 'openvino-bf16'


def times(row: dict) -> dict[str, float]:
    """Seconds by engine: processor time with one thread, the lowest wall clock with several."""
    clock = 'cpu' if row['threads'] == 1 else 'wall_min'
    return {name: values[clock] for name, values in row['seconds'].items()}


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def layer_table(result: dict) -> str:
    """Speed-up of each pattern over the fastest dense fp32 engine, by layer."""
    rows, ratios = [], {name: [] for name in (*PATTERNS, BF16)}
    for row in result['rows']:
        seconds = times(row)
        best = min(DENSE_FP32, key=lambda name: seconds[name])
        for name in ratios:
            ratios[name].append(seconds[best] / seconds[name])
        cells = [f'{values[-1]:.2f}×' for values in ratios.values()]
        rows.append([f'{row["channels"]} × {row["size"]} px', f'{seconds[best] * 1e3:.2f} ms ({best})', *cells])
    means = [f'**{geometric_mean(values):.2f}×**' for values in ratios.values()]
    rows.append(['**geometric mean**', '', *means])
    rows.append(['wanted', '', *(f'{WANTED_LAYERS[name]}×' for name in PATTERNS), ''])
    return markdown(['channels × size', 'fastest dense fp32', *PATTERNS, 'dense bf16 (OpenVINO)'], rows)


def network_table(result: dict) -> str:
    """Time of each pattern over MACs fraction times the fastest dense fp32 time, by network."""
    rows = []
    for row in result['rows']:
        seconds = times(row)
        best = min(DENSE_FP32, key=lambda name: seconds[name])
        cells = []
        for name in PATTERNS:
            relative, fraction = seconds[name] / seconds[best], row['macs'][name]
            cells.append(f'{relative:.2f} at {fraction:.2f} MACs: {relative / fraction:.2f}×')
        bf16 = f'{seconds[BF16] / seconds[best]:.2f}'
        rows.append([row['network'], f'{seconds[best] * 1e3:.0f} ms ({best})', *cells, bf16])
    limits = [f'at most {WANTED_NETWORKS[int(name[-1])]}×' for name in PATTERNS]
    rows.append(['wanted', '', *limits, ''])
    return markdown(['network', 'fastest dense fp32', *PATTERNS, 'dense bf16 (OpenVINO)'], rows)


def caption(result: dict) -> str:
    """What a table was measured on."""
    about = result['environment']
    versions = ', '.join(f'{name} {version}' for name, version in about['versions'].items())
    return (
        f'{about["processor"]}, {about["cores"]} cores; {about["kernels"]}; {versions}; load of the machine '
        f'{about["load_before"]:.1f} when it started; {about["date"]}; `{about["command"]}`'
    )


TABLES: dict[str, Callable[[dict], str]] = {
    'kernels_layers_t1': layer_table,
    'kernels_networks_t1': network_table,
}


def write_tables(root: Path) -> None:
    """Writes the tables into docs/kernels.md, as far as their result files are there."""
    blocks = {}
    for name, table in TABLES.items():
        path = root / 'docs' / 'results' / f'{name}.json'
        if path.exists():
            result = json.loads(path.read_text())
            blocks[name] = f'{caption(result)}\n\n{table(result)}'
    write_blocks(root / 'docs' / 'kernels.md', blocks)
