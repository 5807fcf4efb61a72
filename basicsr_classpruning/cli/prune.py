"""``classpruning prune``: a dense checkpoint becomes a ClassPruning checkpoint, without training."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

from basicsr_classpruning.cli.common import add_model_arguments, load_model
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.tables import format_table

if TYPE_CHECKING:
    from basicsr_classpruning.archs.dense import DenseNetwork
    from basicsr_classpruning.pruning.prune import PruneOptions


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = subparsers.add_parser(
        'prune',
        help='make a ClassPruning checkpoint from a dense one, without training',
        description='Makes a ClassPruning checkpoint from a dense one, without training. With --calibration the '
        'weights are chosen from data and the classifier is fitted; it takes minutes and loses far less quality.',
    )
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='dense checkpoint (BasicSR, raw or safetensors)')
    parser.add_argument('--out', metavar='FILE', required=True, help='where the ClassPruning checkpoint goes')
    parser.add_argument(
        '--candidates', nargs='+', metavar='N:M', default=['1:4', '2:4', '4:4'],
        help='patterns from cheapest to dearest (default: %(default)s); 4:16 8:16 16:16 loses less at the same MACs',
    )  # fmt: skip
    parser.add_argument('--block', type=int, default=1, help='output channels that share a mask (default: 1)')
    parser.add_argument('--share-taps', action='store_true', help='kernel taps share a mask')
    parser.add_argument(
        '--skip', nargs='+', metavar='REGEX', default=[], help='layers to leave dense, by regular expressions'
    )
    parser.add_argument(
        '--weights', choices=['own', 'shared'],
        help='own: each sparse candidate has weights of its own (default with --calibration); '
        'shared: one set with nested masks, a smaller file (default without)',
    )  # fmt: skip
    parser.add_argument('--calibration', metavar='DIR', help='folder of pictures like those to be restored')
    parser.add_argument(
        '--degrade', metavar='KIND',
        help='what was done to the inputs: noise0-50, noise25-25, jpeg10-90, bicubic4, or none if the pictures in DIR '
        'are inputs already (default: found out by what the network improves)',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='of the calibration crops and the fit (default: 0)')
    add_model_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command."""
    from basicsr_classpruning.checkpoint import write_checkpoint
    from basicsr_classpruning.pruning.prune import PruneOptions, prune_by_magnitude

    if os.path.isdir(args.out) or not os.path.isdir(os.path.dirname(os.path.abspath(args.out))):
        raise UsageError(f'--out {args.out}: a file in an existing folder is wanted')
    if args.degrade and not args.calibration:
        raise UsageError('--degrade: needs --calibration')
    start = time.perf_counter()
    dense = _as_dense(load_model(args.checkpoint, args))
    options = PruneOptions(
        tuple(args.candidates),
        args.block,
        args.share_taps,
        tuple(args.skip),
        args.weights or ('own' if args.calibration else 'shared'),
        args.seed,
    )
    if args.calibration:
        net, lines = _with_data(dense, options, args)
    else:
        net = prune_by_magnitude(dense, options)
        lines = ['pruned by magnitude; with --calibration DIR the candidates lose far less']
    write_checkpoint(args.out, {'params': net.state_dict()}, net.options)
    macs = net.reference_macs
    pruned = sum(bool(choice.patterns) for choice in net.choices)
    print('\n'.join(lines))
    print(
        f'{args.out}: {net.options["base"]["type"]}, {pruned} of {len(net.choices)} layers pruned, '
        f'MACs {", ".join(f"{c} {cost:.1%}" for c, cost in zip(net.candidates, macs.costs))} of the dense network, '
        f'{os.path.getsize(args.out) / 1e6:.2f} MB ({os.path.getsize(args.checkpoint) / 1e6:.2f} MB dense), '
        f'{time.perf_counter() - start:.0f} s'
    )
    return 0


def _as_dense(net: Any) -> DenseNetwork:
    """A ClassPruning network is pruned anew from its dense weights."""
    from basicsr_classpruning.archs.dense import DenseNetwork

    if isinstance(net, DenseNetwork):
        return net
    return DenseNetwork(net.frozen_dense(), net.num_in_ch, net.options['base'])


def _with_data(dense: DenseNetwork, options: PruneOptions, args: argparse.Namespace) -> tuple[Any, list[str]]:
    from basicsr_classpruning.cli.progress import StageBar
    from basicsr_classpruning.data.degradations import Degradation
    from basicsr_classpruning.data.pictures import Pictures
    from basicsr_classpruning.pruning.degradation import detect_degradation
    from basicsr_classpruning.pruning.prune import prune_with_data

    if dense.num_in_ch not in (1, 3):
        raise UsageError(f'--calibration: pictures have 1 or 3 channels, this network takes {dense.num_in_ch}')
    try:
        pictures = Pictures(args.calibration, color='gray' if dense.num_in_ch == 1 else 'rgb')
    except UsageError as error:
        raise UsageError(f'--calibration {args.calibration}: {str(error).removeprefix("dataroot_gt: ")}') from None
    if args.degrade == 'none':
        degradation = None
    elif args.degrade:
        degradation = Degradation.parse(args.degrade)
    else:
        degradation = detect_degradation(dense, pictures, dense.scale)
    with StageBar() as bar:
        net, reports = prune_with_data(dense, options, pictures, degradation, bar)
    rows = [['candidate', 'MACs', 'PSNR (dB)', 'loss (dB)']]
    for report in reports:
        loss = '' if report.loss is None else f'{report.loss:.3f}'
        rows.append([report.candidate, f'{report.cost:.1%}', f'{report.psnr:.3f}', loss])
    against = 'the clean pictures' if degradation else "the dense network's outputs"
    found = '' if args.degrade else ' (found out)'
    inputs = f'inputs: {degradation or "as they are"}{found}; PSNR against {against}, on held-out crops'
    return net, [inputs, format_table(rows)]
