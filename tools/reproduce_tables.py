#!/usr/bin/env python
"""Makes the tables of docs/tables, each with one command:

    python tools/reproduce_tables.py NAME        trains and measures what is missing of a table, and writes its results
    python tools/reproduce_tables.py --list      what the tables are, and what of them is there
    python tools/reproduce_tables.py --options   writes options/tables from the plan
    python tools/reproduce_tables.py --zoo       zoo/, from what is trained here

Training pictures are wanted in datasets/BSDS500/train, for validation datasets/Set5, and the tables' test sets beside
them. What an earlier call finished is used again; an interrupted training goes on where it was saved.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr_classpruning import load
from basicsr_classpruning.archs.forms import as_routed
from basicsr_classpruning.benchmark.run import to_json
from basicsr_classpruning.data.demo import make_other_pictures
from basicsr_classpruning.machine import describe_machine
from basicsr_classpruning.safe_files import write_atomically
from tools.benchmark_tables import container, instances, zoo
from tools.benchmark_tables.options import checkpoint, fitted, options_file, permuted, pruned, text, trained
from tools.benchmark_tables.permutation import permute_checkpoint
from tools.benchmark_tables.plan import (
    BUDGETS,
    CALIBRATION,
    LARGE,
    OTHER,
    SEEDS,
    VARIANTS_BUDGETS,
    VARIANTS_TEST_SET,
    Row,
    Table,
)
from tools.commands import classpruning
from tools.pages import benchmarks, plot
from tools.pages.benchmarks import RESULTS


def make(table: Table, row: Row) -> None:
    """Trains a row's network, and prunes its start, unless that is done."""
    if checkpoint(table, row).is_file():
        return
    if row.start is not None:
        make(table, table.row(row.start))
    if row.calibrated and not pruned(table, row).is_file():
        network = row.network
        pattern = ['--block', str(network.get('block', 1)), *(['--share-taps'] if network.get('share_taps') else []),
                   *(['--per-layer'] if row.per_layer else [])]  # fmt: skip
        assert row.start is not None, 'what is pruned was trained before'
        start = checkpoint(table, table.row(row.start))
        if row.permuted:
            unpermuted, start = start, permuted(table, row)
            permute_checkpoint(unpermuted, start, network['block'], '--share-taps' in pattern)
        classpruning('prune', start, '--out', pruned(table, row), '--no-bypass',
                     '--candidates', *network['candidates'], *pattern, '--weights', network['weights'],
                     '--calibration', CALIBRATION, '--degrade', table.task.degrade,
                     '--seed', str(SEEDS[0]))  # fmt: skip
    if not trained(table, row).is_file():
        classpruning('train', '-opt', options_file(table, row), '--auto_resume')
    if fitted(row):
        classpruning('fit', trained(table, row), '--out', checkpoint(table, row), '--calibration', CALIBRATION,
                     '--degrade', table.task.degrade)  # fmt: skip


def measure(table: Table, variants: bool, test_set: str, threads: int) -> None:
    """Compares the trained networks of a table, or its variants of ClassPruning, on a test set; keeps the result."""
    if test_set == OTHER:
        make_other_pictures(f'datasets/{OTHER}')
    rows = [row for row in table.compared(variants) if checkpoint(table, row).is_file()]
    result = RESULTS / f'{table.result_name(variants)}_{test_set}.json'
    result.parent.mkdir(parents=True, exist_ok=True)
    files = {str(checkpoint(table, row)): row.name for row in rows}
    candidates = dict.fromkeys(name for row in rows for name in row.network.get('candidates', ()))
    repeats = '1' if test_set == LARGE else '2'  # the tiles of many pictures average by themselves
    # In some networks much stays dense, and low budgets cannot be met.
    routed = (as_routed(load(checkpoint(table, row))) for row in rows if row.routed)
    least = max((network.info.costs[0] for network in routed), default=0.0)
    budgets = [budget for budget in (VARIANTS_BUDGETS if variants else BUDGETS) if budget >= least]
    classpruning('benchmark', '--models', *files, '--gt', f'datasets/{test_set}', '--degrade', table.task.degrade,
                 '--budgets', *map(str, budgets), '--candidates', *candidates, '--backend', 'auto',
                 '--repeats', repeats, '--threads', str(threads), '--json', result)  # fmt: skip
    report = json.loads(result.read_text(encoding='utf-8'))
    named = files | {Path(path).stem: name for path, name in files.items()}  # by their stems where these differ
    for row in report['rows']:
        row['model'] = named[row['model']]
    keep(table, result, report, files)


