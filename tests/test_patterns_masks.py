"""Patterns and nested masks, against a brute-force oracle."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_classpruning.sparsity import Pattern
from basicsr_classpruning.sparsity.masks import magnitude_rank, mask_of, mismatch, rank, satisfies


def oracle_ranks(importance: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Ranks by sorting every group on its own; of equal importances the earlier channel comes first."""
    values = importance.reshape(*importance.shape[:2], -1).double()
    ranks = torch.zeros(values.shape, dtype=torch.uint8)
    out_channels, in_channels, taps = values.shape
    for block, group in itertools.product(range(0, out_channels, pattern.block), range(0, in_channels, pattern.m)):
        size = min(pattern.m, in_channels - group)
        for tap_set in [range(taps)] if pattern.share_taps else [[tap] for tap in range(taps)]:
            shared = [
                sum(
                    float(values[o, group + i, t]) ** 2
                    for o, t in itertools.product(range(block, block + pattern.block), tap_set)
                )
                for i in range(size)
            ]
            for place, i in enumerate(sorted(range(size), key=lambda i: (-shared[i], i))):
                for o, t in itertools.product(range(block, block + pattern.block), tap_set):
                    ranks[o, group + i, t] = place
    return ranks.reshape(importance.shape)


@st.composite
def weights_and_patterns(draw):
    m = draw(st.sampled_from([1, 2, 3, 4, 8, 16, 32]))
    pattern = Pattern(draw(st.integers(1, m)), m, draw(st.integers(1, 3)), draw(st.booleans()))
    shape = (pattern.block * draw(st.integers(1, 2)), draw(st.integers(1, 2 * m + 1)))
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
def test_masks_are_nested_and_keep_exactly_n_of_every_m_and_their_share_of_the_rest(case):
    weight, pattern = case
    ranks = magnitude_rank(weight, pattern)
    patterns = [Pattern(n, pattern.m, pattern.block, pattern.share_taps) for n in range(1, pattern.m + 1)]
    masks = [mask_of(ranks, each) for each in patterns]
    for cheaper, dearer in itertools.pairwise(masks):
        assert not (cheaper & ~dearer).any()
    channels = weight.shape[1]
    for each, mask in zip(patterns, masks):
        groups = [part.sum(1) for part in mask.split(pattern.m, 1)]
        assert all((kept == each.n).all() for kept in groups[: channels // pattern.m])
        total = sum(groups)
        assert (total == each.kept(channels)).all()
        assert satisfies(mask.float(), each)
        alone = channels < pattern.m
        nearest = min(range(alone, channels + 1), key=lambda kept: (abs(kept * pattern.m - each.n * channels), -kept))
        assert each.kept(channels) == nearest
        fuller = mask.clone()
        fuller[:, channels // pattern.m * pattern.m :] = True
        assert satisfies(fuller.float(), each) == torch.equal(fuller, mask)
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


@pytest.mark.parametrize(
    ('channels', 'kept'),
    [(50, 13), (48, 12), (40, 10), (36, 9), (60, 15), (28, 7), (12, 3), (21, 5), (180, 45), (4, 1), (2, 1), (1, 1)],
)
def test_a_shorter_last_group_keeps_its_share(channels, kept):
    assert Pattern(4, 16).kept(channels) == kept
    assert Pattern(16, 16).kept(channels) == channels


def test_why_a_layer_is_not_pruned_is_named():
    weight = torch.zeros(6, 8, 3, 3)
    assert mismatch(weight, Pattern(2, 4, block=3)) == mismatch(weight, Pattern(2, 3)) == ''
    assert mismatch(weight, Pattern(2, 4, block=4)) == '6 output channels are no multiple of block = 4'
    assert mismatch(weight, Pattern(2, 4, block=2), groups=3) == ''
    assert (
        mismatch(weight, Pattern(2, 4, block=3), groups=3) == '2 output channels a group are no multiple of block = 3'
    )
    assert mismatch(torch.zeros(6, 1, 3, 3), Pattern(2, 4), groups=6) == 'a depthwise convolution'
    assert mismatch(torch.zeros(6, 3, 3, 3), Pattern(4, 16)) == '3 input channels: too few to choose among'
    assert mismatch(torch.zeros(6, 1, 3, 3), Pattern(4, 16)) == '1 input channel: too few to choose among'
    assert mismatch(torch.zeros(6, 2, 3, 3), Pattern(1, 2)) == ''


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
