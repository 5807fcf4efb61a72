"""Writes the tables of docs/tables/speed.md from results of tools/benchmark_kernels.py and tools/benchmark_int8.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_result, versions_of

DENSE_FP32 = ('eager', 'torch-compile', 'onnxruntime', 'ncnn', 'openvino', 'openvino-fp32')  # as far as they were run
INT8 = 'openvino-int8'
HEADINGS = {
    'kernels': 'dense',
    '8:16 block 1': '8:16',
    '4:16 block 1': '4:16',
    '8:16 block 4': '8:16 block 4',
    '4:16 block 4': '4:16 block 4',
    '8:16 block 32': '8:16 block 32, shared taps',
    '4:16 block 32': '4:16 block 32, shared taps',
    'openvino-bf16': 'dense bf16 (OpenVINO)',
}
FP32_COLUMN = 'fp32'
HEADINGS_INT8 = {'dense': 'int8 dense', '8:16': 'int8 8:16', '4:16': 'int8 4:16', FP32_COLUMN: 'fastest fp32'}


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


def name_of(row: dict) -> str:
    """A row's first cell."""
    return row['network'] if 'network' in row else f'{row["channels"]} × {row["size"]} px'


def speed_table(rows: list[dict], rival: Callable[[dict[str, float]], str], headings: dict[str, str]) -> str:
    """How many times as fast as a rival each column is, by row, with one thread and with two."""
    names = _columns(rows, headings)
    lines: list[list[str]] = []
    for threads in sorted({row['threads'] for row in rows}):
        ratios: dict[str, list[float]] = {name: [] for name in names}
        for row in (row for row in rows if row['threads'] == threads):
            seconds = times(row)
            best = rival(seconds)
            seconds[FP32_COLUMN] = seconds[fastest_fp32(seconds)]
            for name, values in ratios.items():
                values.append(seconds[best] / seconds[name])
            milliseconds = seconds[best] / row.get('depth', 1) * 1e3
            cells = [f'{values[-1]:.2f}×' for values in ratios.values()]
            lines.append([name_of(row), str(threads), f'{milliseconds:.2f} ms ({best})', *cells])
        means = [f'**{geometric_mean(values):.2f}×**' for values in ratios.values()]
        lines.append(['**geometric mean**', str(threads), '', *means])
    what = 'network' if 'network' in rows[0] else 'channels × size'
    return markdown_table([what, 'threads', 'rival', *(headings[name] for name in names)], lines)


def _columns(rows: list[dict], headings: dict[str, str]) -> list[str]:
    """What has a column: what every row has."""
    return [name for name in headings if all(name in row['seconds'] or name == FP32_COLUMN for row in rows)]


def mean_table(rows: list[dict], rivals: dict[str, Callable[[dict[str, float]], str]], headings: dict[str, str]) -> str:
    """Geometric means of how many times as fast as each rival each column is, with one thread and with two."""
    names = _columns(rows, headings)
    lines = []
    for label, rival in rivals.items():
        for threads in sorted({row['threads'] for row in rows}):
            measured = [times(row) for row in rows if row['threads'] == threads]
            means = (geometric_mean(seconds[rival(seconds)] / seconds[name] for seconds in measured) for name in names)
            lines.append([label, str(threads), *(f'{mean:.2f}×' for mean in means)])
    return markdown_table(['against', 'threads', *(headings[name] for name in names)], lines)


def layer_table(side: int) -> Callable[[dict], str]:
    """Of layers with a kernel of one size."""

    def table(result: dict) -> str:
        rows = [row for row in result['rows'] if row['kernel_size'] == side]
        return speed_table(rows, fastest_fp32, HEADINGS)

    return table


def layer_means(result: dict) -> str:
    """Of layers with both kernel sizes, against PyTorch's layer too."""
    rivals = {'fastest fp32 engine': fastest_fp32, 'PyTorch': lambda seconds: 'eager'}
    tables = []
    for side in (3, 1):
        rows = [row for row in result['rows'] if row['kernel_size'] == side]
        tables.append(f'{side} × {side}:\n\n{mean_table(rows, rivals, HEADINGS)}')
    return '\n\n'.join(tables)


def network_table(result: dict) -> str:
    """Of whole networks."""
    return speed_table(result['rows'], fastest_fp32, HEADINGS)


def int8_table(result: dict) -> str:
    """Against OpenVINO's int8."""
    return speed_table(result['rows'], lambda seconds: INT8, HEADINGS_INT8)


def caption(result: dict) -> str:
    """What a table was measured on."""
    about = result['environment']
    return (
        f'{about["processor"]}, {about["cores"]} cores; {about["kernels"]}; {versions_of(about)}; load of the machine '
        f'{about["load_before"]:.1f} when it started; {about["date"]}; `{about["command"]}`'
    )


TABLES: dict[str, tuple[str, Callable[[dict], str]]] = {
    'kernels_layers_3x3': ('kernels_layers', layer_table(3)),
    'kernels_layers_1x1': ('kernels_layers', layer_table(1)),
    'kernels_layers_means': ('kernels_layers', layer_means),
    'kernels_layers_avx2': ('kernels_layers_avx2', layer_means),
    'kernels_networks': ('kernels_networks', network_table),
    'kernels_networks_avx2': ('kernels_networks_avx2', network_table),
    'int8_layers': ('int8_layers', int8_table),
    'int8_layers_avx2': ('int8_layers_avx2', int8_table),
    'int8_networks': ('int8_networks', int8_table),
    'int8_networks_avx2': ('int8_networks_avx2', int8_table),
}
"""The result file of each table's place in the page, and what makes the table."""


def write(root: Path) -> None:
    """Writes the tables into docs/tables/speed.md, as far as their result files are there."""
    blocks = {}
    for name, (result_name, table) in TABLES.items():
        path = root / 'docs' / 'results' / f'{result_name}.json'
        if path.exists():
            result = read_result(path)
            blocks[name] = f'{caption(result)}\n\n{table(result)}'
    write_blocks(root / 'docs' / 'tables' / 'speed.md', blocks)
