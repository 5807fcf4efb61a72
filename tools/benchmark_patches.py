#!/usr/bin/env python
"""Times images restored patch by patch against the dense network in the same engine, in turns in one process.

python tools/benchmark_patches.py MODEL --gt FOLDER --degrade bicubic2 --budget 0.25 --json FILE
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr_classpruning import kernels, load
from basicsr_classpruning.benchmark.pairs import Pairs
from basicsr_classpruning.cli.common import write_json
from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.inference.restorer import Restorer
from basicsr_classpruning.machine import describe_machine
from basicsr_classpruning.text_table import format_table


@dataclass(frozen=True)
class Row:
    """One image: what it cost in patches, and the medians of the seconds of both ways."""

    macs: float
    """Of all that is computed in patches, as a fraction of the dense network's on the image without halos."""
    dense: float
    patches: float


def measure(whole: Restorer, patched: Restorer, pairs: Pairs, index: int, rounds: int) -> Row:
    """Restores an image ``rounds`` times each way, in turns."""
    image = pairs.pair(index, patched.info.channels, patched.info.scale).degraded
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for times, restorer in zip(seconds, (whole, patched)):
            _, stats = restorer.restore(image)
            times.append(stats.seconds)
    return Row(stats.average_macs / stats.macs_dense, *map(statistics.median, seconds))


def main() -> None:
    """Measures, prints a table, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model')
    parser.add_argument('--gt', required=True)
    parser.add_argument('--degrade', required=True)
    parser.add_argument('--budget', type=float, default=0.25)
    parser.add_argument('--patch', type=int, default=32)
    parser.add_argument('--tile', type=int, default=96)
    parser.add_argument('--overlap', type=int, default=8)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--images', type=int, help='the first ones only')
    parser.add_argument('--json')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pairs = Pairs(args.gt, None, Degradation.parse(args.degrade))
    net = load(args.model)
    options = {'tile': args.tile, 'overlap': args.overlap, 'threads': args.threads, 'backend': 'cpu', 'device': 'cpu'}
    patched = Restorer(net, patch=args.patch, budget=args.budget, **options)
    whole = Restorer(net, candidate=patched.info.candidates[-1], **options)
    count = min(args.images or len(pairs), len(pairs))
    for restorer in (whole, patched):  # the kernels choose their algorithms
        restorer.restore(pairs.pair(0, patched.info.channels, patched.info.scale).degraded[:256, :256])
    rows = [measure(whole, patched, pairs, index, args.rounds) for index in range(count)]
    cells = [
        [f'{row.macs:.3f}', f'{row.dense:.2f}', f'{row.patches:.2f}', f'{row.dense / row.patches:.2f}'] for row in rows
    ]
    print(format_table([['MACs', 'dense (s)', 'patches (s)', 'faster'], *cells]))
    ratio = sum(row.dense for row in rows) / sum(row.patches for row in rows)
    macs = statistics.mean(row.macs for row in rows)
    print(f'{ratio:.2f} times as fast at {macs:.3f} of the MACs: {1 / ratio / macs:.2f} of the MACs’ fraction')
    if args.json:
        found = {'machine': describe_machine(), 'kernels': kernels.describe(), 'arguments': vars(args), 'ratio': ratio}
        write_json({**found, 'macs': macs, 'rows': [asdict(row) for row in rows]}, args.json)


if __name__ == '__main__':
    main()
