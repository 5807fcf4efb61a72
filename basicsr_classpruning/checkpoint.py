"""Checkpoint files: read without running code, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import pickletools
import re
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sparsity.packing import PACKABLE, PackedTensor, check, pack, packed_bytes, unpack

# Containers in which published checkpoints keep their weights, the best first.
_CONTAINERS = ('params_ema', 'params', 'state_dict')
# Put before every key by DataParallel.
_PREFIX = 'module.'
UNFINISHED = '.tmp'  # ends the names of files that are being written; a killed process may leave one
# Tensors are packed where that saves this share of their bytes, and more than the file's own book-keeping takes.
_PACKING_SAVES = 0.1
_PACKING_SAVES_BYTES = 1024
# What torch's own files look up.
_TORCH_NAME = re.compile(r'torch\.\w+|torch\._utils\._rebuild_\w+|collections\.OrderedDict')
_PICKLE_PROTOCOL = 2
# Greatest ratio of an archive's contents to the archive.
_MOST_UNPACKED = 64


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: str
    weights: Mapping[str, Mapping[str, Tensor]]
    """State dicts by container, ``params`` and ``params_ema`` in BasicSR's format; a raw state dict is ``params``."""
    network_g: dict[str, Any] | None = None
    """Options that rebuild the network; None in files of other programs."""

    def params(self, prefer: str | None = None) -> dict[str, Tensor]:
        """The state dict in one container, by default the averaged weights where there are any."""
        for name in (prefer, *_CONTAINERS):
            if name is not None and name in self.weights:
                return dict(self.weights[name])
        raise UserError(f'{self.path}: no weights in it')  # unreachable for files read by read_checkpoint


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
            claimed = sum(entry.file_size for entry in archive.infolist())
        size = os.path.getsize(path)
        if claimed > _MOST_UNPACKED * size:
            raise UserError(f'{path}: refused: a file of {size:,} bytes that claims to hold {claimed:,}')


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
    packed = _unpack_containers(path, content.get('packed', {}))
    plain = {name: content[name] for name in _CONTAINERS if _is_state_dict(content.get(name))}
    weights = {
        name: _clean(_merge(path, plain.get(name, {}), packed.get(name, {})))
        for name in _CONTAINERS
        if plain.get(name) or packed.get(name)
    }
    if not weights and _is_state_dict(content):
        weights = {'params': _clean(content)}
    if not weights:
        keys = ', '.join(map(repr, list(content)[:5]))
        raise UserError(
            f'{path}: no weights found: it has {keys or "nothing"}, wanted params, params_ema or state_dict'
        )
    _refuse_claims(path, weights)
    network = content.get('network_g')
    return Checkpoint(path, weights, network if isinstance(network, dict) else None)


