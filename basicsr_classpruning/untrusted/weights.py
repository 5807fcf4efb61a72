"""Checks of the tensors that a stranger's file holds, plain and packed, before memory is taken for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.untrusted.bitmask import PackedTensor, check, unpack
from basicsr_classpruning.untrusted.files import refuse_claim
from basicsr_classpruning.untrusted.packed_integers import PackedIntegers, check_integers, unpack_integers


def refuse_claims(path: str, weights: Iterable[Mapping[str, Tensor]]) -> None:
    """Raises UserError for weights that fill much more memory than their file: views in which bytes are repeated.

    They take no memory yet; but a network is built in their shapes.
    """
    claimed = 0
    for part in weights:
        for key, tensor in part.items():
            if tensor.layout is not torch.strided or tensor.device.type != 'cpu' or tensor.is_quantized:
                raise UserError(f'{path}: weight {key!r:.80} is no plain tensor')
            claimed += tensor.nbytes
    refuse_claim(path, claimed, 'whose weights claim')


def unpack_containers(path: str, content: object, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Unpacks ``packed`` of a checkpoint file: container → key → values, mask, shape, and scale of integers.

    Raises UserError with one line where a part is damaged or claims more than the file can hold.
    """
    if not isinstance(content, Mapping) or not all(isinstance(part, Mapping) for part in content.values()):
        raise UserError(f'{path}: packed: damaged: wanted dictionaries of packed weights')
    parts = {
        name: {str(key): _packed_entry(path, key, entry) for key, entry in content[name].items()}
        for name in names
        if name in content
    }
    # Many entries may share one mask, and a small file then asks for much memory.
    if sum(len(packed.mask) for part in parts.values() for packed in part.values()) > os.path.getsize(path):
        raise UserError(f'{path}: packed: refused: the weights claim more masks than the file can hold')
    return {name: {key: _unpack(path, key, packed) for key, packed in part.items()} for name, part in parts.items()}


def unpack_entry(path: str, key: str, entry: object) -> Tensor:
    """Unpacks one weight stored as ``{'values': …, 'mask': …, 'shape': …}``, with ``scale`` where the values are
    integers; raises UserError where it is damaged."""
    return _unpack(path, key, _packed_entry(path, key, entry))


def _packed_entry(path: str, key: str, entry: object) -> PackedTensor | PackedIntegers:
    if (
        not isinstance(entry, Mapping)
        or set(entry) - {'scale'} != {'values', 'mask', 'shape'}
        or not isinstance(entry['shape'], (list, tuple))
    ):
        raise UserError(f'{path}: packed weight {key!r:.80}: damaged: wanted values, mask and shape')
    shape = tuple(entry['shape'])
    try:
        if 'scale' in entry:
            integers = PackedIntegers(entry['values'], entry['mask'], entry['scale'], shape)
            check_integers(integers)
            return integers
        packed = PackedTensor(entry['values'], entry['mask'], shape)
        check(packed)
    except ValueError as error:
        raise UserError(f'{path}: packed weight {key!r:.80}: damaged: {error}') from None
    return packed


def _unpack(path: str, key: str, packed: PackedTensor | PackedIntegers) -> Tensor:
    try:
        return unpack_integers(packed) if isinstance(packed, PackedIntegers) else unpack(packed)
    except ValueError as error:
        raise UserError(f'{path}: packed weight {key!r:.80}: damaged: {error}') from None
