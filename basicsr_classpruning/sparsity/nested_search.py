"""Finds nested masks for weights that must not change: which of them to keep, judged by data.

With shared weights a mask is all there is to choose, so the loss of a layer is a quadratic function of zeros and ones.
For each block of output channels, with m_u = 1 where unit u is kept,

    f(m) = mᵀ Q m − 2 qᵀ m,   Q_uv = Σ w_u H_uv w_v,   q_u = Σ w_u (C H)_u,

summed over the columns of a unit and the output channels of the block (``mask_search`` says what units and blocks
are). Errors of two dropped weights may cancel, which no importance of single weights can see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from basicsr_classpruning.sparsity.mask_search import Layout, ShortGroups, lay_out
from basicsr_classpruning.sparsity.pattern import Pattern

_CHUNK_BYTES = 96 * 2**20  # of Q


def nested_ranks(
    losses: Sequence[tuple[Tensor, Tensor]], dense: Tensor, channels: int, patterns: Sequence[Pattern]
) -> Tensor:
    """Ranks of the weights inside their groups: candidate N keeps those ranked below N.

    Args:
        losses: H ``(K, K)`` and C H ``(O, K)`` of each candidate, in the order of a weight's ``flatten(1)``.
        dense: the weights ``(O, K)``.
        channels: input channels of the layer (of a convolution group).
        patterns: one for each candidate, alike but for N.

    Returns:
        uint8 ``(O, K)``, 0 for the most important. The sparsest candidate's mask is chosen first, being the one that
        loses most; each denser one adds to it.
    """
    pattern = patterns[0]
    taps = dense.shape[1] // channels
    layout = lay_out(channels, taps, pattern)
    width, m = layout.width, pattern.m // pattern.unit
    weights = layout.spread(dense).view(-1, pattern.block, layout.size)
    padding, shorter = _not_whole(layout)
    level = torch.full((len(weights), len(padding)), len(patterns), dtype=torch.int64)
    by_density = sorted(range(len(patterns)), key=lambda k: patterns[k].n)
    for place, k in enumerate(by_density):
        hessian, cross = losses[k]
        hessian, cross = layout.spread_square(hessian), layout.spread(cross).view(weights.shape)
        short = lay_out(channels, taps, patterns[k]).short
        drops = _drops(len(padding) // m, patterns[k], short)
        dropped = shorter & bool(short and short.dropped)
        size = max(1, _CHUNK_BYTES // (4 * hessian.numel() // width))
        for blocks in torch.arange(len(weights)).split(size):
            quadratic, linear = _in_units(hessian, cross[blocks], weights[blocks], width)
            # Padding stays among the kept, so that nothing is exchanged for it.
            chosen = level[blocks] < place
            locked = chosen | padding | shorter
            kept = _drop_least(quadratic, linear, (~dropped).expand(locked.shape), locked, drops)
            kept = _exchange(quadratic, linear, kept, locked, m)
            level[blocks] = torch.where(kept & ~chosen & ~padding, place, level[blocks])
    magnitude = weights.square().sum(1).unflatten(1, (-1, width)).sum(2)
    magnitude = magnitude.masked_fill(shorter, -1).masked_fill(padding, -2)
    ranks = _rank_levels(level, magnitude, m) * pattern.unit
    return layout.gather(ranks.repeat_interleave(width, 1).repeat_interleave(pattern.block, 0).to(torch.uint8))


def _not_whole(layout: Layout) -> tuple[Tensor, Tensor]:
    """Which units ``(U,)`` are padding, and which are shorter last units."""
    columns = layout.padding.unflatten(0, (-1, layout.width))
    padding = columns.all(1)
    return padding, columns.any(1) & ~padding


def _drops(groups: int, pattern: Pattern, short: ShortGroups | None) -> Tensor:
    """How many whole units each of the groups drops, ``(groups,)``."""
    drops = torch.full((groups,), (pattern.m - pattern.n) // pattern.unit)
    if short:
        drops[short.every - 1 :: short.every] = short.size - short.kept
    return drops


def _in_units(hessian: Tensor, cross: Tensor, weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Q ``(B, U, U)`` and q ``(B, U)`` of blocks of weights ``(B, block, K)``."""
    units = weights.shape[2] // width
    if width == 1:
        gram = weights.transpose(1, 2) @ weights
        return (gram * hessian).float(), (weights * cross).sum(1).float()
    quadratic = torch.zeros(len(weights), units, units, dtype=weights.dtype)
    for tap in range(width):
        for other in range(width):
            gram = weights[:, :, tap::width].transpose(1, 2) @ weights[:, :, other::width]
            quadratic += gram * hessian[tap::width, other::width]
    return quadratic.float(), (weights * cross).sum(1).unflatten(1, (units, width)).sum(2).float()


