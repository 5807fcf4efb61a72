"""Writes "What routing could gain" of docs/tables/index.md from the results of tools/routing_by_distance.py."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_results


def write(root: Path) -> None:
    """Writes the table into the page."""
    reports = read_results(root / 'docs/results/routing').values()
    write_blocks(root / 'docs/tables/index.md', {'routing by distance': table(reports)})


def table(reports: Iterable[dict[str, Any]]) -> str:
    """Shares of the oracle's gain, a line for each report; all are of the same budgets."""
    lines = []
    for report in reports:
        shares = (_share(report['rows'], kind) for kind in ('classifier', 'distances'))
        gains = ' '.join(f'{row["oracle"]:.3f}' for row in report['rows'])
        lines.append([f'`{report["model"]}`', Path(report['gt']).name, *shares, gains])
        budgets = ', '.join(f'{row["budget"]:g}' for row in report['rows'])
    header = ['network', 'pictures', 'classifier', 'true distances', f"oracle's gain at budgets {budgets} (dB)"]
    return markdown_table(header, lines)


def _share(rows: list[dict[str, float]], kind: str) -> str:
    """Of the oracle's gain, mean over the budgets at which there is one; empty where there is none."""
    shares = [row[kind] / row['oracle'] for row in rows if row['oracle'] > 0]
    return f'{np.mean(shares):.0%}' if shares else ''
