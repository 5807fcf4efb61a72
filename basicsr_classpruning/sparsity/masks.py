"""Nested N:M masks by rank: candidate N keeps, in each group of M weights, those ranked below N."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from basicsr_classpruning.sparsity.pattern import Pattern

_FEWEST_CHANNELS = 4  # a layer of fewer reads images or single maps: little to save, nothing to choose among


def mismatch(weight: Tensor, pattern: Pattern, groups: int = 1) -> str:
    """Why a weight ``(O, C, ...)`` is not pruned to the pattern; an empty string where it is.

    Args:
        weight: C is the number of input channels of one convolution group.
        pattern: what it should be pruned to.
        groups: of the convolution.
    """
    out_channels, in_channels = weight.shape[0] // groups, weight.shape[1]
    if groups > 1 and in_channels == 1:
        return 'a depthwise convolution'
    each = ' a group' if groups > 1 else ''
    if in_channels < min(_FEWEST_CHANNELS, pattern.m):
        return f'{in_channels} input channel{"s" * (in_channels > 1)}{each}: too few to choose among'
    if 1 < in_channels <= pattern.unit:
        return f'{in_channels} input channels{each} are one unit: nothing to choose among'
    if out_channels % pattern.block:
        return f'{out_channels} output channels{each} are no multiple of block = {pattern.block}'
    return ''


def grouped(values: Tensor, pattern: Pattern, size: int) -> Tensor:
    """``(O, C, *taps)`` in groups of ``size`` channels, as ``(O / block, block, C / size, units, unit, taps)``.

    Zeros fill up the last unit where it is shorter, which it may be of a single group only.
    """
    units = -(-size // pattern.unit)
    missing = units * pattern.unit - size
    if missing:
        values = torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], dim=1)
    return values.reshape(len(values) // pattern.block, pattern.block, -1, units, pattern.unit, values[0, 0].numel())


def rank(importance: Tensor, pattern: Pattern) -> Tensor:
    """Ranks weights inside their groups, 0 for the most important.

    Args:
        importance: ``(O, C, *taps)``, non-negative. Where masks are shared (``block``, ``share_taps``) or decide about
            several channels (``unit``), it is combined as an L2 norm over what is kept or dropped together.
        pattern: gives M and how far masks are shared; its N is not used.

    Returns:
        uint8 tensor of the same shape with values 0 … M − 1: how many channels of the group rank before a weight's
        unit. Of equal importances the earlier channel ranks first, and a shorter last unit always ranks last.
    """
    parts = [_rank_groups(part, pattern, size) for part, size in _parts(importance.detach(), pattern)]
    return torch.cat(parts, dim=1)


def _parts(values: Tensor, pattern: Pattern) -> Iterator[tuple[Tensor, int]]:
    """The full groups of ``(O, C, *taps)`` and the shorter last one, where there are any, with the size of a group."""
    full = values.shape[1] // pattern.m * pattern.m
    if full:
        yield values[:, :full], pattern.m
    if full < values.shape[1]:
        yield values[:, full:], values.shape[1] - full


def _rank_groups(importance: Tensor, pattern: Pattern, size: int) -> Tensor:
    groups = grouped(importance, pattern, size)
    units = groups.shape[3]
    if pattern.block > 1 or pattern.unit > 1 or pattern.share_taps:
        scores = groups.float().square().sum(_together(pattern), keepdim=True)
        if size % pattern.unit:
            scores[:, :, :, -1] = -1
    else:
        scores = groups
    # Pairwise comparison, one opponent at a time: sorting small groups is an order of magnitude slower.
    ranks = torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device)
    position = torch.arange(units, device=scores.device).view(-1, 1, 1)
    for opponent in range(units):
        other = scores[:, :, :, opponent : opponent + 1]
        ranks += (other > scores) | ((other == scores) & (opponent < position))
    ranks = (ranks * pattern.unit).expand(groups.shape).reshape(len(importance), -1, *importance.shape[2:])
    return ranks[:, : importance.shape[1]]


def _together(pattern: Pattern) -> tuple[int, ...]:
    """The dimensions of ``grouped`` whose weights are kept or dropped together."""
    return (1, 4, 5) if pattern.share_taps else (1, 4)


def magnitude_rank(weight: Tensor, pattern: Pattern) -> Tensor:
    """Ranks by magnitude: |w|, or its L2 norm over the weights that are kept or dropped together."""
    return rank(weight.abs(), pattern)


def mask_of(ranks: Tensor, pattern: Pattern) -> Tensor:
    """The mask ``(O, C, *taps)`` of a candidate, True where kept: the ranks below N, in the last group below its own.

    Masks are nested: a candidate with a larger N keeps at least what one with a smaller N keeps.
    """
    mask = ranks < pattern.n
    channels = ranks.shape[1]
    full = channels // pattern.m * pattern.m
    if full < channels:
        mask[:, full:] = ranks[:, full:] < pattern.kept_of_rest(channels)
    return mask


def satisfies(weight: Tensor, pattern: Pattern) -> bool:
    """Whether the zeros of a weight ``(O, C, *taps)`` obey the pattern: no group has units of more than N channels."""
    channels = weight.shape[1]
    for part, size in _parts(weight, pattern):
        used = grouped(part != 0, pattern, size).any(dim=_together(pattern), keepdim=True)
        starts = torch.arange(0, size, pattern.unit, device=weight.device)
        sizes = (size - starts).clamp(max=pattern.unit).view(-1, 1, 1)
        most = pattern.n if size == pattern.m else pattern.kept_of_rest(channels)
        if not bool(((used * sizes).sum(dim=3) <= most).all()):
            return False
    return True
