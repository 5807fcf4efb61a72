"""Exact compact storage of tensors that are mostly zeros: the non-zero values, and one bit for each element.

An fp32 tensor with density d takes d + 1/32 of its dense size: a 1:4 candidate 0.281, a 2:4 candidate 0.531. Indices
inside groups of M would take as much (2:4) or more (8:16), and would need the pattern to be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PACKABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types of the tensors that can be packed."""
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class PackedTensor:
    """A tensor without its zeros."""

    values: Tensor
    """The non-zeros in the tensor's (row-major) order: ``(count,)``, in its type."""
    mask: Tensor
    """Which elements are non-zero: uint8 ``(⌈elements / 8⌉,)``, element 8·i + j in bit j of byte i, spare bits 0."""
    shape: tuple[int, ...]
    """The tensor's shape; every side is at least 1."""


def pack(tensor: Tensor) -> PackedTensor:
    """Packs a tensor of any shape on the CPU or another device; the result is on the same device.

    Zeros are not stored, and come back as 0.0: of -0.0, which products of weights and masks are full of, the sign is
    lost. So ``unpack`` gives a tensor with ``torch.equal`` to the packed one, whose non-zeros (subnormal numbers,
    infinities and NaN among them) are the same bit for bit.

    Raises ValueError for a type not in ``PACKABLE`` and for a tensor without elements.
    """
    if tensor.dtype not in PACKABLE or tensor.layout is not torch.strided:
        raise ValueError(f'a tensor of {tensor.dtype}, {tensor.layout} cannot be packed')
    _count_elements(tensor.shape)
    flat = tensor.detach().reshape(-1)
    kept = flat != 0
    bits = torch.nn.functional.pad(kept.to(torch.uint8), (0, -len(kept) % 8)).view(-1, 8)
    mask = (bits << _bit_numbers(flat.device)).sum(dim=1, dtype=torch.uint8)
    return PackedTensor(flat[kept], mask, tuple(tensor.shape))


def unpack(packed: PackedTensor) -> Tensor:
    """The dense tensor, contiguous, on the device of the values.

    A packed tensor may come from a stranger's file, so everything is checked before memory is taken, and the memory
    taken is at most 64 times that of the mask, which is there. Raises ValueError with one line where the parts do not
    fit each other.
    """
    elements = check(packed)
    bits = (packed.mask[:, None] >> _bit_numbers(packed.mask.device)) & 1
    kept = bits.view(-1).to(torch.bool)
    count = int(kept.sum())
    if count != len(packed.values):
        raise ValueError(f'the mask marks {count} values, but there are {len(packed.values)}')
    if kept[elements:].any():
        raise ValueError(f'the mask marks values beyond its {elements} elements')
    dense = packed.values.new_zeros(elements)
    dense[kept[:elements]] = packed.values.detach()
    return dense.view(packed.shape)


def check(packed: PackedTensor) -> int:
    """Checks types, shape and lengths, without taking memory, and returns the number of elements.

    Raises ValueError with one line where a part cannot be right.
    """
    elements = _count_elements(packed.shape)
    for name, part, types in (('values', packed.values, PACKABLE), ('mask', packed.mask, (torch.uint8,))):
        if not isinstance(part, Tensor) or part.layout is not torch.strided or part.is_meta:
            raise ValueError(f'the {name} are no plain tensor')
        if part.dtype not in types:
            raise ValueError(f'the {name} are {part.dtype}, wanted {" or ".join(str(kind) for kind in types)}')
        # An expanded tensor (stride 0) claims any length without having it.
        if part.ndim != 1 or not part.is_contiguous():
            raise ValueError(f'the {name} are not one contiguous row')
    if len(packed.mask) != -(-elements // 8):
        raise ValueError(f'a mask of {len(packed.mask)} bytes does not fit {elements} elements')
    if len(packed.values) > elements:
        raise ValueError(f'{len(packed.values)} values do not fit {elements} elements')
    return elements


def packed_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes when it is packed, names and headers of a file not counted."""
    return int(torch.count_nonzero(tensor)) * tensor.element_size() + -(-tensor.numel() // 8)


def _count_elements(shape: Sequence[int]) -> int:
    sides_fit = all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in shape)
    if not sides_fit or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f'a shape must be at most {_MAX_DIMENSIONS} whole numbers of at least 1')
    return math.prod(shape)


def _bit_numbers(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
