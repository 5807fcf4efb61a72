"""The tables of docs/kernels.md and docs/benchmarks.md that come from results of tools/benchmark_int8.py."""

from __future__ import annotations

import math
from pathlib import Path

from tools.int8_quality import CANDIDATES, NETWORKS, NNCF, TRAINED, WEIGHTS
from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_result, versions_of

RIVAL = 'openvino-int8'
COLUMNS = {'dense': 'int8 dense', '8:16': 'int8 8:16', '4:16': 'int8 4:16'}
OTHERS = {'openvino-fp32': 'fp32 (OpenVINO)', 'eager': 'fp32 (PyTorch)'}
FLOORS = {
    'layers': {'dense': '0.9', '8:16': '1.4', '4:16': '2.3'},
    'networks': {'8:16': '1.3', '4:16': '2.0'},
}
GOALS = {
    'layers': {'dense': '1.0', '8:16': '1.7', '4:16': '3.0'},
    'networks': {'8:16': '1.6', '4:16': '2.6'},
}


def _table(result: dict, what: str, heading: str) -> str:
    rows = []
    ratios: dict[str, list[float]] = {name: [] for name in (*COLUMNS, *OTHERS)}
    for row in result['rows']:
        clock = 'cpu' if row['threads'] == 1 else 'wall_min'
        seconds = {name: values[clock] for name, values in row['seconds'].items()}
        for name, values in ratios.items():
            values.append(seconds[RIVAL] / seconds[name])
        name = row['network'] if what == 'networks' else f'{row["channels"]} × {row["size"]} px'
        time = seconds[RIVAL] / row.get('depth', 1) * 1e3
        rows.append([name, f'{time:.2f} ms', *(f'{values[-1]:.2f}×' for values in ratios.values())])
    means = [f'**{math.exp(sum(map(math.log, values)) / len(values)):.2f}×**' for values in ratios.values()]
    rows.append(['**geometric mean**', '', *means])
    wanted = [f'{FLOORS[what][n]} to {GOALS[what][n]}×' if n in FLOORS[what] else '' for n in ratios]
    rows.append(['wanted', '', *wanted])
    return markdown_table([heading, "OpenVINO's int8", *COLUMNS.values(), *OTHERS.values()], rows)


def layer_table(result: dict) -> str:
    """Speed over OpenVINO's int8 layer, whose time is that of one layer of the stack."""
    return _table(result, 'layers', 'channels × size')


def network_table(result: dict) -> str:
    """Speed over the network in OpenVINO's int8."""
    return _table(result, 'networks', 'network')


def quality_table(result: dict) -> str:
    """What int8 loses on each set of pictures, in dB below the dense network."""
    rows = []
    for network in NETWORKS:
        for row in (row for row in result['rows'] if row['network'] == network.name):
            dense = row['psnr']['dense']
            columns = (*NNCF, WEIGHTS, *reversed(CANDIDATES), *(name + TRAINED for name in reversed(CANDIDATES)))
            losses = (f'{dense - row["psnr"][name]:.3f}' if name in row['psnr'] else '' for name in columns)
            rows.append([network.label, f'{row["pictures"]} ({row["count"]})', f'{dense:.2f}', *losses])
    names = ['dense' if name.startswith('16') else name.removesuffix('-int8') for name in reversed(CANDIDATES)]
    header = [
        'network',
        'pictures',
        'fp32 (dB)',
        'NNCF, photographs',
        'NNCF, BSDS500',
        'dense, weights alone',
        *names,
        *(f'{name}, trained' for name in names),
    ]
    return markdown_table(header, rows)


def quality_caption(result: dict) -> str:
    """What the table was measured on."""
    about = result['environment']
    steps = ', '.join(f'{network.label}: {network.steps} steps' for network in NETWORKS if network.steps)
    return f'{about["kernels"]}; {versions_of(about)}; {about["date"]}. Trained: {steps}.'


def write(root: Path) -> None:
    """Writes the table of losses into docs/benchmarks.md, if its result file is there."""
    path = root / 'docs' / 'results' / 'int8_quality.json'
    if path.exists():
        result = read_result(path)
        blocks = {'int8 quality': quality_table(result), 'int8 quality measured': quality_caption(result)}
        write_blocks(root / 'docs' / 'benchmarks.md', blocks)
