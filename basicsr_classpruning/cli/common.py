"""Arguments and output that several sub-commands share."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from basicsr_classpruning.errors import UsageError

if TYPE_CHECKING:
    from basicsr_classpruning.sparsity import NetworkMacs


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every command that loads a model takes: ``--import``, ``--arch``, ``--param-key``."""
    parser.add_argument(
        '--import', dest='imports', metavar='MODULE', action='append', default=[],
        help='module that registers your own networks, classifiers or degradations (may be given several times)',
    )  # fmt: skip
    parser.add_argument(
        '--arch',
        metavar='FILE.yml',
        help='options file with a network_g block, for a file that does not say what it is',
    )
    parser.add_argument(
        '--param-key',
        metavar='KEY',
        help='where the weights are in a file that holds several networks, e.g. net_g or state_dict.generator',
    )


def add_run_arguments(parser: argparse.ArgumentParser, device: str) -> None:
    """Adds how pictures are cut into tiles and what these run on; ``device`` is the default of ``--device``."""
    parser.add_argument(
        '--tile', type=int, metavar='N',
        help='largest side of a tile, in input pixels (default: 96, with patches 192, or the least the network takes)',
    )  # fmt: skip
    parser.add_argument(
        '--overlap', type=int, metavar='N', default=8, help='smallest overlap of tiles, in pixels (default: 8)'
    )
    parser.add_argument(
        '--backend', default='auto', metavar='NAME',
        help='dense: PyTorch; cpu: the N:M kernels; auto: the faster one, measured once for each tile size (default); '
        'or an engine of your own (--import)',
    )  # fmt: skip
    add_device_argument(parser, device)
    parser.add_argument('--threads', type=int, metavar='N', help='threads on the CPU (default: one for each core)')


def add_device_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds ``--device``, which ``pick_device`` reads."""
    parser.add_argument(
        '--device', default=default,
        help=f'auto (a GPU if there is one), cpu, cuda, cuda:1 ... (default: {default})',
    )  # fmt: skip


def load_model(path: str, args: argparse.Namespace) -> Any:
    """Loads the network of a checkpoint as the arguments of ``add_model_arguments`` say."""
    from basicsr_classpruning import load
    from basicsr_classpruning.config import import_modules, load_network_options

    import_modules(args.imports)
    arch = load_network_options(args.arch) if args.arch else None
    return load(path, arch, param_key=args.param_key)


def with_flags(flags: Mapping[str, str], text: str) -> str:
    """A message of the library, in which `name` stands for an argument, in the words of the command line."""
    return re.sub('`([a-z_]+)`', lambda name: flags.get(name[1], name[0]), text)


def check_outputs(args: argparse.Namespace, *names: str) -> None:
    """Raises UsageError before any work where a file that is to be written at its end has no place.

    Args:
        args: of the call.
        names: arguments that name such files; those left out are passed over.
    """
    for name in names:
        path = getattr(args, name)
        if path is not None and (os.path.isdir(path) or not os.path.isdir(os.path.dirname(os.path.abspath(path)))):
            raise UsageError(f'--{name} {path}: a file in an existing folder is wanted')


def check_apart(out: str, source: str) -> None:
    """Raises UsageError where a result would take the place of the file that it is made from."""
    if os.path.exists(out) and os.path.exists(source) and os.path.samefile(out, source):
        raise UsageError(f'--out {out}: is the file to be read; the result would replace it')


def parse_size(text: str) -> tuple[int, int, int]:
    """Reads ``CxHxW``. Raises UsageError for anything else."""
    parts = text.lower().split('x')
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f'--size {text}: write channels, height and width, for example 3x128x128')
    channels, height, width = map(int, parts)
    if height * width > 2**24:
        raise UsageError(f'--size {text}: at most {2**24:,} pixels; MACs are in proportion to the pixels')
    return channels, height, width


def left_dense(macs: NetworkMacs) -> dict[str, float]:
    """Shares of the dense MACs that stay, by what they are or why, the largest first."""
    return {kind: value / macs.dense for kind, value in macs.left_dense.items()}


def describe_left_dense(shares: Mapping[str, float]) -> str:
    """One line on what is left dense; what has less than a thousandth of the MACs is not named."""
    named = [f'{kind} {share:.1%}' for kind, share in shares.items() if share >= 0.001]
    total = f'left dense: {sum(shares.values()):.1%} of the MACs'
    return f'{total} ({", ".join(named)})' if named else total


def write_json(content: dict[str, Any], path: str | None) -> None:
    """Writes one JSON object, whole or not at all, where a path is given."""
    from basicsr_classpruning.safe_files import write_atomically

    if path:
        text = json.dumps(content, indent=2, allow_nan=False) + '\n'
        write_atomically(path, lambda file: file.write(text.encode()))
