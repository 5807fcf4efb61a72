"""Random changes to bytes, values, weights and archives, as accidents and strangers make them."""

from __future__ import annotations

import copy
import io
import math
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf,
    '', 'x', '2:4', '16:16', '4:2', '0:4', 'EDSR', 'DnCNN', 'ClassPruning', 'auto', '../..', '/', '(', '\n', '\0',
    '(a+)+$', 'é' * 300, [], {}, [[]], [1, 2], {'type': 'EDSR'}, {'type': 'L1Loss'}, ['2:4', '4:4'],
)  # fmt: skip


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips, overwrites, cuts out, repeats and inserts bytes at a few places."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        start = rng.randrange(len(result) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64)), len(result) - start)
        kind = rng.randrange(6)
        if kind == 0 and start < len(result):
            result[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[start : start + length] = rng.randbytes(length)
        elif kind == 2:
            del result[start : start + length]
        elif kind == 3:
            result[start:start] = result[start : start + length] * rng.choice((1, 2, 100))
        elif kind == 4:
            result[start : start + 4] = struct.pack(rng.choice('<>') + 'i', rng.choice((0, -1, 2**31 - 1, 1, 255)))
        elif rng.random() < 0.3:
            del result[start:]
    return bytes(result)


def change_values(value: Any, rng: random.Random) -> Any:
    """Removes, replaces, adds, moves or renames something in nested mappings and lists."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(containers(value))
        if not places:
            return value
        place = rng.choice(places)
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        kind = rng.randrange(5)
        if kind == 0:
            del place[key]
        elif kind == 1:
            place[key] = copy.deepcopy(rng.choice(places))
        elif kind == 2 and isinstance(place, dict):
            place[rng.choice(('', 'x', 'type', 'é', str(key) + 's'))] = place.pop(key)
        elif kind == 3 and isinstance(place[key], (int, float)):
            place[key] *= rng.choice((-1, 0, 0.5, 2, 10, 1000))
        else:
            place[key] = copy.deepcopy(rng.choice(_ODD))
    return value


def containers(value: Any) -> Iterator[Any]:
    """All mappings and lists in a value that hold something."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from containers(item)


def change_tensors(state: dict[str, torch.Tensor], rng: random.Random) -> dict[str, Any]:
    """Removes, renames or replaces a weight."""
    state = dict(state)
    key = rng.choice(list(state))
    value = state.pop(key)
    kind = rng.randrange(7)
    replacements: tuple[Callable[[], Any], ...] = (
        lambda: value.flatten(),
        lambda: value.double(),
        lambda: value.to(torch.complex64),
        lambda: value * math.nan,
        lambda: value.new_zeros((0, *value.shape)),
        lambda: value.expand(3, *value.shape),
    )
    if kind < len(replacements):
        state[rng.choice((key, key, key, 'x', f'module.{key}', ''))] = replacements[kind]()
    return state


def change_member(data: bytes, rng: random.Random) -> bytes:
    """Changes the bytes of one member of a zip archive, with a right check sum."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(result, 'w') as archive:
        entries = source.infolist()
        chosen = rng.choice([entry for entry in entries if entry.file_size])
        if rng.random() < 0.7:
            chosen = next(entry for entry in entries if entry.filename.endswith('data.pkl'))
        for entry in entries:
            content = source.read(entry)
            archive.writestr(entry.filename, change_bytes(content, rng) if entry is chosen else content)
    return result.getvalue()