def measure_container(table: Table, test_sets: Sequence[str], threads: int) -> None:
    """Compares routing among the dense networks of different widths that are trained; keeps the results."""
    files = {str(checkpoint(table, row)): row.name for row in table.widths if checkpoint(table, row).is_file()}
    if len(files) < 2:
        return
    torch.set_num_threads(threads)
    entrant = container.fit(list(map(Path, files)), table.task.degrade, CALIBRATION)
    for test_set in test_sets:
        rows = container.measure(entrant, table.task.degrade, f'datasets/{test_set}', BUDGETS)
        report = {
            'rows': [to_json(row) for row in rows],
            'machine': describe_machine(),
            'threads': threads,
            'pictures': rows[0].pictures,
            'degrade': table.task.degrade,
        }
        keep(table, RESULTS / f'{table.name}_{container.NAME}_{test_set}.json', report, files)


def keep(table: Table, result: Path, report: dict[str, Any], files: dict[str, str]) -> None:
    """Writes a result file."""
    report['table'] = {'name': table.name, 'models': files, 'command': f'python tools/reproduce_tables.py {table.name}'}
    content = json.dumps(report, indent=1) + '\n'
    write_atomically(result, lambda file: file.write(content.encode()))


def write_options() -> None:
    """Writes the options file of every row."""
    for table in instances.TABLES:
        for row in table.rows:
            path = options_file(table, row)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(table, row), encoding='utf-8')


def show() -> None:
    """Prints the tables, their rows, and which of them are trained."""
    for table in instances.TABLES:
        print(f'{table.name}: {table.title}')
        for row in table.rows:
            print(f'  {"trained" if checkpoint(table, row).is_file() else "missing":8} {row.name:24} {row.label}')


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {table.name: table for table in instances.TABLES}
    parser.add_argument('table', nargs='?', choices=names, metavar='NAME', help=f'one of {", ".join(names)}')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='train only these rows, and measure nothing')
    parser.add_argument('--measure', action='store_true', help='train nothing, measure the rows that are trained')
    parser.add_argument('--test-sets', nargs='+', metavar='SET', help='measure only on these (default: all)')
    parser.add_argument('--threads', type=int, default=1, help='for the measurements (default: 1)')
    parser.add_argument('--list', action='store_true', help='what there is')
    parser.add_argument('--zoo', action='store_true', help='keep the trained networks in zoo/')
    parser.add_argument('--options', action='store_true', help='write the options files')
    args = parser.parse_args()
    if args.options:
        write_options()
    elif args.zoo:
        zoo.write()
    elif args.list or not args.table:
        show()
    else:
        table = names[args.table]
        unknown = set(args.rows or ()) - {row.name for row in table.rows}
        if unknown:
            parser.error(
                f'--rows {" ".join(sorted(unknown))}: {table.name} has {", ".join(r.name for r in table.rows)}'
            )
        for row in table.rows:
            if not args.measure and (args.rows is None or row.name in args.rows):
                make(table, row)
        if args.rows is None:
            test_sets = args.test_sets or table.test_sets
            for test_set in test_sets:
                measure(table, False, test_set, args.threads)
            measure_container(table, test_sets, args.threads)
            if table.variants_of:
                measure(table, True, VARIANTS_TEST_SET, args.threads)
            benchmarks.write(Path())
            plot.write(Path())


if __name__ == '__main__':
    main()
