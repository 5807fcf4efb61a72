"""Writes what is generated in the documentation, from the results that are kept."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from tools.pages import benchmarks, int8, kernels, options, photographs, plot, pruning, reliability, routing, speed

ROOT = Path(__file__).resolve().parents[2]
PAGES: dict[str, Callable[[Path], None]] = {
    'benchmarks': benchmarks.write,
    'photographs': photographs.write,
    'plot': plot.write,
    'routing': routing.write,
    'kernels': kernels.write,
    'speed': speed.write,
    'int8': int8.write,
    'pruning': pruning.write,
    'reliability': reliability.write,
    'options': options.write,
}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog='python -m tools.pages', description=__doc__)
    parser.add_argument('names', metavar='NAME', nargs='*', help=f'{", ".join(PAGES)}; all by default')
    names = parser.parse_args().names
    unknown = [name for name in names if name not in PAGES]
    if unknown:
        parser.error(f'no such page: {", ".join(unknown)}; there are {", ".join(PAGES)}')
    for name in names or PAGES:
        PAGES[name](ROOT)


if __name__ == '__main__':
    main()
