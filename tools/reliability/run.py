#!/usr/bin/env python
"""Tries to lose, corrupt, crash and break in; writes what was tried and what was lost.

    python tools/reliability/run.py                 every point, then docs/reliability.md
    python tools/reliability/run.py kill fuzz       these points
    python tools/reliability/run.py kill --short    what the tests run: seconds, not minutes

Results go to docs/results/reliability/, one file for each point. Exit status 0 only if nothing was lost.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.pages import reliability as page
from tools.reliability.points import POINTS, Point

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'reliability'
os.environ['OMP_NUM_THREADS'] = '1'  # a process that has used several threads of OpenMP cannot be forked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('points', nargs='*', metavar='POINT', help=f'{", ".join(POINTS)}; all by default')
    parser.add_argument('--short', action='store_true', help='few attempts')
    parser.add_argument('--seed', type=int, default=0, help='of everything that is drawn at random')
    parser.add_argument('--results', type=Path, default=RESULTS, help='folder of the result files')
    parser.add_argument('--keep', type=Path, metavar='DIR', help='work in this new folder, and leave it')
    args = parser.parse_args()
    unknown = set(args.points) - set(POINTS)
    if unknown:
        parser.error(f'no such point: {", ".join(sorted(unknown))}; there are {", ".join(POINTS)}')
    lost = 0
    for name in args.points or POINTS:
        lost += run_point(POINTS[name], args)
    if args.results == RESULTS:
        page.write(ROOT)
    return 1 if lost else 0


def run_point(point: Point, args: argparse.Namespace) -> int:
    """Runs one harness and writes its result; returns how many attempts were lost."""
    importlib.import_module('basicsr_classpruning')  # mends the environment for what the harnesses import
    harness = importlib.import_module(f'tools.reliability.{point.name}')
    folder = Path(args.keep or tempfile.mkdtemp(prefix='reliability-')) / point.name
    folder.mkdir(parents=True)
    count = point.short if args.short else point.count
    start = time.perf_counter()
    try:
        result = harness.run(count, args.seed, folder)
    finally:
        if not args.keep:
            shutil.rmtree(folder.parent, ignore_errors=True)
    tried, lost = sum(row.tried for row in result.rows), [line for row in result.rows for line in row.lost]
    content = {
        'point': point.name,
        'command': ' '.join(['python', 'tools/reliability/run.py', point.name, *(['--short'] if args.short else [])]),
        'seed': args.seed,
        'commit': commit(),
        'date': datetime.date.today().isoformat(),
        'machine': machine(),
        'seconds': round(time.perf_counter() - start, 1),
        'tried': tried,
        'survived': tried - len(lost),
        'lost': len(lost),
        **asdict(result),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    (args.results / f'{point.name}.json').write_text(text + '\n')
    print(f'{point.name}: tried {tried}, lost {len(lost)}, {content["seconds"]} s', flush=True)
    for line in (*lost, *(f'skipped: {text}' for text in result.skipped)):
        print(f'  {line}')
    return len(lost)


def commit() -> str:
    """The commit of the code that ran; with a plus where files differ from it."""
    git = ['git', '-C', str(ROOT)]
    head = subprocess.run([*git, 'rev-parse', '--short=12', 'HEAD'], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, 'status', '--porcelain', '--', 'basicsr_classpruning', 'tools', 'tests'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return (head.stdout.strip() or 'unknown') + ('+' if changed.stdout.strip() else '')


def machine() -> dict:
    """Processor, cores, memory and versions."""
    from basicsr_classpruning.machine import describe_machine

    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    system = f'{os.uname().sysname} {os.uname().release}'
    return {**describe_machine(), 'memory_gb': round(memory / 1e9, 1), 'system': system}


if __name__ == '__main__':
    sys.exit(main())
