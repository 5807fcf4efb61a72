"""Files read without running code, and written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import re
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from basicsr_classpruning.errors import UserError

UNFINISHED = '.tmp'  # ends the names of files that are being written; a killed process may leave one
# What torch's own files look up.
_TORCH_NAME = re.compile(r'torch\.\w+|torch\._utils\._rebuild_\w+|collections\.OrderedDict')
_PICKLE_PROTOCOL = 2
# Greatest ratio of an archive's contents to the archive.
_MOST_UNPACKED = 64


def load_file(path: str | os.PathLike[str]) -> Any:
    """Reads a file written by ``torch.save``, tensors and plain values only, onto the CPU.

    Raises UserError with one line where the file is missing, damaged, or holds a pickle that would run code.
    """
    path = os.fspath(path)
    try:
        _refuse_bomb(path)
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


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file that appears whole or not at all; an older file of that name stays until then.

    The data are on the disk before the name is: a crash at any moment leaves the old file or the new one.

    Args:
        path: where the file goes; its folder must exist.
        write: is given the open binary file.

    Raises UserError with one line where the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}{UNFINISHED}')
    try:
        with open(temporary, 'x+b') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f'{path}: could not be written: {reason}') from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # gone already where all went well


def save_file(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save``, atomically. Raises UserError where the file cannot be written."""
    write_atomically(path, lambda file: torch.save(content, file))


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, on file systems that allow it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
