"""Writes what restoring photographs takes and loses, into docs/benchmarks.md and the README, from the kept results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basicsr_classpruning.benchmark.rivals import RIVALS
from tools.benchmark_photographs import NETWORKS, Network
from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_result, versions_of

RESULTS = Path('docs/results/photographs')
_LOSSLESS = 0.001  # dB
_NO_LOSS_SEEN = 0.03
_LITTLE_LOSS = 0.1


@dataclass(frozen=True)
class Comparison:
    """One network's measurements."""

    network: Network
    report: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All that a user could run: neither the oracle nor chance."""
        return [row for row in self.report['rows'] if row['kind'] not in ('oracle', 'random')]

    def loss(self, row: dict[str, Any]) -> float:
        """dB below the dense network; where that is the truth itself, minus the PSNR to it."""
        psnr = row[self.network.psnr]
        if self.network.against_dense:
            return 0.0 if psnr is None else -psnr
        return max(self.dense[self.network.psnr] - psnr, -9.0)

    @property
    def dense(self) -> dict[str, Any]:
        """The dense network as this package runs it."""
        return next(row for row in self.rows if row['kind'] == 'dense' and row['backend'] not in RIVALS)

    @property
    def rival(self) -> dict[str, Any]:
        """The fastest rival that gives the dense network's pictures."""
        rivals = [row for row in self.rows if row['backend'] in RIVALS and self._is_exact(row)]
        return min(rivals, key=lambda row: row['seconds'])

    def _is_exact(self, row: dict[str, Any]) -> bool:
        if self.network.against_dense:
            return row[self.network.psnr] is None or row[self.network.psnr] > 70
        return abs(self.loss(row)) < _LOSSLESS

    def quality(self, row: dict[str, Any]) -> str:
        """How far a row is from the dense network, as a reader sees it."""
        psnr = row[self.network.psnr]
        if self.network.against_dense:
            return 'equal' if self._is_exact(row) else f'{psnr:.2f} dB to it'
        return f'{-self.loss(row):+.3f} dB'.replace('-0.000', '0.000').replace('+0.000', '0.000')

    def speed(self, row: dict[str, Any]) -> str:
        """How much faster a row is than the rival; empty where the machine was not idle."""
        return f'{self.rival["seconds"] / row["seconds"]:.2f}×' if self.report['idle'] else ''


def table(comparison: Comparison) -> str:
    """Every row of a network, in the order of the comparison."""
    lines = []
    for row in comparison.rows:
        name = {'dense': 'dense', 'candidate': f'{row["candidate"]} everywhere', 'routed': 'routed'}.get(row['kind'])
        kind = name or f'ClassPruning{" int8" if "int8" in row["model"] else ""}, budget {row["budget"]:g}'
        macs = f'{row["macs"] / row["macs_dense"]:.1%}'
        lines.append([kind, row['backend'], comparison.quality(row), macs, comparison.speed(row)])
    return markdown_table(['what', 'engine', 'to the dense network', 'MACs', 'speed'], lines)


def caption(comparison: Comparison) -> str:
    """What was measured, how and on what."""
    report = comparison.report
    return (
        f'{report["pictures"]} photographs, `--degrade {comparison.network.degrade}`; '
        f'{report["machine"]["processor"]}, {report["threads"]} thread(s); {versions_of(report["machine"])}; '
        f'`python tools/benchmark_photographs.py {comparison.network.name}`. Speed is relative to '
        f'{comparison.rival["backend"]}, the fastest engine that gives the same pictures as PyTorch.'
    )


def summary(comparisons: Sequence[Comparison]) -> str:
    """A line for each network: speed and loss of what one would choose among."""
    lines = []
    for one in comparisons:
        ours = [row for row in one.rows if row['kind'] == 'budget']
        int8 = next((row for row in one.rows if row['backend'] == 'openvino-int8'), None)
        cells = [int8, one.dense, _fastest(one, [row for row in ours if 'int8' not in row['model']], _NO_LOSS_SEEN),
                 _fastest(one, ours, _LITTLE_LOSS)]  # fmt: skip
        lines.append([one.network.label, f'{one.rival["backend"]}', *(_cell(one, row) for row in cells)])
    header = ['network', 'fastest lossless rival', 'OpenVINO int8', 'our engine, dense']
    header += [f'ClassPruning, at most {_NO_LOSS_SEEN} dB', f'ClassPruning with int8, at most {_LITTLE_LOSS} dB']
    return markdown_table(header, lines)


def _fastest(one: Comparison, rows: list[dict[str, Any]], loss: float) -> dict[str, Any] | None:
    """The fastest row that loses at most so much; the best one where none does."""
    if not rows:
        return None
    good = [row for row in rows if one.loss(row) <= loss and not one.network.against_dense]
    return min(good, key=lambda row: row['seconds']) if good else min(rows, key=one.loss)


def _cell(one: Comparison, row: dict[str, Any] | None) -> str:
    return '' if row is None else ', '.join(filter(None, (one.speed(row), one.quality(row))))


def write(root: Path) -> None:
    """Writes the tables, as far as their results are there."""
    found = [(network, root / RESULTS / f'{network.name}.json') for network in NETWORKS]
    comparisons = [Comparison(network, read_result(path)) for network, path in found if path.is_file()]
    if not comparisons:
        return
    whole = [f'### {one.network.label}\n\n{caption(one)}\n\n{table(one)}\n' for one in comparisons]
    write_blocks(root / 'docs/benchmarks.md', {'photographs': summary(comparisons), 'every row': '\n'.join(whole)})
    write_blocks(root / 'README.md', {'photographs': summary(comparisons)})
