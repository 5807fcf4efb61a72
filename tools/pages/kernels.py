"""Writes the tables of docs/kernels.md from results of tools/benchmark_kernels.py, tools/benchmark_int8.py and
``classpruning benchmark``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from tools.pages import int8
from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_result, versions_of

DENSE_FP32 = ('eager', 'torch-compile', 'onnxruntime', 'ncnn', 'openvino', 'openvino-fp32')  # as far as they were run
PATTERNS = ('8:16 block 1', '4:16 block 1', '8:16 block 4', '4:16 block 4')
WANTED_LAYERS = {'8:16 block 1': 1.6, '4:16 block 1': 2.6, '8:16 block 4': 1.9, '4:16 block 4': 3.3}
WANTED_NETWORKS = {1: 1.35, 4: 1.15}  # times the MACs fraction, by block
WANTED_ROUTED = {1: 0.65, 4: 0.58}  # times the fastest dense fp32 engine, by block
BF16, INT8 = 'openvino-bf16', 'openvino-int8'


def times(row: dict) -> dict[str, float]:
    """Seconds by engine: processor time with one thread, the lowest wall clock with several."""
    clock = 'cpu' if row['threads'] == 1 else 'wall_min'
    return {name: values[clock] for name, values in row['seconds'].items()}


def fastest_fp32(seconds: dict[str, float]) -> str:
    """The fastest of the dense engines that lose nothing."""
    return min((name for name in DENSE_FP32 if name in seconds), key=lambda name: seconds[name])


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def heading(name: str) -> str:
    """Name of a column."""
    return {BF16: 'dense bf16 (OpenVINO)', INT8: 'dense int8 (OpenVINO)'}.get(name, name)


def layer_table(result: dict) -> str:
    """Speed-up of each pattern over the fastest dense fp32 engine, by layer."""
    names = (*PATTERNS, *([BF16] if BF16 in result['rows'][0]['seconds'] else []))
    rows = []
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for row in result['rows']:
        seconds = times(row)
        best = fastest_fp32(seconds)
        for name in ratios:
            ratios[name].append(seconds[best] / seconds[name])
        cells = [f'{values[-1]:.2f}×' for values in ratios.values()]
        rows.append([f'{row["channels"]} × {row["size"]} px', f'{seconds[best] * 1e3:.2f} ms ({best})', *cells])
    means = [f'**{geometric_mean(values):.2f}×**' for values in ratios.values()]
    rows.append(['**geometric mean**', '', *means])
    rows.append(['wanted', '', *(f'{WANTED_LAYERS[name]}×' if name in WANTED_LAYERS else '' for name in names)])
    return markdown_table(['channels × size', 'fastest dense fp32', *map(heading, names)], rows)


def network_table(result: dict) -> str:
    """Time of each pattern over MACs fraction times the fastest dense fp32 time, by network."""
    rows = []
    lossy = [BF16, *([INT8] if any(INT8 in row['seconds'] for row in result['rows']) else [])]
    for row in result['rows']:
        seconds = times(row)
        best = fastest_fp32(seconds)
        cells = []
        for name in PATTERNS:
            relative, fraction = seconds[name] / seconds[best], row['macs'][name]
            cells.append(f'{relative:.2f} at {fraction:.2f} MACs: {relative / fraction:.2f}×')
        others = [f'{seconds[name] / seconds[best]:.2f}' if name in seconds else 'missing' for name in lossy]
        rows.append([row['network'], f'{seconds[best] * 1e3:.0f} ms ({best})', *cells, *others])
    limits = [f'at most {WANTED_NETWORKS[int(name[-1])]}×' for name in PATTERNS]
    rows.append(['wanted', '', *limits, *('' for _ in lossy)])
    return markdown_table(['network', 'fastest dense fp32', *PATTERNS, *map(heading, lossy)], rows)


def routed_table(result: dict) -> str:
    """Time of a folder of pictures relative to the fastest dense fp32 engine, beside quality and MACs."""
    dense = {row['backend']: row for row in result['rows'] if row['kind'] == 'dense'}
    best = min((dense[name] for name in DENSE_FP32 if name in dense), key=lambda row: row['seconds'])
    rows = []
    for row in result['rows']:
        if row['kind'] in ('oracle', 'random'):
            continue
        block = next((block for block in WANTED_ROUTED if row['model'].endswith(f'block{block}')), 0)
        budget = row['kind'] == 'budget'
        rows.append(
            [
                row['model'],
                f'budget {row["budget"]:g}' if budget else row['candidate'] or f'dense ({row["backend"]})',
                f'{row["psnr"]:.2f}',
                f'{row["macs"] / row["macs_dense"]:.2f}',
                f'**{row["seconds"] / best["seconds"]:.2f}**' if budget else f'{row["seconds"] / best["seconds"]:.2f}',
                f'at most {WANTED_ROUTED[block]}' if budget else '',
            ]
        )
    header = ['model', 'what', 'PSNR (dB)', 'MACs', f'time / {best["backend"]}', 'wanted']
    return markdown_table(header, rows)


def caption(result: dict) -> str:
    """What a table was measured on."""
    if 'machine' in result:
        about = result['machine']
        return (
            f'{about["processor"]}, {about["cores"]} cores, {result["threads"]} thread; {versions_of(about)}; '
            f'{result["pictures"]} pictures of `{result["gt"]}`, {result["degrade"]}, {result["tile"]}-px tiles'
        )
    about = result['environment']
    return (
        f'{about["processor"]}, {about["cores"]} cores; {about["kernels"]}; {versions_of(about)}; load of the machine '
        f'{about["load_before"]:.1f} when it started; {about["date"]}; `{about["command"]}`'
    )


TABLES: dict[str, Callable[[dict], str]] = {
    'kernels_layers_t1': layer_table,
    'kernels_layers_t2': layer_table,
    'kernels_layers_avx2_t1': layer_table,
    'kernels_layers_avx2_t2': layer_table,
    'kernels_layers_zen3_t1': layer_table,
    'kernels_layers_zen3_t2': layer_table,
    'kernels_networks_t1': network_table,
    'kernels_networks_t2': network_table,
    'kernels_routed': routed_table,
    'int8_layers_t1': int8.layer_table,
    'int8_layers_avx2_t1': int8.layer_table,
    'int8_networks_t1': int8.network_table,
}


def write(root: Path) -> None:
    """Writes the tables into docs/kernels.md, as far as their result files are there."""
    blocks = {}
    for name, table in TABLES.items():
        path = root / 'docs' / 'results' / f'{name}.json'
        if path.exists():
            result = read_result(path)
            blocks[name] = f'{caption(result)}\n\n{table(result)}'
    write_blocks(root / 'docs' / 'kernels.md', blocks)
