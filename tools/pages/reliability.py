"""Writes the tables of docs/reliability.md from the result files of the harnesses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_results
from tools.reliability.points import POINTS


def write(root: Path) -> None:
    """Writes the tables into docs/reliability.md, as far as their result files are there."""
    results = read_results(root / 'docs/results/reliability')
    blocks = {name: f'{_caption(result)}\n\n{_rows(result)}{_figures(result)}' for name, result in results.items()}
    write_blocks(root / 'docs' / 'reliability.md', {**blocks, 'summary': _summary(results)})


def _summary(results: dict[str, Any]) -> str:
    """One row for each point, in the order of the page."""
    rows = [
        [f'`{name}`', *(f'{results[name][key]:,}' for key in ('tried', 'survived', 'lost'))]
        for name in POINTS
        if name in results
    ]
    return markdown_table(['point', 'tried', 'survived', 'lost'], rows)


def _caption(result: dict[str, Any]) -> str:
    """What ran, where and when."""
    machine = result['machine']
    versions = ', '.join(f'{name} {machine["versions"][name]}' for name in ('basicsr', 'torch', 'numpy'))
    return (
        f'`{result["command"]}`, seed {result["seed"]}, commit {result["commit"]}, {result["date"]}, '
        f'{result["seconds"]:.0f} s; {machine["processor"]}, {machine["cores"]} cores, {machine["memory_gb"]} GB, '
        f'{machine["system"]}; Python {machine["python"]}, {versions}'
    )


def _rows(result: dict[str, Any]) -> str:
    rows = [
        [row['what'], f'{row["tried"]:,}', f'{row["tried"] - len(row["lost"]):,}', f'{len(row["lost"]):,}']
        for row in result['rows']
    ]
    total = ['**together**', *(f'**{result[key]:,}**' for key in ('tried', 'survived', 'lost'))]
    return markdown_table(['what', 'tried', 'survived', 'lost'], [*rows, total])


def _figures(result: dict[str, Any]) -> str:
    """What was measured besides, the memory as a table."""
    lines = [f'* {text}' for text in result['skipped']]
    for name, value in result['figures'].items():
        if name == 'memory':
            continue
        if isinstance(value, dict):
            value = ', '.join(f'{key}: {item}' for key, item in value.items())
        elif isinstance(value, list):
            value = ', '.join(map(str, value))
        lines.append(f'* {name}: {value}')
    parts = ['\n\n' + '\n'.join(lines)] if lines else []
    memory = result['figures'].get('memory')
    if memory:
        rows = [
            [entry['what'], f'{entry["seconds"]:.0f}', *map(str, entry['peak MiB by quarter of the time'])]
            for entry in memory
        ]
        header = ['largest memory in each quarter of the time, MiB', 'seconds', 'first', 'second', 'third', 'last']
        parts.append('\n\n' + markdown_table(header, rows))
    return ''.join(parts)
