"""Checkpoint files: read without running code, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from basicsr_classpruning.errors import UserError

# Containers in which published checkpoints keep their weights, the best first.
_CONTAINERS = ('params_ema', 'params', 'state_dict')
# Containers of training scripts that wrap a state dict under the network's name.
_PREFIX = 'module.'


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: str
    weights: Mapping[str, Mapping[str, Tensor]]
    """State dicts by container, ``params`` and ``params_ema`` in BasicSR's format; a raw state dict is ``params``."""
    network_g: dict[str, Any] | None = None
    """Options that rebuild the network; None in files of other programs."""
    extra: dict[str, Any] = field(default_factory=dict)

    def params(self, prefer: str | None = None) -> dict[str, Tensor]:
        """The state dict in one container, by default the averaged weights where there are any."""
        for name in (prefer, *_CONTAINERS):
            if name in self.weights:
                return dict(self.weights[name])
        raise UserError(f'{self.path}: no weights in it')  # unreachable for files read by read_checkpoint


def load_file(path: str | os.PathLike[str]) -> Any:
    """Reads a file written by ``torch.save``, tensors and plain values only, onto the CPU.

    Raises UserError with one line where the file is missing, damaged, or holds a pickle that would run code.
    """
    path = os.fspath(path)
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except IsADirectoryError:
        raise UserError(f'{path}: a folder, not a checkpoint file') from None
    except pickle.UnpicklingError as error:
        reason = str(error)
        if 'GLOBAL' in reason or 'global' in reason or 'REDUCE' in reason:
            name = reason.split('GLOBAL ')[-1].split()[0].strip('`,.') if 'GLOBAL ' in reason else 'an object'
            raise UserError(f'{path}: refused: it holds {name}, which is no tensor and could run code') from None
        raise UserError(f'{path}: not a checkpoint, or damaged') from None
    except OSError as error:
        raise UserError(f'{path}: {error.strerror or error}') from None
    except Exception as error:  # torch raises many kinds for damaged archives
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'{path}: not a checkpoint, or damaged ({detail[:120]})') from None


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads BasicSR's format, raw state dicts (with or without ``module.``) and safetensors files.

    Raises UserError with one line where the file cannot be read or holds no weights.
    """
    path = os.fspath(path)
    if path.endswith('.safetensors'):
        return _read_safetensors(path)
    content = load_file(path)
    if not isinstance(content, Mapping):
        raise UserError(f'{path}: not a checkpoint: a {type(content).__name__} where a dictionary of weights is wanted')
    weights = {name: _clean(content[name]) for name in _CONTAINERS if _is_state_dict(content.get(name))}
    if not weights and _is_state_dict(content):
        weights = {'params': _clean(content)}
    if not weights:
        keys = ', '.join(map(repr, list(content)[:5]))
        raise UserError(f'{path}: no weights found: it has {keys or "nothing"}, wanted params, params_ema or state_dict')
    network = content.get('network_g')
    return Checkpoint(path, weights, network if isinstance(network, dict) else None)


def _read_safetensors(path: str) -> Checkpoint:
    import json

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            params = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 — not a mapping
            metadata = file.metadata() or {}
        network = json.loads(metadata['network_g']) if 'network_g' in metadata else None
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f'{path}: not a safetensors file, or damaged ({str(error)[:120]})') from None
    if not params:
        raise UserError(f'{path}: no weights in it')
    return Checkpoint(path, {'params': _clean(params)}, network if isinstance(network, dict) else None)


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _clean(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(_PREFIX): value for key, value in state_dict.items()}


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file that appears whole or not at all; an older file of that name stays until then.

    The data are on the disk before the name is: a crash at any moment leaves the old file or the new one.

    Args:
        path: where the file goes; its folder must exist.
        write: is given the open binary file.

    Raises UserError with one line where the file cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp', delete=False) as file:
            temporary = file.name
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f'{path}: could not be written: {reason}') from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def save_file(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save``, atomically. Raises UserError where the file cannot be written."""
    write_atomically(path, lambda file: torch.save(content, file))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, on file systems that allow it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
