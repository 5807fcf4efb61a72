"""The table of docs/benchmarks.md that comes from `tools/benchmark_int8.py quality`."""

from __future__ import annotations

from pathlib import Path

from tools.int8_quality import CANDIDATES, NETWORKS, NNCF, TRAINED, WEIGHTS
from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_result, versions_of


def quality_table(result: dict) -> str:
    """What int8 loses on each set of pictures, in dB below the dense network."""
    rows = []
    for network in NETWORKS:
        for row in (row for row in result['rows'] if row['network'] == network.name):
            dense = row['psnr']['dense']
            columns = (NNCF, WEIGHTS, *reversed(CANDIDATES), *(name + TRAINED for name in reversed(CANDIDATES)))
            losses = (f'{dense - row["psnr"][name]:.3f}' if name in row['psnr'] else '' for name in columns)
            rows.append([network.label, f'{row["pictures"]} ({row["count"]})', f'{dense:.2f}', *losses])
    names = ['dense' if name.startswith('16') else name.removesuffix('-int8') for name in reversed(CANDIDATES)]
    header = [
        'network',
        'pictures',
        'fp32 (dB)',
        'NNCF',
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