def _refuse_claims(path: str, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raises UserError for weights that fill much more memory than their file: views in which bytes are repeated.

    They take no memory yet; but a network is built in their shapes.
    """
    claimed = 0
    for part in weights.values():
        for key, tensor in part.items():
            if tensor.layout is not torch.strided or tensor.device.type != 'cpu' or tensor.is_quantized:
                raise UserError(f'{path}: weight {key!r:.80} is no plain tensor')
            claimed += tensor.nbytes
    size = os.path.getsize(path)
    if claimed > _MOST_UNPACKED * size:
        raise UserError(f'{path}: refused: a file of {size:,} bytes whose weights claim {claimed:,}')


def _read_safetensors(path: str) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            params = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 — not a mapping
            metadata = file.metadata() or {}
        network = json.loads(metadata.get('network_g', 'null'))
        shapes = json.loads(metadata.get('packed', '{}'))
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: not a safetensors file, or damaged ({str(error)[:120]})') from None
    if not isinstance(shapes, dict):
        raise UserError(f'{path}: packed: damaged: wanted the shapes of packed weights')
    unpacked = {}
    for key, shape in shapes.items():
        entry = {'shape': shape, **{part: params.pop(f'{key}:{part}', None) for part in ('values', 'mask')}}
        unpacked[key] = _unpack(path, key, _packed_entry(path, key, entry))
    params = _merge(path, params, unpacked)
    if not params:
        raise UserError(f'{path}: no weights in it')
    return Checkpoint(path, {'params': _clean(params)}, network if isinstance(network, dict) else None)


def _unpack_containers(path: str, content: object) -> dict[str, dict[str, Tensor]]:
    """Unpacks ``packed`` of a checkpoint file: container → key → ``values``, ``mask``, ``shape``."""
    if not isinstance(content, Mapping) or not all(isinstance(part, Mapping) for part in content.values()):
        raise UserError(f'{path}: packed: damaged: wanted dictionaries of packed weights')
    parts = {
        name: {str(key): _packed_entry(path, key, entry) for key, entry in content[name].items()}
        for name in _CONTAINERS
        if name in content
    }
    # Many entries may share one mask, and a small file then asks for much memory.
    if sum(len(packed.mask) for part in parts.values() for packed in part.values()) > os.path.getsize(path):
        raise UserError(f'{path}: packed: refused: the weights claim more masks than the file can hold')
    return {name: {key: _unpack(path, key, packed) for key, packed in part.items()} for name, part in parts.items()}


def _packed_entry(path: str, key: str, entry: object) -> PackedTensor:
    if (
        not isinstance(entry, Mapping)
        or set(entry) != {'values', 'mask', 'shape'}
        or not isinstance(entry['shape'], (list, tuple))
    ):
        raise UserError(f'{path}: packed weight {key!r:.80}: damaged: wanted values, mask and shape')
    packed = PackedTensor(entry['values'], entry['mask'], tuple(entry['shape']))
    try:
        check(packed)
    except ValueError as error:
        raise UserError(f'{path}: packed weight {key!r:.80}: damaged: {error}') from None
    return packed


def _unpack(path: str, key: str, packed: PackedTensor) -> Tensor:
    try:
        return unpack(packed)
    except ValueError as error:
        raise UserError(f'{path}: packed weight {key!r:.80}: damaged: {error}') from None


def _merge(path: str, plain: Mapping[str, Tensor], unpacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for key in unpacked:
        if key in plain:
            raise UserError(f'{path}: weight {key!r:.80} is there twice, plain and packed')
    return {**plain, **unpacked}


def _split(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, PackedTensor]]:
    """Parts a state dict in the weights to be stored as they are, and those worth packing."""
    plain, packed = {}, {}
    for key, tensor in state_dict.items():
        if _worth_packing(tensor):
            packed[key] = pack(tensor)
        else:
            plain[key] = tensor
    return plain, packed


def _worth_packing(tensor: Tensor) -> bool:
    if tensor.dtype not in PACKABLE or tensor.nbytes < _PACKING_SAVES_BYTES:
        return False
    return tensor.nbytes - packed_bytes(tensor) >= max(_PACKING_SAVES_BYTES, _PACKING_SAVES * tensor.nbytes)


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
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}{UNFINISHED}')
    try:
        with open(temporary, 'xb') as file:
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


def write_checkpoint(
    path: str | os.PathLike[str], weights: Mapping[str, Mapping[str, Tensor]], network_g: Mapping[str, Any] | None
) -> None:
    """Writes a checkpoint in BasicSR's format, whole or not at all.

    Weights of a ClassPruning network that are mostly zeros (its candidates' own weights) are stored packed, in a
    container of their own, and unpacked by ``read_checkpoint``: exact but for the sign of zeros. Other networks' files
    hold all weights as they are, since BasicSR itself reads them.

    Args:
        path: where the file goes; its folder must exist.
        weights: state dicts by container, for example ``{'params': …, 'params_ema': …}``.
        network_g: plain values that rebuild the network; None where they are not known.

    Raises UserError with one line where the file cannot be written.
    """
    save_file(_content(weights, network_g), path)


def checkpoint_bytes(weights: Mapping[str, Mapping[str, Tensor]], network_g: Mapping[str, Any] | None) -> int:
    """Size of the file that ``write_checkpoint`` would write."""
    buffer = io.BytesIO()
    torch.save(_content(weights, network_g), buffer)
    return buffer.tell()


def _content(weights: Mapping[str, Mapping[str, Tensor]], network_g: Mapping[str, Any] | None) -> dict[str, Any]:
    stored = {name: {key: _at_rest(value) for key, value in part.items()} for name, part in weights.items()}
    content: dict[str, Any] = {}
    if network_g is not None and network_g.get('type') == 'ClassPruning':
        content['packed'] = {}
        for name, part in stored.items():
            content[name], packed = _split(part)
            content['packed'][name] = {
                key: {'values': tensor.values, 'mask': tensor.mask, 'shape': tensor.shape}
                for key, tensor in packed.items()
            }
    else:
        content.update(stored)
    if network_g is not None:
        content['network_g'] = dict(network_g)
    return content


def write_safetensors(path: str | os.PathLike[str], params: Mapping[str, Tensor], network_g: Mapping[str, Any]) -> None:
    """Writes a safetensors file, whole or not at all, with ``network_g`` as JSON in its metadata.

    Raises UserError with one line where the file cannot be written.
    """
    _save_safetensors(path, params, {'network_g': json.dumps(network_g)})


def write_compact_safetensors(
    path: str | os.PathLike[str], params: Mapping[str, Tensor], network_g: Mapping[str, Any]
) -> None:
    """Writes a safetensors file in which weights that are mostly zeros are packed; ``read_checkpoint`` unpacks them.

    A packed weight KEY is stored as two tensors, KEY:values and KEY:mask (see ``PackedTensor``), and its shape in the
    metadata's JSON object ``packed``.

    Raises UserError with one line where the file cannot be written.
    """
    tensors, packed = _split(params)
    for key, part in packed.items():
        tensors[f'{key}:values'], tensors[f'{key}:mask'] = part.values, part.mask
    shapes = {key: part.shape for key, part in packed.items()}
    _save_safetensors(path, tensors, {'network_g': json.dumps(network_g), 'packed': json.dumps(shapes)})


def _save_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    # Cloned, because the format does not let two keys share their memory.
    content = save({key: _at_rest(value).clone() for key, value in tensors.items()}, {'format': 'pt', **metadata})
    write_atomically(path, lambda file: file.write(content))


def _at_rest(tensor: Tensor) -> Tensor:
    """A tensor as files hold it: on the CPU, row-major, with no more memory behind it than it needs."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, on file systems that allow it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
