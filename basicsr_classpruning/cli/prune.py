"""``classpruning prune``: a dense checkpoint becomes a ClassPruning checkpoint, without training."""

from __future__ import annotations

import argparse
import copy
import os
import re
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from basicsr_classpruning.cli.calibration import add_calibration_arguments, check_call, read_calibration
from basicsr_classpruning.cli.common import (
    add_model_arguments,
    describe_left_dense,
    left_dense,
    load_model,
    write_json,
)
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.routing.ladder import LadderError
from basicsr_classpruning.sparsity.pattern import UNITS
from basicsr_classpruning.text_table import format_table

if TYPE_CHECKING:
    from basicsr_classpruning.archs.classpruning_arch import ClassPruning
    from basicsr_classpruning.archs.dense import DenseNetwork
    from basicsr_classpruning.pruning.prune import CandidateReport, PruneOptions

_LADDER = ['1:4', '2:4', '4:4']
_INT8_LADDER = ['4:16-int8', '8:16-int8', '16:16-int8', '16:16']


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = subparsers.add_parser(
        'prune',
        help='make a ClassPruning checkpoint from a dense one, without training',
        description='Makes a ClassPruning checkpoint from a dense one, without training. With --calibration the '
        'weights are chosen from data and the classifier is fitted; it takes minutes, loses far less quality, and '
        'prints what each candidate loses and what the other kind of --weights would cost.',
    )
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='dense checkpoint (BasicSR, raw or safetensors)')
    parser.add_argument('--out', metavar='FILE', required=True, help='where the ClassPruning checkpoint goes')
    parser.add_argument(
        '--candidates', nargs='+', metavar='N:M',
        help='patterns from sparsest to densest (default: 1:4 2:4 4:4); with M = 16 less is lost at the same MACs, and '
        'a finer ladder such as 4:16 6:16 8:16 11:16 16:16 meets budgets better. N:M-int8 multiplies 8-bit integers',
    )  # fmt: skip
    parser.add_argument(
        '--int8', action='store_true',
        help='candidates of 8-bit integers, quantised with the pictures of --calibration: 4:16-int8 8:16-int8 '
        '16:16-int8 16:16 with --unit 4, unless --candidates and --unit say otherwise',
    )  # fmt: skip
    parser.add_argument(
        '--no-bypass', action='store_true',
        help='with --calibration, leave out the candidate 0:M, which runs nothing of the network: bicubic enlargement, '
        'the input itself, or a linear filter where that is better',
    )  # fmt: skip
    parser.add_argument(
        '--block', type=int, metavar='N', default=1, help='output channels that share a mask (default: 1)'
    )
    parser.add_argument('--share-taps', action='store_true', help='kernel taps share a mask')
    parser.add_argument(
        '--unit', type=int, choices=UNITS,
        help='neighbouring input channels that are kept or dropped together, which divide M and every N: with 4, 8:16 '
        'keeps two of four units (default: 1, with --int8 4)',
    )  # fmt: skip
    parser.add_argument(
        '--per-layer', action='store_true',
        help='give each layer its own N, by what pruning it costs, at the same MACs; needs --calibration',
    )  # fmt: skip
    parser.add_argument(
        '--skip', nargs='+', metavar='REGEX', default=[], help='layers to leave dense, by regular expressions'
    )
    parser.add_argument(
        '--weights', choices=['own', 'shared'],
        help='own: each sparse candidate has weights of its own (default with --calibration); '
        'shared: one set with nested masks, a smaller file (default without)',
    )  # fmt: skip
    parser.add_argument(
        '--value-range', type=int, choices=[1, 255], default=1,
        help='what white is to the network: 255 for one that works on values of 0 to 255 (default: 1)',
    )  # fmt: skip
    parser.add_argument(
        '--output-image', metavar='N',
        help='which of several images that the network returns is the restored one, as a place in a list (0 is the '
        'first, -1 the last) or a key (default: found by running it)',
    )  # fmt: skip
    add_calibration_arguments(parser, required=False)
    add_model_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command."""
    import torch

    from basicsr_classpruning.archs.base_network import network_name
    from basicsr_classpruning.archs.forms import as_dense
    from basicsr_classpruning.checkpoint import write_checkpoint
    from basicsr_classpruning.machine import describe_machine
    from basicsr_classpruning.pruning.prune import PruneOptions

    check_call(args)
    _fill_in(args)
    for name in ('degrade', 'per_layer', 'int8'):
        if getattr(args, name) and not args.calibration:
            raise UsageError(f'--{name.replace("_", "-")}: needs --calibration')
    start = time.perf_counter()
    dense = _with_output(as_dense(load_model(args.checkpoint, args)), args.output_image)
    dense = _in_range(dense, args.value_range)
    options = PruneOptions(
        _ladder(dense, args),
        args.block,
        args.share_taps,
        args.unit,
        tuple(args.skip),
        args.weights or ('own' if args.calibration else 'shared'),
        args.seed,
        args.per_layer,
    )
    net, figures = _with_data(dense, options, args) if args.calibration else _without_data(dense, options)
    write_checkpoint(args.out, {'params': net.state_dict()}, net.options)
    base = net.options['base']
    report = {
        'command': args.call,
        'network': network_name(base),
        'macs': dict(zip(net.candidates, net.reference_macs.costs)),
        'layers': len(net.choices),
        'layers_pruned': sum(bool(choice.patterns) for choice in net.choices),
        'file_bytes_dense': os.path.getsize(args.checkpoint),
        'left_dense': left_dense(net.reference_macs),
        'layers_patterns': net.options['layers'],
        'layers_fp32': {choice.name: choice.fp32 for choice in net.choices if net.int8 and choice.fp32},
        **figures,
        'seconds': time.perf_counter() - start,
        'threads': torch.get_num_threads(),
        'machine': describe_machine(),
    }
    print(_text(report))
    print(
        f'{args.out}: {report["network"]}, {report["layers_pruned"]} of {report["layers"]} layers pruned, '
        f'MACs {", ".join(f"{name} {cost:.1%}" for name, cost in report["macs"].items())} of the dense network, '
        f'{os.path.getsize(args.out) / 1e6:.2f} MB ({report["file_bytes_dense"] / 1e6:.2f} MB dense), '
        f'{report["seconds"]:.0f} s'
    )
    print(describe_left_dense(report['left_dense']))
    if 'architecture' in base.get('net', base):
        print(
            f'{report["network"]} was detected by spandrel: export --to basicsr keeps the names that spandrel gives '
            'the weights, and network_g.base: {type: Spandrel, checkpoint: FILE} trains it'
        )
    write_json(report, args.json)
    return 0


def _fill_in(args: argparse.Namespace) -> None:
    """Gives candidates and unit their defaults, and checks that ``--int8`` is there where the candidates need it."""
    asked = bool(args.candidates) and any(name.endswith('-int8') for name in args.candidates)
    if args.int8 and args.candidates and not asked:
        raise UsageError(f'--int8: none of {" ".join(args.candidates)} is an N:M-int8; name one, or no --candidates')
    args.int8 = args.int8 or asked
    if args.int8 and args.weights == 'shared':
        raise UsageError('--int8: needs --weights own')
    args.candidates = args.candidates or (_INT8_LADDER if args.int8 else _LADDER)
    args.unit = args.unit or (4 if args.int8 else 1)


def _ladder(dense: DenseNetwork, args: argparse.Namespace) -> tuple[str, ...]:
    """The candidates, with a bypass if pictures show where it is good enough."""
    from basicsr_classpruning.pruning.prune import with_bypass

    if args.no_bypass or not args.calibration:
        return tuple(args.candidates)
    try:
        return with_bypass(dense, args.candidates)
    except LadderError as error:
        raise UsageError(error.text, key=error.place) from None
    except UsageError as error:
        print(f'without a bypass: {error.text}')
        return tuple(args.candidates)


def _with_output(dense: DenseNetwork, output: str | None) -> DenseNetwork:
    """The network with the image named as the restored one."""
    from basicsr_classpruning.archs.dense import DenseNetwork
    from basicsr_classpruning.archs.one_image_arch import OneImage, as_one_image

    if output is None:
        return dense
    if not isinstance(dense.net, OneImage) or dense.net.output is None:
        raise UsageError(f'{output}: this network returns one image', key='output_image')
    chosen = int(output) if re.fullmatch(r'-?\d+', output) else output
    net, base, inputs = as_one_image(dense.net, dense.options, chosen)
    return DenseNetwork(net, inputs, base)


def _in_range(dense: DenseNetwork, value_range: int) -> DenseNetwork:
    from basicsr_classpruning.archs.base_network import find_inputs
    from basicsr_classpruning.archs.dense import DenseNetwork
    from basicsr_classpruning.archs.value_range_arch import ValueRange, in_range

    if value_range == 1:
        return dense
    if isinstance(dense.net, ValueRange):
        text = f'{value_range}: the file says already that white is {dense.net.value_range:g}'
        raise UsageError(text, key='value_range')
    net, base = ValueRange(dense.net, value_range).eval(), in_range(dense.options, value_range)
    return DenseNetwork(net, find_inputs(net, base), base)


def _without_data(dense: DenseNetwork, options: PruneOptions) -> tuple[ClassPruning, dict[str, Any]]:
    from basicsr_classpruning.pruning.prune import prune_by_magnitude

    twin = copy.deepcopy(dense)
    net, alternative = prune_by_magnitude(dense, options), prune_by_magnitude(twin, options.alternative)
    return net, {'inputs': None, 'weights': [_weights(net, []), _weights(alternative, [])]}


def _with_data(
    dense: DenseNetwork, options: PruneOptions, args: argparse.Namespace
) -> tuple[ClassPruning, dict[str, Any]]:
    from basicsr_classpruning.cli.progress import StageBar
    from basicsr_classpruning.devices import pick_device
    from basicsr_classpruning.pruning.prune import prune_with_data

    pictures, degradation = read_calibration(args, dense, dense)
    dense.to(pick_device(args.device))
    with StageBar() as bar:
        made = prune_with_data(dense, options, pictures, degradation, bar)
    return made.net.cpu(), {
        'inputs': 'as they are' if degradation is None else str(degradation),
        'inputs_found_out': not args.degrade,
        'against': "the dense network's outputs" if degradation is None else 'the clean pictures',
        'weights': [
            _weights(made.net, made.candidates),
            *([] if made.alternative is None else [_weights(made.alternative.cpu(), made.alternative_candidates)]),
        ],
    }


def _weights(net: ClassPruning, candidates: list[CandidateReport]) -> dict[str, Any]:
    """What one kind of weights costs, in the size of the file and in quality."""
    from basicsr_classpruning.checkpoint import checkpoint_bytes

    return {
        'kind': net.options['weights'],
        'file_bytes': checkpoint_bytes({'params': net.state_dict()}, net.options),
        'candidates': [asdict(candidate) for candidate in candidates],
    }


def _text(report: dict[str, Any]) -> str:
    """What the candidates lose with the weights that were chosen, and with the others."""
    sizes = [f'{weights["file_bytes"] / 1e6:.2f} MB' for weights in report['weights']]
    if report['inputs'] is None:
        named = (f'{weights["kind"]} weights: {size}' for weights, size in zip(report['weights'], sizes))
        return (
            'pruned by magnitude; with --calibration DIR the candidates lose far less\n'
            f'{"; ".join(named)}, and the same quality: only calibration and training tell them apart'
        )
    header, file = ['candidate', 'MACs'], ['file', '']
    for weights, size in zip(report['weights'], sizes):
        header += [f'{weights["kind"]}: PSNR (dB)', 'loss (dB)']
        file += [size, '']
    rows = []
    for reports in zip(*(weights['candidates'] for weights in report['weights'])):
        row = [reports[0]['candidate'], f'{reports[0]["cost"]:.1%}']
        for one in reports:
            row += [f'{one["psnr"]:.3f}', '' if one['loss'] is None else f'{one["loss"]:.3f}']
        rows.append(row)
    found = ' (found out)' if report['inputs_found_out'] else ''
    inputs = f'inputs: {report["inputs"]}{found}; PSNR against {report["against"]}, on held-out crops'
    text = f'{inputs}\n{format_table([header, *rows, file])}'
    if report['layers_fp32']:
        text += f'\nin float32 in all candidates: {", ".join(report["layers_fp32"])}'
    return text
