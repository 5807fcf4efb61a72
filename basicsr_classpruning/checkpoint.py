"""What checkpoint files hold, in the formats of BasicSR and safetensors."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.safe_files import save_file, write_atomically
from basicsr_classpruning.untrusted.bitmask import PACKABLE, PackedTensor, pack, packed_bytes
from basicsr_classpruning.untrusted.containers import ORDINARY, choose, plain_names, weights_at
from basicsr_classpruning.untrusted.files import check_sums, load_weights
from basicsr_classpruning.untrusted.packed_integers import PackedIntegers, pack_integers
from basicsr_classpruning.untrusted.weights import refuse_claims, unpack_containers, unpack_entry

_log = logging.getLogger(__name__)
# Tensors are packed where that saves this share of their bytes, and more than the file's own book-keeping takes.
_PACKING_SAVES = 0.1
_PACKING_SAVES_BYTES = 1024


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: str
    weights: Mapping[str, Mapping[str, Tensor]]
    """State dicts by the keys that lead to them, ``params`` and ``params_ema`` in BasicSR's format; a raw one is
    ``params``."""
    network_g: dict[str, Any] | None = None
    """Options that rebuild the network; None in files of other programs."""

    def params(self, prefer: str | None = None) -> dict[str, Tensor]:
        """The state dict in one container, by default the averaged weights where there are any.

        Raises UserError where there are several and none of them is known to be the network.
        """
        name = prefer if prefer in self.weights else choose(self.weights)
        if name is None:
            raise UserError(
                f'{self.path}: it holds several networks; name one with `param_key` (in options files '
                f'path.param_key_g): {", ".join(self.weights)}'
            )
        if name not in ORDINARY:
            _log.warning('%s: weights taken from %r', self.path, name)
        return dict(self.weights[name])


def read_checkpoint(path: str | os.PathLike[str], param_key: str | None = None) -> Checkpoint:
    """Reads BasicSR's format, safetensors files, and what other programs write: see ``untrusted.containers``.

    Args:
        path: the file.
        param_key: keys that lead to the weights, joined by dots, where the file holds several dictionaries of them; the
            last may be a prefix of names in one. Then these are ``params``, and nothing else is read.

    Raises UserError with one line where the file cannot be read, or holds no weights there.
    """
    path = os.fspath(path)
    checkpoint = _read_safetensors(path) if path.endswith('.safetensors') else _read_pickled(path)
    if param_key is None:
        return checkpoint
    found = _part(checkpoint.weights, param_key)
    if found is None:
        raise UserError(f'{path}: `param_key` {param_key}: no weights there; it holds {", ".join(checkpoint.weights)}')
    return replace(checkpoint, weights={'params': found})


def _part(weights: Mapping[str, Mapping[str, Tensor]], param_key: str) -> dict[str, Tensor] | None:
    if param_key in weights:
        return dict(weights[param_key])
    prefixes = {name: param_key.removeprefix(f'{name}.') for name in weights if param_key.startswith(f'{name}.')}
    if len(weights) == 1:
        prefixes.setdefault(next(iter(weights)), param_key)
    for name, prefix in prefixes.items():
        part = {
            key.removeprefix(f'{prefix}.'): value
            for key, value in weights[name].items()
            if key.startswith(f'{prefix}.')
        }
        if part:
            return part
    return None


def _read_pickled(path: str) -> Checkpoint:
    content = load_weights(path)
    if not isinstance(content, Mapping):
        raise UserError(f'{path}: not a checkpoint: a {type(content).__name__} where a dictionary of weights is wanted')
    if 'network_g' in content:  # written here, with check sums; other programs may write none
        check_sums(path)
    plain = weights_at(content)
    packed = unpack_containers(path, content.get('packed', {}), ORDINARY)
    for name in packed.keys() - plain.keys():
        if isinstance(content.get(name), Mapping):  # hardly anything is left in it
            plain[name] = plain_names(content[name])
    weights = {name: _merge(path, plain.get(name, {}), packed.get(name, {})) for name in {**plain, **packed}}
    weights = {name: part for name, part in weights.items() if part}
    if not weights:
        keys = ', '.join(map(repr, list(content)[:5]))
        raise UserError(
            f'{path}: no weights found: it has {keys or "nothing"}, wanted params, params_ema or state_dict'
        )
    refuse_claims(path, weights.values())
    network = content.get('network_g')
    if isinstance(network, dict) and not _is_plain(network):
        raise UserError(f'{path}: network_g: damaged: wanted numbers, texts, lists and mappings of them')
    return Checkpoint(path, weights, network if isinstance(network, dict) else None)


def _is_plain(value: object) -> bool:
    """Whether a value is what options files hold."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


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
        if f'{key}:scale' in params:
            entry['scale'] = params.pop(f'{key}:scale')
        unpacked[key] = unpack_entry(path, key, entry)
    params = _merge(path, params, unpacked)
    if not params:
        raise UserError(f'{path}: no weights in it')
    return Checkpoint(path, {'params': plain_names(params)}, network if isinstance(network, dict) else None)


