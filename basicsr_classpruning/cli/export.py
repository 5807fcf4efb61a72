"""``classpruning export``: a network for other programs."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from basicsr_classpruning.cli.common import add_model_arguments, check_apart, load_model
from basicsr_classpruning.errors import UsageError

if TYPE_CHECKING:
    from basicsr_classpruning.routing import RoutedNetwork, Router, Subnetwork


_FLOATS = '; its 8-bit integers as the float32 weights that they stand for, inputs are not rounded'


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = subparsers.add_parser(
        'export',
        help='carry a network to BasicSR, spandrel, safetensors or ONNX',
        description='Writes one candidate as a plain network with zeros in place. With --to onnx and without '
        '--candidate it writes a folder: classifier, all candidates, and a manifest.',
    )
    parser.add_argument('--model', metavar='FILE', required=True, help='a ClassPruning or dense checkpoint')
    parser.add_argument('--to', choices=['basicsr', 'safetensors', 'onnx'], required=True, help='what to write')
    parser.add_argument('--candidate', metavar='N:M', help='candidate to export (default: the densest; onnx: all)')
    parser.add_argument('--out', metavar='FILE', required=True, help='file to write; a folder for all candidates')
    parser.add_argument(
        '--compact', action='store_true', help='safetensors: store non-zeros only; classpruning reads such files'
    )
    add_model_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command."""
    from basicsr_classpruning.archs.base_network import network_name
    from basicsr_classpruning.archs.forms import as_routed

    _check_call(args)
    network = as_routed(load_model(args.model, args))
    if args.to == 'onnx' and network.router is not None and args.candidate is None:
        print(_export_all(network, network.router, args.out))
        return 0
    chosen = network.subnetwork(args.candidate)
    how = _export_one(chosen, args)
    what = f'{network_name(chosen.options)}, {chosen.name}'
    if network.candidates and args.candidate is None:
        what += f' (the densest of {", ".join(network.candidates)}; --candidate names another)'
    print(f'{args.out}: {what}, {_megabytes(args.out)}{how}')
    return 0


def _check_call(args: argparse.Namespace) -> None:
    """Finds calls that cannot succeed before anything is loaded."""
    check_apart(args.out, args.model)
    if args.compact and args.to != 'safetensors':
        raise UsageError(f'--compact: only with --to safetensors, not {args.to}')
    if not os.path.isdir(os.path.dirname(os.path.abspath(args.out))):
        raise UsageError(f'--out {args.out}: its folder does not exist')
    # By this ending the format is known when the file is read.
    if args.out.endswith('.safetensors') != (args.to == 'safetensors'):
        wanted = 'end it in .safetensors' if args.to == 'safetensors' else f'no ending for --to {args.to}'
        raise UsageError(f'--out {args.out}: {wanted}')


def _export_one(chosen: Subnetwork, args: argparse.Namespace) -> str:
    """Writes one network; returns what the summary says of it besides its size."""
    from basicsr_classpruning import export

    if os.path.isdir(args.out):
        raise UsageError(f'--out {args.out}: a folder; name a file')
    if args.to == 'basicsr':
        export.export_basicsr(chosen, args.out)
        return _FLOATS if chosen.int8 else ''
    if args.to == 'safetensors':
        write = export.export_compact_safetensors if args.compact else export.export_safetensors
        write(chosen, args.out)
        dense = sum(value.nbytes for value in export.plain_state_dict(chosen).values())
        size = f', {os.path.getsize(args.out) / dense:.3f} of the dense weights' if args.compact else ''
        return size + (_FLOATS if chosen.int8 else '')
    graph = export.export_onnx(chosen, args.out)
    tried = ' and '.join('×'.join(map(str, shape)) for shape in graph.tried)
    lines = [f'\nONNX Runtime gives the same output to {graph.difference:.1e} (tried {tried})']
    if not graph.any_batch:
        lines.append('it takes one image at a time')
    if chosen.sizes.multiple > 1:
        lines.append(f'height and width must be multiples of {chosen.sizes.multiple}')
    return '; '.join(lines)


def _export_all(network: RoutedNetwork, router: Router, folder: str) -> str:
    """Writes the classifier and all candidates; returns the summary."""
    from basicsr_classpruning.export import export_onnx_folder

    if folder.endswith('.onnx'):
        names = ', '.join(network.candidates)
        raise UsageError(f'--out {folder}: all candidates go into a folder; for one file add --candidate: {names}')
    manifest = export_onnx_folder(network, router, folder)
    entries = (manifest['classifier'], *manifest['candidates'])
    worst = max(entry['difference'] for entry in entries)
    files = ', '.join(f'{entry["file"]} ({_megabytes(os.path.join(folder, entry["file"]))})' for entry in entries)
    return f'{folder}: {files}, manifest.json\nONNX Runtime gives the same outputs to {worst:.1e}'


def _megabytes(path: str) -> str:
    return f'{os.path.getsize(path) / 1e6:.2f} MB'
