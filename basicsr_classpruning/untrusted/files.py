"""Reads a stranger's file of tensors and plain values without running what it says."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from basicsr_classpruning.errors import UserError

# What torch's own files look up.
_TORCH_NAME = re.compile(r'torch\.\w+|torch\._utils\._rebuild_\w+|collections\.OrderedDict')
_PICKLE_PROTOCOL = 2
# What NumPy's pickles look up.
_NUMPY_NAMES = (
    *((f'numpy.{core}.multiarray', name) for core in ('core', '_core') for name in ('scalar', '_reconstruct')),
    ('numpy', 'dtype'),
    ('numpy', 'ndarray'),
)
# Greatest ratio of an archive's contents to the archive.
_MOST_UNPACKED = 64


def load_file(path: str | os.PathLike[str]) -> Any:
    """Reads a file written by ``torch.save``, tensors and plain values only, onto the CPU.

    Raises UserError with one line where the file is missing, damaged, or holds a pickle that would run code.
    """
    path = os.fspath(path)
    try:
        _refuse_bomb(path)
        _refuse_by_kind(path)
        return torch.load(path, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except IsADirectoryError:
        raise UserError(f'{path}: a folder, not a checkpoint file') from None
    except pickle.UnpicklingError as error:
        raise UserError(f'{path}: {_why_refused(path, str(error))}') from None
    except OSError as error:
        raise UserError(f'{path}: {error.strerror or error}') from None
    except Exception as error:  # torch raises many kinds for damaged archives
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'{path}: not a checkpoint, or damaged ({detail[:120]})') from None


def load_weights(path: str | os.PathLike[str]) -> Any:
    """As ``load_file``, but NumPy's values, which training scripts write beside the weights, are read as placeholders.

    Nothing of NumPy is run. With torch before 2.5 such files are refused.
    """
    if not hasattr(torch.serialization, 'safe_globals'):
        return load_file(path)
    with torch.serialization.safe_globals(_LEFT_OUT):
        return load_file(path)


def check_sums(path: str | os.PathLike[str]) -> None:
    """Compares an archive's contents with its check sums, which torch writes but does not read.

    Raises UserError with one line where they differ, or the file is missing or no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        raise UserError(f'{os.fspath(path)}: no such file') from None
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{os.fspath(path)}: damaged ({error})') from None
    if damaged is not None:
        raise UserError(f'{os.fspath(path)}: damaged (check sum of {damaged})')


class _LeftOut:
    """Stands for a NumPy value in what is read; made of anything, without looking at it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_LEFT_OUT: list[Any] = [type(name, (_LeftOut,), {'__module__': module}) for module, name in _NUMPY_NAMES]


def _refuse_by_kind(path: str) -> None:
    """Raises UserError for files of torch that are no dictionary of tensors."""
    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith('/constants.pkl') or '/code/' in name for name in names):
            raise UserError(
                f'{path}: refused: a TorchScript program, which holds code; load it where you trust it, and save its '
                'state_dict()'
            )
    elif tarfile.is_tarfile(path):
        raise UserError(f"{path}: refused: torch's tar format of 2016, which cannot be read without running code")


def _is_archive(path: str) -> bool:
    """Whether torch takes a file for a zip archive; its older format is a sequence of pickles."""
    with open(path, 'rb') as file:
        return file.read(4) == b'PK\x03\x04'


def _refuse_bomb(path: str) -> None:
    """Raises UserError for an archive that unpacks to much more than it is.

    ``torch.save`` does not compress, but some published files were compressed afterwards: weights hardly shrink.
    """
    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            refuse_claim(path, sum(entry.file_size for entry in archive.infolist()), 'that claims to hold')


def _why_refused(path: str, reason: str) -> str:
    """Why torch's reader without code does not take a file. Torch says it of some pickles only: in the others the names
    of all that they would look up are read, and nothing is run."""
    named = re.search(r'GLOBAL `?([\w.]+)', reason)
    names, protocol = [named[1]] if named else [], 0
    with contextlib.suppress(Exception):  # what is damaged has no names
        for name, found in _globals(path):
            protocol = max(protocol, found)
            if not _TORCH_NAME.fullmatch(name):
                names.append(name)
    if names:
        return f'refused: it holds {names[0]}, which is no tensor and could run code'
    if protocol > _PICKLE_PROTOCOL:
        return f'its pickle protocol is {protocol}; torch reads weights of protocol {_PICKLE_PROTOCOL}, its default'
    return 'not a checkpoint, or damaged'


def _globals(path: str) -> Iterator[tuple[str, int]]:
    """Yields the modules and names of all that a file's pickles look up, each with the protocol of its pickle."""
    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            pickles = b''.join(archive.read(name) for name in archive.namelist() if name.endswith('data.pkl'))
    else:
        pickles = Path(path).read_bytes()
    stream = io.BytesIO(pickles)
    while stream.tell() < len(pickles):
        protocol, texts = 0, ['', '']
        argument: Any
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == 'PROTO':
                protocol = argument
            elif opcode.name in ('GLOBAL', 'INST'):
                yield argument.replace(' ', '.'), protocol
            elif opcode.name == 'STACK_GLOBAL':
                yield '.'.join(texts[-2:]), protocol
            elif isinstance(argument, str):
                texts.append(argument)


def refuse_claim(path: str, claimed: int, what: str) -> None:
    """Raises UserError for a file whose contents would take much more memory than it has bytes.

    Args:
        path: the file.
        claimed: bytes that its contents would take.
        what: says of which contents; for the message.
    """
    size = os.path.getsize(path)
    if claimed > _MOST_UNPACKED * size:
        raise UserError(f'{path}: refused: a file of {size:,} bytes {what} {claimed:,}')