def _drop_least(quadratic: Tensor, linear: Tensor, kept: Tensor, locked: Tensor, drops: Tensor) -> Tensor:
    """A first mask ``(B, U)``: those of ``kept``, less the one of each group that costs least, again and again.

    Each group loses as many as ``drops`` ``(groups,)`` says, and no ``locked`` unit.
    """
    groups = len(drops)
    own = quadratic.diagonal(dim1=1, dim2=2)
    kept = kept.clone()
    for round_number in range(int(drops.max())):
        slope = (quadratic @ kept.to(own)[:, :, None])[:, :, 0] - linear
        change = (own - 2 * slope).masked_fill(locked | ~kept, torch.inf).unflatten(1, (groups, -1))
        least = torch.zeros_like(change, dtype=torch.bool).scatter_(2, change.argmin(2, keepdim=True), True)
        least &= (round_number < drops)[:, None]
        kept &= ~least.flatten(1)
    return kept


def _exchange(quadratic: Tensor, linear: Tensor, kept: Tensor, locked: Tensor, m: int) -> Tensor:
    """Exchanges a kept and a dropped unit of one group, always the best such pair, until none is left that pays."""
    kept = kept.clone()
    own = quadratic.diagonal(dim1=1, dim2=2)
    units = quadratic.shape[1]
    groups = units // m
    in_group = quadratic.view(-1, groups, m, groups, m).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    slope = (quadratic @ kept.to(own)[:, :, None])[:, :, 0] - linear
    least_gain = 1e-6 * own.sum(1)
    going = torch.arange(len(kept))
    for _ in range(units):
        now = kept[going]
        drop = (own[going] - 2 * slope[going]).masked_fill(~now | locked[going], torch.inf).view(-1, groups, m, 1)
        add = (own[going] + 2 * slope[going]).masked_fill(now | locked[going], torch.inf).view(-1, groups, 1, m)
        best, place = (drop + add - 2 * in_group[going]).flatten(1).min(1)
        paying = best < -least_gain[going]
        going, place = going[paying], place[paying]
        if len(going) == 0:
            break
        first = place // (m * m) * m
        out, into = first + place // m % m, first + place % m
        kept[going, out], kept[going, into] = False, True
        slope[going] += quadratic[going, into] - quadratic[going, out]
    return kept


def _rank_levels(level: Tensor, magnitude: Tensor, m: int) -> Tensor:
    """Ranks ``(B, U)`` inside groups: by level, and of one level the greatest first."""
    grouped_level, grouped_magnitude = level.unflatten(1, (-1, m)), magnitude.unflatten(1, (-1, m))
    by_magnitude = grouped_magnitude.sort(dim=2, descending=True, stable=True).indices
    by_level = grouped_level.gather(2, by_magnitude).sort(dim=2, stable=True).indices
    ordered = by_magnitude.gather(2, by_level)
    return torch.empty_like(ordered).scatter_(2, ordered, torch.arange(m).expand_as(ordered)).flatten(1)
