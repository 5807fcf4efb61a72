"""Nested N:M masks by rank: candidate N keeps, in each group of M weights, those ranked below N."""

from __future__ import annotations

import torch
from torch import Tensor

from basicsr_classpruning.sparsity.pattern import Pattern


def mismatch(weight: Tensor, pattern: Pattern) -> str:
    """Why a weight ``(O, C, ...)`` cannot carry the pattern; an empty string where it can."""
    out_channels, in_channels = weight.shape[:2]
    if in_channels % pattern.m:
        return f'{in_channels} input channels are no multiple of M = {pattern.m}'
    if out_channels % pattern.block:
        return f'{out_channels} output channels are no multiple of block = {pattern.block}'
    return ''


def grouped(values: Tensor, pattern: Pattern) -> Tensor:
    """Views ``(O, C, *taps)`` as ``(O / block, block, C / M, M, taps)``."""
    out_channels, in_channels = values.shape[:2]
    return values.reshape(
        out_channels // pattern.block, pattern.block, in_channels // pattern.m, pattern.m, values[0, 0].numel()
    )


def rank(importance: Tensor, pattern: Pattern) -> Tensor:
    """Ranks weights inside their groups, 0 for the most important.

    Args:
        importance: ``(O, C, *taps)``, non-negative. Where masks are shared (``block``, ``share_taps``) it is combined
            as an L2 norm over the weights that share them.
        pattern: gives M and how far masks are shared; its N is not used.

    Returns:
        uint8 tensor of the same shape with values 0 … M − 1. Of equal importances the earlier channel ranks first.
    """
    groups = grouped(importance.detach(), pattern)
    shared_dims = (1, 4) if pattern.share_taps else (1,)
    if pattern.block > 1 or pattern.share_taps:
        scores = groups.float().square().sum(shared_dims, keepdim=True)
    else:
        scores = groups
    # Pairwise comparison, one opponent at a time: sorting small groups is an order of magnitude slower.
    ranks = torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device)
    position = torch.arange(pattern.m, device=scores.device).view(1, 1, 1, -1, 1)
    for opponent in range(pattern.m):
        other = scores[:, :, :, opponent : opponent + 1]
        ranks += (other > scores) | ((other == scores) & (opponent < position))
    return ranks.expand(groups.shape).reshape(importance.shape)


def magnitude_rank(weight: Tensor, pattern: Pattern) -> Tensor:
    """Ranks by magnitude: |w|, or its L2 norm over the weights that share a mask."""
    return rank(weight.abs(), pattern)


def satisfies(weight: Tensor, pattern: Pattern) -> bool:
    """Whether the zeros of a weight ``(O, C, *taps)`` obey the pattern."""
    used = grouped(weight != 0, pattern).any(dim=1, keepdim=True)
    if pattern.share_taps:
        used = used.any(dim=4, keepdim=True)
    return bool((used.sum(dim=3) <= pattern.n).all())