def _merge(path: str, plain: Mapping[str, Tensor], unpacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for key in unpacked:
        if key in plain:
            raise UserError(f'{path}: weight {key!r:.80} is there twice, plain and packed')
    return {**plain, **unpacked}


def _split(
    state_dict: Mapping[str, Tensor], scales: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, PackedTensor | PackedIntegers]]:
    """Parts a state dict in the weights to be stored as they are, and those worth packing.

    ``scales`` ``(S, O)`` are given by key of those weights that may be integers times one of them.
    """
    plain: dict[str, Tensor] = {}
    packed: dict[str, PackedTensor | PackedIntegers] = {}
    for key, tensor in state_dict.items():
        integers = pack_integers(tensor, scales[key]) if key in scales else None
        if integers is not None:
            packed[key] = integers
        elif _worth_packing(tensor):
            packed[key] = pack(tensor)
        else:
            plain[key] = tensor
    return plain, packed


def _entry(packed: PackedTensor | PackedIntegers) -> dict[str, Tensor]:
    """The tensors of a packed one, by what they are called in files."""
    parts = {'values': packed.values, 'mask': packed.mask}
    return {**parts, 'scale': packed.scale} if isinstance(packed, PackedIntegers) else parts


def _scales_of_candidates(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scales by the keys of the own weights of sparse layers, as far as these multiply 8-bit integers."""
    scales = {}
    for key in state_dict:
        layer, _, slot = key.rpartition('.weights.')
        if slot.isdigit() and f'{layer}.weight_scales' in state_dict:
            scales[key] = state_dict[f'{layer}.weight_scales']
    return scales


def _worth_packing(tensor: Tensor) -> bool:
    if tensor.dtype not in PACKABLE or tensor.nbytes < _PACKING_SAVES_BYTES:
        return False
    return tensor.nbytes - packed_bytes(tensor) >= max(_PACKING_SAVES_BYTES, _PACKING_SAVES * tensor.nbytes)


def write_checkpoint(
    path: str | os.PathLike[str], weights: Mapping[str, Mapping[str, Tensor]], network_g: Mapping[str, Any] | None
) -> None:
    """Writes a checkpoint in BasicSR's format, whole or not at all.

    Weights of a ClassPruning network that are mostly zeros, or 8-bit integers times a scale (its candidates' own
    weights), are stored packed, in a container of their own, and unpacked by ``read_checkpoint``: exact but for the
    sign of zeros. Other networks' files
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
            content[name], packed = _split(part, _scales_of_candidates(part))
            content['packed'][name] = {key: {**_entry(one), 'shape': one.shape} for key, one in packed.items()}
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
    path: str | os.PathLike[str],
    params: Mapping[str, Tensor],
    network_g: Mapping[str, Any],
    scales: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a safetensors file in which weights that are mostly zeros are packed; ``read_checkpoint`` unpacks them.

    A packed weight KEY is stored as two tensors, KEY:values and KEY:mask (see ``PackedTensor``), and its shape in the
    metadata's JSON object ``packed``; one that is 8-bit integers times its ``scales`` ``(1, O)`` as three, with
    KEY:scale (see ``PackedIntegers``).

    Raises UserError with one line where the file cannot be written.
    """
    tensors: dict[str, Tensor]
    tensors, packed = _split(params, scales or {})
    for key, part in packed.items():
        tensors.update({f'{key}:{name}': tensor for name, tensor in _entry(part).items()})
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
