"""Calibration pictures, as sub-commands are given them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from basicsr_classpruning.cli.common import add_device_argument, check_apart, check_outputs
from basicsr_classpruning.data.degradations import text_forms
from basicsr_classpruning.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from basicsr_classpruning.data.degradations import Degradation
    from basicsr_classpruning.data.pictures import Pictures


class _Network(Protocol):
    @property
    def num_in_ch(self) -> int: ...

    @property
    def scale(self) -> int: ...


def add_calibration_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    """Adds the folder of pictures, what is done to them, the seed, the device, and the file of figures."""
    parser.add_argument(
        '--calibration', metavar='DIR', required=required, help='folder of pictures like those to be restored'
    )
    parser.add_argument(
        '--degrade', metavar='KIND',
        help=f'what was done to the inputs: {text_forms()}; or none if the pictures in DIR are inputs already '
        '(default: found out by what the network improves)',
    )  # fmt: skip
    parser.add_argument(
        '--seed', type=int, metavar='N', default=0, help='of the calibration crops and the fit (default: 0)'
    )
    add_device_argument(parser, default='auto')
    parser.add_argument('--json', metavar='FILE', help='write the figures')


def check_call(args: argparse.Namespace) -> None:
    """Raises UsageError before any work for a seed below 0, or results without a place: ``--out`` and ``--json``."""
    check_outputs(args, 'out', 'json')
    check_apart(args.out, args.checkpoint)
    if args.out.endswith('.safetensors'):
        raise UsageError(f'--out {args.out}: a ClassPruning checkpoint is a .pth file; export writes safetensors')
    if args.seed < 0:
        raise UsageError(f'--seed {args.seed}: allowed are 0 and more')


def read_calibration(
    args: argparse.Namespace, net: _Network, dense: Callable[[Tensor], Tensor]
) -> tuple[Pictures, Degradation | None]:
    """The pictures for a network and what degrades them, None if they are inputs already.

    Args:
        args: of a parser with the calibration arguments.
        net: the network that is calibrated.
        dense: its dense form, by which the degradation is found out where it is not named.

    Raises UsageError where the folder or the degradation does not fit, PictureError where pictures are damaged.
    """
    from basicsr_classpruning.data.degradations import Degradation
    from basicsr_classpruning.data.pictures import Pictures
    from basicsr_classpruning.pruning.degradation import detect_degradation

    if net.num_in_ch not in (1, 3):
        raise UsageError(f'--calibration: pictures have 1 or 3 channels, this network takes {net.num_in_ch}')
    try:
        pictures = Pictures(args.calibration, color='gray' if net.num_in_ch == 1 else 'rgb')
    except UsageError as error:
        raise UsageError(f'--calibration {args.calibration}: {str(error).removeprefix("dataroot_gt: ")}') from None
    if skipped := pictures.check():
        print(f'{args.calibration}: {skipped}', file=sys.stderr)
    if args.degrade == 'none':
        return pictures, None
    if args.degrade:
        return pictures, Degradation.parse(args.degrade)
    return pictures, detect_degradation(dense, pictures, net.scale)
