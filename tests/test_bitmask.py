"""Packed tensors: exact on unpacking, as small as promised, and harmless when they lie."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_classpruning.sparsity.masks import magnitude_rank
from basicsr_classpruning.sparsity.pattern import Pattern
from basicsr_classpruning.untrusted.bitmask import PACKABLE, PackedTensor, pack, packed_bytes, unpack

AS_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements' bit patterns, with which NaN equals NaN and 0.0 differs from -0.0."""
    return tensor.contiguous().view(AS_INTEGERS[tensor.element_size()])


def size(packed: PackedTensor) -> int:
    return packed.values.nbytes + packed.mask.nbytes


@settings(deadline=None, max_examples=150)
@given(
    shape=st.lists(st.integers(1, 9), max_size=4),
    share=st.floats(0, 1),
    dtype=st.sampled_from(PACKABLE),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_pattern_of_zeros_comes_back_bit_for_bit(shape, share, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator).to(dtype)
    tensor = torch.where(torch.rand(shape, generator=generator) < share, tensor, torch.zeros((), dtype=dtype))
    packed = pack(tensor)
    assert len(packed.values) == torch.count_nonzero(tensor)
    assert len(packed.mask) == math.ceil(tensor.numel() / 8)
    assert size(packed) == packed_bytes(tensor)
    restored = unpack(packed)
    assert restored.shape == tensor.shape
    assert restored.dtype == dtype
    assert torch.equal(bits(restored), bits(tensor))


def test_values_and_bits_are_in_row_major_order():
    packed = pack(torch.tensor([[0.0, 5.0, 0.0, -6.0, 0.0], [0.0, 0.0, 7.0, 0.0, 8.0]]))
    assert packed.values.tolist() == [5, -6, 7, 8]
    assert packed.mask.tolist() == [0b10001010, 0b10]
    assert packed.shape == (2, 5)


def test_infinities_nan_and_subnormal_numbers_are_values():
    tensor = torch.tensor([math.inf, 0.0, -math.inf, math.nan, 1e-45, -1e-45, 0.0])
    packed = pack(tensor)
    assert len(packed.values) == 5
    assert torch.equal(bits(unpack(packed)), bits(tensor))


def test_negative_zeros_come_back_as_zeros():
    tensor = torch.tensor([-1.0, 2.0, -3.0]) * torch.tensor([False, False, True])
    assert torch.signbit(tensor).tolist() == [True, False, True]
    restored = unpack(pack(tensor))
    assert torch.equal(restored, tensor)
    assert torch.signbit(restored).tolist() == [False, False, True]


def test_channels_last_weights_and_slices_are_packed_in_row_major_order():
    tensor = torch.randn(6, 8, 3, 3).relu()
    for same in (tensor.contiguous(memory_format=torch.channels_last), torch.stack([tensor, tensor], 1)[:, 1]):
        assert not same.is_contiguous()
        assert torch.equal(unpack(pack(same)), tensor)


@pytest.mark.parametrize(('text', 'share'), [('1:4', 0.282), ('2:4', 0.532), ('8:16', 0.532), ('4:16', 0.282)])
def test_a_candidates_weight_takes_its_density_and_a_bit_for_each_weight(text, share):
    pattern = Pattern.parse(text)
    weight = torch.randn(64, 64, 3, 3)
    weight *= magnitude_rank(weight, pattern) < pattern.n
    assert size(pack(weight)) <= share * weight.nbytes
    assert torch.equal(unpack(pack(weight)), weight)


@pytest.mark.parametrize('tensor', [torch.zeros(0, 3), torch.ones(3, dtype=torch.int64), torch.ones(3).to_sparse()])
def test_what_cannot_be_packed_is_refused(tensor):
    with pytest.raises(ValueError, match=r'cannot be packed|at least 1'):
        pack(tensor)


VALUES, MASK = torch.tensor([1.0, 2.0]), torch.tensor([0b11, 0], dtype=torch.uint8)


@pytest.mark.parametrize(
    ('values', 'mask', 'shape', 'message'),
    [
        (VALUES, MASK, (10**12,), 'does not fit 1000000000000 elements'),
        (VALUES, MASK, (10**6, 10**6, 10**6, 10**6), 'does not fit'),
        (VALUES, MASK, (17,), 'does not fit'),
        (VALUES, MASK, (8,), 'does not fit'),
        (VALUES, MASK, (-3, -3), 'at least 1'),
        (VALUES, MASK, (0, 10**30), 'at least 1'),
        (VALUES, MASK, (9.0,), 'whole numbers'),
        (VALUES, MASK, (True, 9), 'whole numbers'),
        (VALUES, MASK, (1,) * 9 + (9,), 'at most 8'),
        (VALUES[:1], MASK, (9,), 'marks 2 values, but there are 1'),
        (torch.ones(3), MASK, (9,), 'marks 2 values, but there are 3'),
        (torch.ones(20), MASK, (9,), '20 values do not fit'),
        (VALUES, torch.tensor([1, 2], dtype=torch.uint8), (9,), 'beyond its 9 elements'),
        (VALUES, MASK.int(), (9,), 'wanted torch.uint8'),
        (VALUES.int(), MASK, (9,), 'wanted torch.float64 or'),
        (VALUES[None], MASK, (9,), 'contiguous row'),
        (VALUES, MASK[None], (9,), 'contiguous row'),
        (VALUES, torch.zeros(1, dtype=torch.uint8).expand(10**11), (8 * 10**11,), 'contiguous row'),
        (torch.ones(1).expand(10**11), torch.zeros(1, dtype=torch.uint8), (8,), 'contiguous row'),
        (VALUES, torch.zeros(10**11, dtype=torch.uint8, device='meta'), (8 * 10**11,), 'no plain tensor'),
        (torch.ones(3).to_sparse(), MASK, (9,), 'no plain tensor'),
        ([1.0, 2.0], MASK, (9,), 'no plain tensor'),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_memory_is_taken(values, mask, shape, message):
    # The greedy ones claim 400 GB and more: memory taken first would end the test.
    with pytest.raises(ValueError, match=message) as caught:
        unpack(PackedTensor(values, mask, shape))
    assert '\n' not in str(caught.value)


def test_every_single_bit_of_the_mask_matters():
    tensor = torch.zeros(3, 7)
    tensor[[0, 1, 2], [2, 6, 4]] = torch.tensor([1.0, 2.0, 3.0])
    packed = pack(tensor)
    for byte, bit in itertools.product(range(3), range(8)):
        mask = packed.mask.clone()
        mask[byte] ^= 1 << bit
        with pytest.raises(ValueError, match='the mask marks'):
            unpack(PackedTensor(packed.values, mask, packed.shape))
