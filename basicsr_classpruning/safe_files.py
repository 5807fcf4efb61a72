"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from basicsr_classpruning.errors import UserError

UNFINISHED = '.tmp'  # ends the names of files that are being written; a killed process may leave one


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
