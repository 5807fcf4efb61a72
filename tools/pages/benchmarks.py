"""Writes the pages of docs/tables, and the two tables of docs/benchmarks.md that sum them up, from the kept results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.benchmark_tables import instances
from tools.benchmark_tables.container import NAME as CONTAINER
from tools.benchmark_tables.plan import BUDGETS, LARGE, VARIANTS_BUDGETS, VARIANTS_TEST_SET, Row, Table
from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_result, versions_of

RESULTS = Path('docs/results/tables')
PAGES = Path('docs/tables')
_HEADLINE_BUDGETS = (0.4, 0.5, 0.6, 0.8)
_TIMED_BUDGET = 0.5
_EQUAL_QUALITY = 0.02  # dB


@dataclass(frozen=True)
class Result:
    """One table's measurements on one test set."""

    table: Table
    test_set: str
    content: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, table: Table, test_set: str, name: str = '') -> Result | None:
        """None where it was not measured."""
        path = folder / f'{name or table.name}_{test_set}.json'
        return cls(table, test_set, read_result(path)) if path.is_file() else None

    def rows(self, name: str, *kinds: str) -> list[dict[str, Any]]:
        """The measurements of a row of the plan, of some kinds."""
        return [row for row in self.content['rows'] if row['model'] == name and row['kind'] in kinds]

    @property
    def measured(self) -> list[str]:
        """Names of the rows of the plan that were measured."""
        return list(self.content['table']['models'].values())

    def psnr(self, row: dict[str, Any]) -> float:
        """PSNR in dB: of the luma for super-resolution, of all channels otherwise, as is usual."""
        return row['psnr_y' if self.table.task.scale > 1 else 'psnr']

    def mean_psnr(self, row: dict[str, Any]) -> float:
        """The same as a mean over the trainings, with several seeds, of the row of the plan that was measured here."""
        return float(np.mean([self.psnr(other) for other in self.alike(row)]))

    def alike(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The measurements that differ from this one in nothing but the seed of the training."""
        return [
            found
            for training in self.table.trainings_of(row['model'])
            for found in self.rows(training.name, row['kind'])
            if (found['candidate'], found['budget'], found['backend'])
            == (row['candidate'], row['budget'], row['backend'])
        ]

    @property
    def routed(self) -> Row:
        """The first ClassPruning row that was measured."""
        return next(row for row in self.table.rows if row.routed and row.name in self.measured)

    @property
    def dense(self) -> dict[str, Any]:
        """The dense network that was trained as long as all others, in its fastest engine."""
        return min(self.rows('dense', 'dense'), key=lambda row: row['seconds'])


def table_of(result: Result, container: Result | None) -> str:
    """All networks, and the routed ones and the container of several widths at every budget."""
    lines = []
    first_seed = [row for row in result.table.rows if row.name in result.measured and row.repeats is None]
    for row in first_seed:
        if row.routed:
            continue
        found = result.rows(row.name, 'candidate' if row.sparse else 'dense')
        lines.append(_line(result, row.label, min(found, key=lambda item: item['seconds'])))
    for row in (row for row in first_seed if row.routed):
        oracle = {item['budget']: item for item in result.rows(row.name, 'oracle')}
        random = {item['budget']: item for item in result.rows(row.name, 'random')}
        for item in result.rows(row.name, 'budget'):
            budget = item['budget']
            best, by_chance = (f'{result.psnr(other[budget]):.3f}' for other in (oracle, random))
            lines.append(_line(result, f'{row.label}, budget {budget:g}', item, best, by_chance))
    if container is not None:
        label = f'ClassSR-like, {len(container.measured)} widths'
        routings = container.rows(CONTAINER, 'budget')
        # Measured in a run of its own: relative to itself with the dense network for all tiles.
        (dense,) = [item['seconds'] for item in routings if item['budget'] == 1]
        for item in routings:
            lines.append(_line(result, f'{label}, budget {item["budget"]:g}', item, dense=dense))
    header = ['network', 'PSNR', 'SSIM', 'average MACs', 'saved', 'time', 'parameters', 'oracle', 'random', 'shares']
    return markdown_table(header, lines)


def _line(
    result: Result, label: str, row: dict[str, Any], oracle: str = '', random: str = '', dense: float | None = None
) -> list[str]:
    shares = ' '.join(f'{name} {share:.0%}' for name, share in row['class_share'].items() if share)
    return [
        label,
        f'{result.psnr(row):.3f}',
        f'{row["ssim"]:.4f}',
        f'{row["macs"] / 1e9:.3f} G',
        f'{1 - row["macs"] / result.dense["macs"]:.1%}',
        f'{row["seconds"] / (dense or result.dense["seconds"]):.2f}',
        f'{row["params"] / 1e6:.3f} M',
        oracle,
        random,
        shares if row['kind'] == 'budget' else '',
    ]


def gains_of(result: Result) -> str:
    """ClassPruning against every rival at the rival's MACs, and at its time."""
    lines = []
    for row in result.table.rows:
        if row.routed or row.repeats or row.name in ('start', 'dense') or row.name not in result.measured:
            continue
        rival = result.rows(row.name, 'candidate' if row.sparse else 'dense')[0]
        psnr = result.mean_psnr(rival)
        ours, as_fast = (_psnr_at(result, cost, rival[cost]) for cost in ('macs', 'seconds'))
        assert ours is not None
        line = [row.label, f'{rival["macs"] / result.dense["macs"]:.1%}', f'{psnr:.3f}', f'{ours:.3f}']
        line += [f'{ours - psnr:+.3f}', f'{rival["seconds"] / result.dense["seconds"]:.2f}']
        lines.append([*line, '' if as_fast is None else f'{as_fast - psnr:+.3f}'])
    header = ['rival', 'its MACs', 'its PSNR', 'ClassPruning there', 'gain (dB)', 'its time', 'gain at its time (dB)']
    shown = len(header) - 2 if result.table.timed_apart else len(header)
    return markdown_table(header[:shown], [line[:shown] for line in lines])


def _psnr_at(result: Result, cost: str, value: float) -> float | None:
    """PSNR at a cost: between the measured budgets by interpolation, or with one candidate for all tiles, whichever is
    better; None where nothing is as cheap."""
    name = result.routed.name
    routings = sorted((row[cost], result.mean_psnr(row)) for row in result.rows(name, 'budget'))
    found = [result.mean_psnr(row) for row in result.rows(name, 'candidate') if row[cost] <= value]
    if routings[0][0] <= value:
        found.append(_interpolated(value, routings))
    return max(found, default=None)


def _interpolated(x: float, points: list[tuple[float, float]]) -> float:
    """y at x of points (x, y), which rise in x; beyond them that of the nearest one."""
    xs, ys = zip(*points)
    return float(np.interp(x, xs, ys))


def figures_of(result: Result) -> str:
    """What the routed network reaches, in single figures: means over its trainings."""
    routed, measured = result.routed.name, result.measured
    budgets = result.rows(routed, 'budget')
    off = max(abs(row['macs'] / row['macs_dense'] / row['budget'] - 1) for row in budgets)
    candidates = {row['candidate']: row['macs'] for row in result.rows(routed, 'candidate')}
    # Exact where one candidate restores all tiles, as it does at budget 1 nearly everywhere.
    uniform = max(budgets, key=lambda row: max(row['class_share'].values()))
    restoring = sum(share * candidates[name] for name, share in uniform['class_share'].items())
    classifier = (uniform['macs'] - restoring) / uniform['macs_dense']
    shares = [_oracle_share(result, row.name) for row in result.table.trainings_of(routed) if row.name in measured]
    lines = [
        [f'MACs saved at {_EQUAL_QUALITY} dB below dense', saved_at_equal_quality(result)],
        ["share of the oracle's gain, mean of budgets 0.4 to 0.8", f'{np.mean(shares):.0%}'],
        ["classifier's share of the dense MACs", f'{classifier:.2%}'],
        ['largest distance from a budget', f'{off:.2%}'],
    ]
    return markdown_table(['ClassPruning', ''], lines)


def saved_at_equal_quality(result: Result) -> str:
    """MACs that ClassPruning saves where it is a little below the dense network."""
    least = result.mean_psnr(result.dense) - _EQUAL_QUALITY
    # Between the measured budgets by interpolation; PSNR rises with the budget.
    points = sorted((result.mean_psnr(row), row['saved']) for row in result.rows(result.routed.name, 'budget'))
    return f'{_interpolated(least, points):.0%}' if least <= points[-1][0] else 'not reached'


def _oracle_share(result: Result, name: str) -> float:
    """Gain over the best fixed candidate or random mix of the same cost, as a share of the oracle's; budgets' mean."""
    fixed = sorted((row['macs'], result.psnr(row)) for row in result.rows(name, 'candidate'))
    oracle = {row['budget']: row for row in result.rows(name, 'oracle')}
    shares = []
    for row in result.rows(name, 'budget'):
        if 0.4 <= row['budget'] <= 0.8:
            affordable = [psnr for macs, psnr in fixed if macs <= row['macs'] * 1.01]
            reference = max(_interpolated(row['macs'], fixed), *affordable)
            shares.append((result.psnr(row) - reference) / (result.psnr(oracle[row['budget']]) - reference))
    return float(np.mean(shares))


def seeds_of(result: Result) -> str:
    """Mean and range over the seeds of the rows that have several, and how far below the dense network."""
    lines = []
    means: dict[str, float] = {}
    for name in result.table.repeated:
        trainings = [row for row in result.table.trainings_of(name) if row.name in result.measured]
        if len(trainings) < 2:
            continue
        row = trainings[0]
        kind = 'budget' if row.routed else 'candidate' if row.sparse else 'dense'
        for budget in BUDGETS if row.routed else (None,):
            found = result.alike(next(item for item in result.rows(row.name, kind) if item['budget'] == budget))
            values = [result.psnr(item) for item in found]
            label = row.label if budget is None else f'{row.label}, budget {budget:g}'
            means[label] = float(np.mean(values))
            saved = 1 - float(np.mean([item['macs'] for item in found])) / result.dense['macs']
            spread = f'{min(values):.3f} to {max(values):.3f}'
            dense = means.get('dense', result.psnr(result.dense))
            distance = f'{means[label] - dense:+.3f}'
            lines.append([label, str(len(values)), f'{saved:.1%}', f'{means[label]:.3f}', spread, distance])
    header = ['network', 'trainings', 'MACs saved', 'mean PSNR', 'range', 'to dense']
    return markdown_table(header, lines) if lines else ''


def headline(results: list[Result]) -> str:
    """One line for each network: how far static rivals and ClassPruning at a few budgets are from the dense one."""
    lines = []
    for result in results:
        dense = result.mean_psnr(result.dense)
        magnitude, calibrated = (
            [row for name in names for row in result.rows(name, 'candidate')]
            for names in (('static_2_4',), ('static_8_16', 'static_8_16_layers'))
        )
        budgets = {row['budget']: row for row in result.rows('classpruning', 'budget')}
        routed = [[budgets[budget]] for budget in _HEADLINE_BUDGETS]
        # The better one where there are several.
        best = [max(map(result.mean_psnr, rows), default=None) for rows in (magnitude, calibrated, *routed)]
        distances = ['' if psnr is None else f'{psnr - dense:+.3f}' for psnr in best]
        time = budgets[_TIMED_BUDGET]['seconds'] / result.dense['seconds']
        shown = '' if result.table.timed_apart else f'{time:.2f}'
        title = f'[{result.table.title}](tables/{result.table.name}.md)'
        lines.append([title, f'{dense:.3f}', *distances, saved_at_equal_quality(result), shown])
    budgets_named = [f'budget {budget:g}' for budget in _HEADLINE_BUDGETS]
    header = ['network', 'dense', 'static 2:4, SR-STE', 'static 8:16, calibrated', *budgets_named]
    return markdown_table([*header, f'MACs saved at {_EQUAL_QUALITY} dB', f'time at {_TIMED_BUDGET:g}'], lines)


def caption(result: Result) -> str:
    """What was measured, how and on what."""
    content = result.content
    return (
        f'{result.test_set}, {content["pictures"]} pictures, `--degrade {content["degrade"]}`; '
        f'{content["machine"]["processor"]}, {content["threads"]} thread(s); {versions_of(content["machine"])}; '
        f'`{content["table"]["command"]}`. Time is relative to the dense network in PyTorch or our kernels, whichever '
        'is faster.'
    )


def variants_of(result: Result) -> str:
    """The variants of ClassPruning at a few budgets, and the training's and the network's cost."""
    lines = []
    for row in result.table.compared(variants=True):
        if not row.routed or row.name not in result.measured:
            continue
        found = {item['budget']: item for item in result.rows(row.name, 'budget')}
        values = [f'{result.psnr(found[budget]):.3f}' for budget in VARIANTS_BUDGETS]
        size = found[1.0]['params'] / 1e6
        share = _oracle_share(result, row.name)
        lines.append([row.label, *values, f'{share:.0%}', f'{found[0.5]["seconds"] / result.dense["seconds"]:.2f}',
                      f'{size:.3f} M'])  # fmt: skip
    header = ['ClassPruning', *(f'budget {budget:g}' for budget in VARIANTS_BUDGETS)]
    header += ["oracle's share", 'time at 0.5', 'parameters']
    return markdown_table(header, lines) if len(lines) > 1 else ''


def patterns_of(result: Result) -> str:
    """Static networks of several patterns at equal MACs."""
    lines = []
    for row in result.table.compared(variants=True):
        if row.sparse and not row.routed and row.name in result.measured:
            label = row.label if row.variant else '8:16, block 1'
            lines.append(_line(result, label, result.rows(row.name, 'candidate')[0])[:7])
    return markdown_table(['pattern', 'PSNR', 'SSIM', 'MACs', 'saved', 'time', 'parameters'], lines) if lines else ''


def page(folder: Path, table: Table) -> str:
    """All there is of one table; empty where nothing was measured."""
    parts = []
    for test_set in table.test_sets:
        result = Result.read(folder, table, test_set)
        container = Result.read(folder, table, test_set, f'{table.name}_{CONTAINER}')
        if result is not None:
            tables = (table_of(result, container), gains_of(result), figures_of(result))
            parts += [f'## {test_set}\n', *(f'{part}\n' for part in (caption(result), *tables))]
            seeds = seeds_of(result)
            parts += [seeds + '\n'] if seeds else []
    variants = Result.read(folder, table, VARIANTS_TEST_SET, table.result_name(variants=True))
    if variants is not None:
        for title, compared in (('Variants', variants_of(variants)), ('Patterns', patterns_of(variants))):
            parts += [f'## {title}\n', caption(variants) + '\n', compared + '\n'] if compared else []
    if not parts:
        return ''
    return '\n'.join(
        [f'# {table.title}\n', '[How to read it](index.md). Generated: `python -m tools.pages`.\n', *parts]
    )


def write(root: Path) -> None:
    """Writes a page for each table whose result files are there, and a line for each into docs/benchmarks.md."""
    folder = root / RESULTS
    for table in instances.TABLES:
        text = page(folder, table)
        if text:
            (root / PAGES / f'{table.name}.md').write_text(text, encoding='utf-8')
    for test_set in (LARGE, 'Set14'):
        results = [Result.read(folder, table, test_set) for table in instances.TABLES]
        lines = headline([result for result in results if result is not None])
        write_blocks(root / 'docs/benchmarks.md', {f'headline {test_set}': lines})
