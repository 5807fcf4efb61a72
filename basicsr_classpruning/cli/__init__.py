"""The ``classpruning`` command: parses, prints and gives exit statuses; one module for each sub-command."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

import cv2

from basicsr_classpruning.cli.common import with_flags
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.examples import options_folder
from basicsr_classpruning.version import __version__

# Sub-commands whose arguments are BasicSR's own.
_PIPELINES = {
    'train': 'train a network from an options file',
    'test': 'measure a network on the data sets of an options file',
}
_COMMANDS = ('prune', 'fit', 'restore', 'benchmark', 'analyze', 'export')


class _Parser(argparse.ArgumentParser):
    """Reports a wrong call in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f'{message} (see {self.prog} --help)')


def build_parser() -> argparse.ArgumentParser:
    """The command's parser with all its sub-commands."""
    parser = _Parser(
        prog='classpruning',
        description='Image-adaptive N:M pruning of restoration networks, a plugin for BasicSR.',
        epilog=f'Example options files are in {options_folder()}.',
    )
    parser.add_argument('--version', action='version', version=f'classpruning {__version__}')
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', required=True, parser_class=_Parser)
    for name, summary in _PIPELINES.items():
        subparsers.add_parser(name, help=summary)
    for name in _COMMANDS:
        importlib.import_module(f'basicsr_classpruning.cli.{name}').add_parser(subparsers)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads a call; ``call`` of the result is how to write it again, ``flags`` what its arguments are called there.

    Raises UsageError.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    args.flags = _flags_of(parser, args.command)
    args.call = shlex.join(['classpruning', *argv])
    return args


def _flags_of(parser: argparse.ArgumentParser, command: str) -> dict[str, str]:
    """What the options of a sub-command are called on the command line, by their names in Python."""
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {
        action.dest: action.option_strings[-1] for action in commands.choices[command]._actions if action.option_strings
    }


def _in_words_of(flags: dict[str, str], error: UserError) -> str:
    """An error's line, in which arguments have the names that the user writes."""
    text = str(error)
    if isinstance(error, UsageError) and error.key is not None:
        flag = flags.get(error.key.removeprefix('network_g.').partition('[')[0])
        text = text if flag is None else f'{flag} {error.text}'
    return with_flags(flags, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 done, 1 work that failed, 2 a wrong call, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    cv2.utils.logging.setLogLevel(0)  # silent: damaged pictures are reported by this program
    flags: dict[str, str] = {}
    try:
        if argv and argv[0] in _PIPELINES:
            from basicsr_classpruning.cli import train

            return int(getattr(train, argv[0])(argv[1:]))
        args = parse(argv)
        flags = args.flags
        return int(args.func(args) or 0)
    except UserError as error:
        print(f'classpruning: error: {_in_words_of(flags, error)}', file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print('classpruning: interrupted', file=sys.stderr)
        return 130
    except MemoryError:
        print('classpruning: error: not enough memory', file=sys.stderr)
        return 1
    except OSError as error:
        where = f'{error.filename}: ' if error.filename else ''
        print(f'classpruning: error: {where}{error.strerror or error}', file=sys.stderr)
        return 1
