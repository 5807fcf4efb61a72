"""``classpruning analyze``: which layers are pruned, and what that saves."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from basicsr_classpruning.cli.common import (
    add_model_arguments,
    check_outputs,
    describe_left_dense,
    left_dense,
    load_model,
    parse_size,
    write_json,
)
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.text_table import format_table

if TYPE_CHECKING:
    from basicsr_classpruning.routing import RoutedNetwork
    from basicsr_classpruning.sparsity import NetworkMacs


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = subparsers.add_parser(
        'analyze',
        help='show which layers are pruned, and what that saves',
        description='Shows the MACs of each layer, dense and as each candidate, and why a layer is left dense.',
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--model', metavar='FILE', help='a ClassPruning or dense checkpoint')
    source.add_argument('-opt', metavar='FILE', help='an options file; weights are not needed')
    parser.add_argument('--size', metavar='CxHxW', required=True, help='size of the input image, e.g. 3x128x128')
    parser.add_argument('--backend', choices=['cpu'], help='also show which layer runs on which kernel')
    parser.add_argument('--json', metavar='FILE', help='write the figures here too')
    add_model_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command."""
    from basicsr_classpruning.archs.forms import as_routed

    check_outputs(args, 'json')
    size = parse_size(args.size)
    net = load_model(args.model, args) if args.model else _build(args)
    if size[0] != net.num_in_ch:
        raise UsageError(f'--size {args.size}: this network takes {net.num_in_ch} channel(s)')
    network = as_routed(net)
    report = _report(network, net.macs(*size[1:]))
    if args.backend == 'cpu':
        report['kernels'] = _kernels(network)
    print(_text(report))
    write_json(report, args.json)
    return 0


def _build(args: argparse.Namespace) -> Any:
    from basicsr_classpruning.archs.base_network import build_base
    from basicsr_classpruning.archs.classpruning_arch import ClassPruning
    from basicsr_classpruning.archs.dense import DenseNetwork
    from basicsr_classpruning.archs.one_image_arch import as_one_image
    from basicsr_classpruning.config import import_modules, load_network_options

    import_modules(args.imports)
    options = load_network_options(args.opt)
    if options['type'] == 'ClassPruning':
        return ClassPruning(**{key: value for key, value in options.items() if key != 'type'}).eval()
    net, options, inputs = as_one_image(build_base(options), options)
    return DenseNetwork(net, inputs, options).eval()


def _report(network: RoutedNetwork, macs: NetworkMacs) -> dict[str, Any]:
    from basicsr_classpruning.routing.network import count_parameters

    candidates = macs.candidates if network.candidates else ()
    return {
        'network': network.dense.options.get('type'),
        'size': list(macs.size),
        'candidates': list(network.candidates),
        'macs_dense': macs.dense,
        'macs': list(candidates),
        'macs_classifier': macs.classifier,
        'saved': [1 - (value + macs.classifier) / macs.dense for value in candidates],
        'params': count_parameters(network.dense.net),
        'params_classifier': count_parameters(network.router.classifier) if network.router else 0,
        'others': dict(macs.others),
        'left_dense': left_dense(macs),
        'no_patches_because': _why_no_patches(network),
        'layers': [{**asdict(layer), 'pruned': layer.pruned} for layer in macs.layers],
    }


def _why_no_patches(network: RoutedNetwork) -> str:
    """Why patches of a tile cannot get a candidate each; empty where they can."""
    from basicsr_classpruning.inference.patched import NotPatchable, patchable_graph

    try:
        patchable_graph(network)
    except NotPatchable as error:
        return str(error)
    return ''


def _kernels(network: RoutedNetwork) -> dict[str, list[dict[str, Any]]]:
    """What the CPU kernels do with each layer of each sparse candidate."""
    from basicsr_classpruning import kernels

    return {
        subnetwork.name: [asdict(layer) for layer in kernels.plan(subnetwork.net, subnetwork.patterns)]
        for subnetwork in network.subnetworks
        if subnetwork.patterns
    }


def _text(report: dict[str, Any]) -> str:
    rows = [['layer', 'dense', *report['candidates'], 'left dense because']]
    for layer in report['layers']:
        rows.append([layer['name'], *(f'{v:,}' for v in (layer['dense'], *layer['candidates'])), layer['reason']])
    counted = [sum(column) for column in zip(*((v['dense'], *v['candidates']) for v in report['layers']))]
    totals = [report['macs_dense'], *report['macs']]
    if counted and totals != counted:
        rest = [total - part for total, part in zip(totals, counted)]
        kinds = [f'{kind} {macs / rest[0]:.1%}' for kind, macs in report['others'].items() if rest[0] and macs]
        rows.append(['not in layers', *(f'{value:,}' for value in rest), ', '.join(kinds)])
    classifier = [f'{report["macs_classifier"]:,}'] * len(report['candidates'])
    rows.append(['classifier', '0', *classifier, ''])
    whole = [report['macs_dense'], *(value + report['macs_classifier'] for value in report['macs'])]
    rows.append(['total', *(f'{value:,}' for value in whole), ''])
    rows.append(['saved', '', *(f'{value:.1%}' for value in report['saved']), ''])
    size = '×'.join(map(str, report['size']))
    lines = [f'{report["network"]}, MACs of one {size} image, {report["params"]:,} parameters', '', format_table(rows)]
    if report['left_dense'] and report['candidates']:
        lines += ['', describe_left_dense(report['left_dense'])]
    if report['candidates']:
        why = report['no_patches_because']
        lines += ['', f'routes whole tiles, as {why}' if why else 'runs in patches (restore --patch)']
    for candidate, layers in report.get('kernels', {}).items():
        lines += ['', f'CPU kernels, candidate {candidate}']
        keys = list(layers[0]) if layers else []
        lines.append(format_table([keys, *([str(layer[key]) for key in keys] for layer in layers)]))
    return '\n'.join(lines)
