"""Patterns and nested masks, against a brute-force oracle."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_classpruning.sparsity import Pattern
from basicsr_classpruning.sparsity.masks import magnitude_rank, mismatch, rank, satisfies


def oracle_ranks(importance: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Ranks by sorting every group on its own; of equal importances the earlier channel comes first."""
    values = importance.reshape(*importance.shape[:2], -1).double()
    ranks = torch.zeros(values.shape, dtype=torch.uint8)
    out_channels, in_channels, taps = values.shape
    for block, group in itertools.product(range(0, out_channels, pattern.block), range(0, in_channels, pattern.m)):
        for tap_set in [range(taps)] if pattern.share_taps else [[tap] for tap in range(taps)]:
            shared = [
                sum(
                    float(values[o, group + i, t]) ** 2
                    for o, t in itertools.product(range(block, block + pattern.block), tap_set)
                )
                for i in range(pattern.m)
            ]
            for place, i in enumerate(sorted(range(pattern.m), key=lambda i: (-shared[i], i))):
                for o, t in itertools.product(range(block, block + pattern.block), tap_set):
                    ranks[o, group + i, t] = place
    return ranks.reshape(importance.shape)


@st.composite
def weights_and_patterns(draw):
    m = draw(st.sampled_from([1, 2, 3, 4, 8, 16, 32]))
    pattern = Pattern(draw(st.integers(1, m)), m, draw(st.integers(1, 3)), draw(st.booleans()))
    shape = (pattern.block * draw(st.integers(1, 2)), m * draw(st.integers(1, 2)))
    shape += draw(st.sampled_from([(), (1, 1), (3, 3), (1, 2)]))
    # Few distinct whole numbers: many ties, and sums of squares without rounding.
    levels = draw(st.sampled_from([1, 3, 50]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(-levels, levels + 1, shape, generator=generator).float(), pattern


@settings(max_examples=60, deadline=None)
@given(weights_and_patterns())
def test_ranks_equal_those_of_sorting_each_group(case):
    weight, pattern = case
    assert torch.equal(magnitude_rank(weight, pattern), oracle_ranks(weight.abs(), pattern))


@settings(max_examples=30, deadline=None)
@given(weights_and_patterns())
def test_masks_are_nested_and_keep_exactly_n_of_every_m(case):
    weight, pattern = case
    ranks = magnitude_rank(weight, pattern)
    masks = [ranks < n for n in range(1, pattern.m + 1)]
    for cheaper, dearer in itertools.pairwise(masks):
        assert not (cheaper & ~dearer).any()
    for n, mask in enumerate(masks, start=1):
        kept = mask.reshape(mask.shape[0], -1, pattern.m, *mask.shape[2:]).sum(2)
        assert (kept == n).all()
        assert satisfies(mask.float(), Pattern(n, pattern.m, pattern.block, pattern.share_taps))
    assert masks[-1].all()


def test_the_kept_weights_are_the_largest():
    weight = torch.tensor([[3.0, -5.0, 1.0, 4.0, 0.0, 0.1, -0.2, 0.0]])
    mask = magnitude_rank(weight, Pattern(2, 4)) < 2
    assert mask.tolist() == [[False, True, False, True, False, True, True, False]]


def test_ties_keep_the_earlier_channels():
    assert magnitude_rank(torch.ones(1, 4), Pattern(2, 4)).tolist() == [[0, 1, 2, 3]]
    assert rank(torch.zeros(1, 4, 1, 1), Pattern(1, 4)).flatten().tolist() == [0, 1, 2, 3]


def test_a_block_ranks_by_the_norm_over_its_rows():
    # Alone the rows prefer channels 0 and 1; together channel 2 has the largest norm.
    weight = torch.tensor([[5.0, 0.0, 4.0, 0.0], [0.0, 5.0, 4.0, 0.0]])
    assert magnitude_rank(weight, Pattern(1, 4)).argmin(1).tolist() == [0, 1]
    assert magnitude_rank(weight, Pattern(1, 4, block=2)).argmin(1).tolist() == [2, 2]


def test_shared_taps_rank_by_the_norm_over_the_taps():
    weight = torch.zeros(1, 2, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([1.0, 3.0])
    weight[0, :, 0, 1] = torch.tensor([2.0, 0.0])
    assert magnitude_rank(weight, Pattern(1, 2)).flatten().tolist() == [1, 0, 0, 1]
    assert magnitude_rank(weight, Pattern(1, 2, share_taps=True)).flatten().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ('pattern', 'obeys'),
    [
        (Pattern(1, 2), True),
        (Pattern(1, 2, block=2), False),
        (Pattern(1, 2, share_taps=True), False),
        (Pattern(2, 2, block=2, share_taps=True), True),
    ],
)
def test_satisfies_looks_at_all_weights_that_share_a_mask(pattern, obeys):
    weight = torch.zeros(2, 2, 1, 2)
    weight[0, 0, 0, 0] = weight[0, 1, 0, 1] = weight[1, 1, 0, 0] = 1
    assert satisfies(weight, pattern) is obeys


def test_what_does_not_divide_is_named():
    weight = torch.zeros(6, 8, 3, 3)
    assert mismatch(weight, Pattern(2, 4, block=3)) == ''
    assert '8 input channels' in mismatch(weight, Pattern(2, 3))
    assert '6 output channels' in mismatch(weight, Pattern(2, 4, block=4))


def test_patterns_are_written_as_they_are_read():
    pattern = Pattern.parse('2:4', block=3, share_taps=True)
    assert (pattern.n, pattern.m, pattern.block, pattern.share_taps) == (2, 4, 3, True)
    assert str(pattern) == '2:4'
    assert pattern.density == 0.5
    assert not pattern.is_dense
    assert Pattern.parse('4:4').is_dense


@pytest.mark.parametrize(
    'text', ['', '2', '2:4:8', 'a:b', '0:4', '5:4', '1:33', '-1:4', ' 2:4', '2:4\n', '٢:٤x', None, 2]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r'pattern|must be between'):
        Pattern.parse(text)


def test_a_block_of_none_is_refused():
    with pytest.raises(ValueError, match='block 0'):
        Pattern(1, 2, block=0)
