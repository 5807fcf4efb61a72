"""``classpruning fit``: the classifier of a trained network learns other pictures; the candidates stay."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from basicsr_classpruning.cli.calibration import add_calibration_arguments, check_call, read_calibration
from basicsr_classpruning.cli.common import add_model_arguments, load_model, write_json
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.text_table import format_table


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = subparsers.add_parser(
        'fit',
        help='fit the classifier of a ClassPruning checkpoint to pictures like yours',
        description='Fits the classifier of a ClassPruning checkpoint to pictures like those to be restored; the '
        'candidates stay as they are. Worth its minutes after a training, and where pictures are unlike those that '
        'the network was trained with. Prints what routing reaches before and after, on crops held back; a classifier '
        'that was better there before stays, and only the price of MACs is set.',
    )
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='ClassPruning checkpoint')
    parser.add_argument('--out', metavar='FILE', required=True, help='where the fitted checkpoint goes')
    parser.add_argument(
        '--bypass', action='store_true',
        help='first put the candidate 0:M into its ladder, which runs nothing of the network, and a new classifier',
    )  # fmt: skip
    add_calibration_arguments(parser, required=True)
    add_model_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command."""
    from basicsr_classpruning.archs.forms import as_classpruning
    from basicsr_classpruning.checkpoint import write_checkpoint
    from basicsr_classpruning.cli.progress import StageBar
    from basicsr_classpruning.devices import pick_device
    from basicsr_classpruning.machine import describe_machine
    from basicsr_classpruning.pruning.prune import check_routing, fit_routing, with_bypass_added

    check_call(args)
    start = time.perf_counter()
    net = load_model(args.checkpoint, args)
    try:
        net, trained = as_classpruning(net), None
        if args.bypass:
            net, trained = with_bypass_added(net), net
        check_routing(net)
    except UsageError as error:
        raise UsageError(f'{args.checkpoint}: {error}') from None
    pictures, degradation = read_calibration(args, net, net.dense.net)
    device = pick_device(args.device)
    for each in (net, trained):
        if each is not None:
            each.to(device)
    with StageBar() as bar:
        found = fit_routing(net, pictures, degradation, args.seed, bar, trained)
    write_checkpoint(args.out, {'params': net.cpu().state_dict()}, net.options)
    report = {
        'command': args.call,
        'inputs': 'as they are' if degradation is None else str(degradation),
        'routed': [asdict(one) for one in found.routed],
        'kept': found.kept,
        'seconds': time.perf_counter() - start,
        'machine': describe_machine(),
    }
    rows = [
        [f'{one.budget:g}', *(f'{psnr:.3f}' for psnr in (one.before, one.after, one.oracle))] for one in found.routed
    ]
    print(f'inputs: {report["inputs"]}; PSNR (dB) on held-out crops')
    print(format_table([['budget', 'before', 'after', 'oracle'], *rows]))
    done = 'classifier as it was, since the fitted one lost more' if found.kept else 'classifier fitted'
    print(f'{args.out}: {done}, {report["seconds"]:.0f} s')
    write_json(report, args.json)
    return 0
