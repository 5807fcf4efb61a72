"""Patterns and nested masks, against a brute-force oracle."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_classpruning.sparsity import Pattern
from basicsr_classpruning.sparsity.masks import magnitude_rank, mask_of, mismatch, rank, satisfies


def oracle_ranks(importance: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Ranks by sorting the units of every group; of equal importances the earlier comes first, a shorter one last."""
    values = importance.reshape(*importance.shape[:2], -1).double()
    ranks = torch.zeros(values.shape, dtype=torch.uint8)
    out_channels, in_channels, taps = values.shape
    for block, group in itertools.product(range(0, out_channels, pattern.block), range(0, in_channels, pattern.m)):
        end = min(group + pattern.m, in_channels)
        units = [range(first, min(first + pattern.unit, end)) for first in range(group, end, pattern.unit)]
        for tap_set in [range(taps)] if pattern.share_taps else [[tap] for tap in range(taps)]:
            together = [[*itertools.product(range(block, block + pattern.block), unit, tap_set)] for unit in units]
            shared = [sum(float(values[place]) ** 2 for place in places) for places in together]
            before = 0
            for i in sorted(range(len(units)), key=lambda i: (len(units[i]) < pattern.unit, -shared[i], i)):
                for place in together[i]:
                    ranks[place] = before
                before += len(units[i])
    return ranks.reshape(importance.shape)


@st.composite
def weights_and_patterns(draw):
    m = draw(st.sampled_from([1, 2, 3, 4, 8, 16, 32]))
    unit = draw(st.sampled_from([unit for unit in (1, 2, 4) if m % unit == 0]))
    pattern = Pattern(draw(st.integers(1, m // unit)) * unit, m, draw(st.integers(1, 3)), draw(st.booleans()), unit)
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


def oracle_kept(pattern: Pattern, channels: int) -> int:
    """Of the numbers that whole units of the last group allow the nearest to N/M, of two as near the larger."""
    full, rest = divmod(channels, pattern.m)
    units = -(-rest // pattern.unit)
    dropped_of_full_groups = (pattern.m - pattern.n) // pattern.unit
    possible = [
        full * pattern.n + min(kept * pattern.unit, rest)
        for kept in range(units + 1)
        if units - kept <= dropped_of_full_groups and (full or kept)
    ]
    return min(possible, key=lambda kept: (abs(kept * pattern.m - pattern.n * channels), -kept))


@settings(max_examples=60, deadline=None)
@given(weights_and_patterns())
def test_masks_are_nested_and_keep_exactly_n_of_every_m_and_their_share_of_the_rest(case):
    weight, pattern = case
    ranks = magnitude_rank(weight, pattern)
    patterns = [replace(pattern, n=n) for n in range(pattern.unit, pattern.m + 1, pattern.unit)]
    masks = [mask_of(ranks, each) for each in patterns]
    for sparser, denser in itertools.pairwise(masks):
        assert not (sparser & ~denser).any()
    channels = weight.shape[1]
    for each, mask in zip(patterns, masks):
        groups = [part.sum(1) for part in mask.split(pattern.m, 1)]
        assert all((kept == each.n).all() for kept in groups[: channels // pattern.m])
        total = sum(groups)
        assert (total == each.kept(channels)).all()
        assert satisfies(mask.float(), each)
        assert each.kept(channels) == oracle_kept(each, channels)
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


def test_a_unit_ranks_by_the_norm_over_its_channels():
    # The largest weight has a small neighbour; two middling ones are more together.
    weight = torch.tensor([[5.0, 0.0, 4.0, 4.0, 1.0, 1.0, 3.0, 0.0]])
    assert magnitude_rank(weight, Pattern(4, 8, unit=2)).tolist() == [[2, 2, 0, 0, 6, 6, 4, 4]]
    assert magnitude_rank(weight, Pattern(4, 8, unit=4)).tolist() == [[0, 0, 0, 0, 4, 4, 4, 4]]
    mask = mask_of(magnitude_rank(weight, Pattern(2, 8, unit=2)), Pattern(2, 8, unit=2))
    assert mask.tolist() == [[False, False, True, True, False, False, False, False]]


def test_a_shorter_last_unit_is_kept_where_all_others_of_its_group_are():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0]])
    for n, kept in ((2, 2), (4, 2), (6, 4), (8, 5)):
        pattern = Pattern(n, 8, unit=2)
        mask = mask_of(magnitude_rank(weight, pattern), pattern)
        assert mask.sum() == pattern.kept(5) == kept
        assert bool(mask[0, 4]) == (kept == 5)


@pytest.mark.parametrize(
    ('pattern', 'obeys'),
    [
        (Pattern(2, 4, unit=2), [True, False]),
        (Pattern(2, 4), [True, True]),
        (Pattern(4, 4, unit=4), [True, True]),
    ],
)
def test_satisfies_looks_at_whole_units(pattern, obeys):
    one_unit, two_units = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert [satisfies(one_unit, pattern), satisfies(two_units, pattern)] == obeys


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
    assert mismatch(torch.zeros(6, 5, 3, 3), Pattern(4, 16, unit=4)) == ''
    assert mismatch(torch.zeros(6, 4, 3, 3), Pattern(4, 16, unit=4)) == (
        '4 input channels are one unit: nothing to choose among'
    )


def test_patterns_are_written_as_they_are_read():
    pattern = Pattern.parse('2:4', block=3, share_taps=True, unit=2)
    assert (pattern.n, pattern.m, pattern.block, pattern.share_taps, pattern.unit) == (2, 4, 3, True, 2)
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


@pytest.mark.parametrize(
    ('n', 'm', 'unit', 'message'),
    [
        (8, 16, 3, 'unit 3 is not allowed; 1, 2 or 4'),
        (8, 16, 0, 'unit 0 is not allowed; 1, 2 or 4'),
        (3, 6, 4, 'unit 4 is not allowed with 3:6; it must divide M'),
        (6, 16, 4, "'6:16' is not allowed with unit 4; N one of 4, 8, 12, 16"),
        (3, 8, 2, "'3:8' is not allowed with unit 2; N one of 2, 4, 6, 8"),
    ],
)
def test_units_that_do_not_fit_are_refused(n, m, unit, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        Pattern(n, m, unit=unit)
