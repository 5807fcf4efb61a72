"""Exact compact storage of weights that are 8-bit integers times a scale: the integers, a bit for each unit, scales.

A unit is 1, 2 or 4 neighbouring input channels at one output channel and one kernel tap. A 4:16 weight in units of 4
takes 1/16 + 1/128 of its float32 size, the scales not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from basicsr_classpruning.untrusted.bitmask import PackedTensor, check, pack, unpack

_UNITS = (1, 2, 4)
_LARGEST = 127


@dataclass(frozen=True)
class PackedIntegers:
    """A float32 weight ``(O, C, *taps)`` as integers."""

    values: Tensor
    """The integers of the units that are not all zero: int8 ``(units kept, unit)``, ordered by output channel, unit
    and tap; a last unit of fewer channels is filled up with zeros."""
    mask: Tensor
    """Which units are kept: uint8 bits, as in ``PackedTensor``."""
    scale: Tensor
    """What the integers are multiplied by: float32 ``(O,)``."""
    shape: tuple[int, ...]
    """The weight's shape."""


def pack_integers(weight: Tensor, scales: Iterable[Tensor]) -> PackedIntegers | None:
    """Packs a weight that is, bit for bit, integers times one of several scales ``(O,)``; None where it is not."""
    if weight.dtype != torch.float32 or weight.dim() < 2 or not weight.numel():
        return None
    weight = weight.detach()
    for scale in scales:
        column = scale.detach().reshape(-1, *[1] * (weight.dim() - 1))
        if scale.dtype != torch.float32 or len(scale) != len(weight) or not bool((scale > 0).all()):
            continue
        integers = (weight / column).round()
        if bool((integers.abs() <= _LARGEST).all()) and torch.equal(integers * column, weight):
            packed = [_pack(integers.to(torch.int8), unit, scale.detach()) for unit in _UNITS]
            return min(packed, key=lambda one: one.values.nbytes + one.mask.nbytes)
    return None


def _pack(integers: Tensor, unit: int, scale: Tensor) -> PackedIntegers:
    units = _in_units(integers, unit)
    kept = (units != 0).any(-1)
    return PackedIntegers(units[kept], pack(kept.float()).mask, scale, tuple(integers.shape))


def _in_units(integers: Tensor, unit: int) -> Tensor:
    """``(O, C, *taps)`` as ``(O, units, taps, unit)``."""
    flat = integers.flatten(2) if integers.dim() > 2 else integers[:, :, None]
    filled = torch.nn.functional.pad(flat, (0, 0, 0, -flat.shape[1] % unit))
    return filled.unflatten(1, (-1, unit)).transpose(2, 3)


def unpack_integers(packed: PackedIntegers) -> Tensor:
    """The weight. Everything is checked before memory is taken; raises ValueError with one line where parts do not fit
    each other."""
    values, scale, shape = packed.values, packed.scale, packed.shape
    check_integers(packed)
    unit, taps = values.shape[1], math.prod(shape[2:])
    units = -(-shape[1] // unit)
    marked = PackedTensor(torch.ones(len(values)), packed.mask, (shape[0], units, taps))
    kept = unpack(marked) != 0
    dense = torch.zeros(*kept.shape, unit, dtype=torch.int8)
    dense[kept] = values
    channels = dense.transpose(2, 3).flatten(1, 2)
    if bool(channels[:, shape[1] :].any()):
        raise ValueError(f'values beyond its {shape[1]} channels')
    return channels[:, : shape[1]].reshape(shape) * scale.reshape(-1, *[1] * (len(shape) - 1))


def check_integers(packed: PackedIntegers) -> None:
    """Checks types, shapes and lengths, without taking memory. Raises ValueError with one line."""
    values, scale, shape = packed.values, packed.scale, packed.shape
    for name, part, kind in (('values', values, torch.int8), ('scales', scale, torch.float32)):
        if not isinstance(part, Tensor) or part.layout is not torch.strided or part.is_meta or part.dtype != kind:
            raise ValueError(f'the {name} are no plain tensor of {str(kind).removeprefix("torch.")}')
        if not part.is_contiguous():
            raise ValueError(f'the {name} are not contiguous')
    if values.dim() != 2 or values.shape[1] not in _UNITS:
        raise ValueError(f'values of shape {tuple(values.shape)} are no units of 1, 2 or 4')
    if len(shape) < 2:
        raise ValueError('a shape must have output and input channels')
    units = (shape[0], -(-shape[1] // values.shape[1]), math.prod(shape[2:])) if all(map(_is_side, shape)) else shape
    check(PackedTensor(values.new_zeros(0, dtype=torch.float32), packed.mask, units))
    if len(values) > math.prod(units):
        raise ValueError(f'{len(values)} values do not fit {math.prod(units)} units')
    if scale.shape != (shape[0],):
        raise ValueError(f'scales of shape {tuple(scale.shape)} do not fit {shape[0]} output channels')
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise ValueError('a scale is not finite and above 0')
    if bool((values == -_LARGEST - 1).any()):
        raise ValueError(f'integers go from -{_LARGEST} to {_LARGEST}')


def _is_side(side: object) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and side >= 1
