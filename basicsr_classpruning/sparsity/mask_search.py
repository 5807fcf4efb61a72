"""Finds N:M masks and weights that minimise a quadratic loss: the solver behind second-order pruning.

The loss of a layer with weights V ``(O, K)`` is the sum over its output channels o of

    (v_o − c_o)ᵀ H (v_o − c_o),   H ``(K, K)`` positive definite, c_o the best dense weights.

Everything here is exact linear algebra on H; nothing is trained. Three steps: a greedy mask, column by column, with the
error of each zero pushed onto the columns to come ("SparseGPT", Frantar and Alistarh, ICML 2023); exchanges of a kept
and a dropped weight inside a group, accepted where the loss with all kept weights re-solved falls; and least squares
on the final mask.

Where M does not divide the channels, the last group is shorter. It is filled up to M with columns that multiply nothing
(*padding*), of which so many count as kept that the real ones keep their number: so all groups are of one size, and the
rest need not know. Padding never exchanges its place.

The smallest thing a mask decides about is a *unit*: the pattern's ``unit`` neighbouring input channels at one tap, or
at all taps where masks are shared over taps. A last unit that is shorter is filled up too, and never exchanges its
place: the pattern says whether it is kept. The output channels of a block share their masks, so a block is a row of the
mask and a right-hand side with several columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from basicsr_classpruning.sparsity.int8 import LARGEST_WEIGHT
from basicsr_classpruning.sparsity.pattern import Pattern

_CHUNK_BYTES = 48 * 2**20  # of the largest tensors of one chunk of blocks; what fits a cache is also fastest
_GREATEST_TABLEAU = 96  # columns whose exchanges are tried together between two factorisations
_SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the largest weight, among which an output channel's scale is chosen
_LEAST_GAIN = 1e-6  # share of a block's loss that an exchange must gain: above the noise of single precision


@dataclass(frozen=True)
class ShortGroups:
    """The groups that are shorter than M, filled up with padding at their ends."""

    every: int
    """Each ``every``-th group is one: there is one for each kernel tap that has masks of its own."""
    size: int
    """Whole units in them, which are chosen among."""
    kept: int
    """Whole units kept in them."""
    dropped: int
    """Places behind the whole units that count as dropped before any that counts as kept: 1 where a shorter last unit
    is dropped, else 0."""


@dataclass(frozen=True)
class QuadraticProblem:
    """A layer's loss, in units: the columns of a unit stand together."""

    hessian: Tensor
    """H ``(K, K)``, float64, positive definite."""
    cross: Tensor
    """C H, ``(O, K)``, float64, where C ``(O, K)`` are the best dense weights."""
    n: int
    """Units kept in a group."""
    m: int
    """Units in a group; the groups follow each other."""
    width: int
    """Columns of a unit."""
    block: int
    """Output channels that share a mask."""
    short: ShortGroups | None = None
    """Where M does not divide the channels."""

    @property
    def units(self) -> int:
        """Units of one output channel."""
        return self.hessian.shape[0] // self.width

    @property
    def centre(self) -> Tensor:
        """The best dense weights ``(O, K)``."""
        return torch.cholesky_solve(self.cross.T, torch.linalg.cholesky(self.hessian)).T


@dataclass(frozen=True)
class Layout:
    """How the columns of a weight's ``flatten(1)`` stand in a problem, where each unit and each group is together."""

    places: Tensor
    """For each column of the problem that is no padding, its place in it: ``(K,)``."""
    columns: Tensor
    """For each of these the column of the weight: ``(K,)``."""
    size: int
    """Columns of the problem, padding among them."""
    width: int
    """Columns of a unit."""
    short: ShortGroups | None

    @property
    def padding(self) -> Tensor:
        """Which columns of the problem are padding, ``(size,)``."""
        return torch.ones(self.size, dtype=torch.bool).scatter_(0, self.places, False)

    def spread(self, values: Tensor) -> Tensor:
        """Values ``(…, K)`` by column of the weight in the problem's columns ``(…, size)``; padding gets 0."""
        spread = values.new_zeros(*values.shape[:-1], self.size)
        spread[..., self.places] = values[..., self.columns]
        return spread

    def spread_square(self, values: Tensor) -> Tensor:
        """The same for both sides of a matrix ``(K, K)``."""
        return self.spread(self.spread(values).T).T

    def gather(self, values: Tensor) -> Tensor:
        """The inverse of ``spread``."""
        gathered = values.new_empty(*values.shape[:-1], len(self.columns))
        gathered[..., self.columns] = values[..., self.places]
        return gathered


def lay_out(channels: int, taps: int, pattern: Pattern) -> Layout:
    """The layout of a layer with that many input channels (of a group) and kernel taps."""
    groups = -(-channels // pattern.m)
    padded = groups * pattern.m
    columns = torch.full((padded, taps), -1)
    columns[:channels] = torch.arange(channels * taps).view(channels, taps)
    ordered = (columns if pattern.share_taps else columns.T).reshape(-1)
    short = None
    if padded > channels:
        rest, kept = channels % pattern.m, pattern.kept_of_rest(channels)
        short = ShortGroups(
            groups, rest // pattern.unit, kept // pattern.unit, int(rest % pattern.unit > 0 and kept < rest)
        )
    places = (ordered >= 0).nonzero()[:, 0]
    width = pattern.unit * (taps if pattern.share_taps else 1)
    return Layout(places, ordered[places], len(ordered), width, short)


def solve(hessian: Tensor, cross: Tensor, channels: int, pattern: Pattern, rounds: int) -> Tensor:
    """The weights ``(O, K)`` with zeros in place that (nearly) minimise the loss under a pattern.

    Args:
        hessian: H ``(K, K)``, in the order of a weight's ``flatten(1)``.
        cross: C H, ``(O, K)``, where C are the best dense weights.
        channels: input channels of the layer (of a convolution group).
        pattern: what may be kept; its block divides O.
        rounds: how often kept and dropped weights are exchanged; 0 keeps the greedy mask.
    """
    layout, problem = _in_units(hessian, cross, channels, pattern)
    mask = exchange(problem, greedy_mask(problem), rounds)
    return layout.gather(least_squares(problem, mask))


def solve_int8(hessian: Tensor, cross: Tensor, channels: int, pattern: Pattern, rounds: int) -> tuple[Tensor, Tensor]:
    """As ``solve``, with weights that are integers from −127 to 127 times a scale for each output channel.

    Returns:
        The weights ``(O, K)`` and their scales ``(O,)``.
    """
    layout, problem = _in_units(hessian, cross, channels, pattern)
    mask = exchange(problem, greedy_mask(problem), rounds)
    weights, scales = rounded(problem, mask, least_squares(problem, mask))
    return layout.gather(weights), scales


def _in_units(hessian: Tensor, cross: Tensor, channels: int, pattern: Pattern) -> tuple[Layout, QuadraticProblem]:
    taps = hessian.shape[0] // channels
    layout = lay_out(channels, taps, pattern)
    padded = layout.spread_square(hessian)
    padded.diagonal()[layout.padding] = hessian.diagonal().mean()  # any number that leaves it well-conditioned
    problem = QuadraticProblem(
        padded,
        layout.spread(cross),
        pattern.n // pattern.unit,
        pattern.m // pattern.unit,
        layout.width,
        pattern.block,
        layout.short,
    )
    return layout, problem


def loss(problem: QuadraticProblem, weights: Tensor) -> Tensor:
    """The loss of each output channel ``(O,)`` at weights ``(O, K)``."""
    error = weights - problem.centre
    return ((error @ problem.hessian) * error).sum(1)


def greedy_mask(problem: QuadraticProblem) -> Tensor:
    """A mask ``(O / block, units)``, True where kept, chosen group by group with the errors compensated for."""
    weights = problem.centre
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(problem.hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    mask = torch.empty(len(weights) // problem.block, problem.units, dtype=torch.bool)
    step = problem.m * problem.width
    for group in range(problem.units // problem.m):
        first = group * step
        diagonal = factor.diagonal()[first : first + step]
        now = weights[:, first : first + step].clone()
        scores = (now / diagonal).square().view(len(mask), problem.block, problem.m, problem.width).sum((1, 3))
        short = problem.short
        if short and group % short.every == short.every - 1:
            scores[:, short.size :] = -torch.inf
            first_filled = short.size + short.dropped
            scores[:, first_filled : first_filled + problem.n - short.kept] = torch.inf
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(problem.n, 1).indices, True)
        mask[:, group * problem.m : (group + 1) * problem.m] = kept
        dropped = ~kept.repeat_interleave(problem.block, 0).repeat_interleave(problem.width, 1)
        errors = torch.zeros_like(now)
        for column in range(step):
            errors[:, column] = now[:, column] / diagonal[column] * dropped[:, column]
            row = factor[first + column, first + column : first + step]
            now[:, column:] -= errors[:, column, None] * row
        weights[:, first + step :] -= errors @ factor[first : first + step, first + step :]
    return mask


def least_squares(problem: QuadraticProblem, mask: Tensor) -> Tensor:
    """The weights ``(O, K)`` that minimise the loss among those that a mask ``(O / block, units)`` allows."""
    weights = torch.zeros_like(problem.cross)
    by_block = weights.view(len(mask), problem.block, -1)
    for blocks in _chunks(problem, mask):
        kept = _columns(_positions(mask[blocks]), problem.width)
        factor = torch.linalg.cholesky(_submatrices(problem.hessian, kept, kept))
        solution = torch.cholesky_solve(_right_sides(problem.cross, problem.block, blocks, kept), factor)
        by_block[blocks] = by_block[blocks].scatter(
            2, kept[:, None].expand(-1, problem.block, -1), solution.transpose(1, 2)
        )
    return weights


def rounded(problem: QuadraticProblem, mask: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds weights to integers times a scale, the error of each pushed onto the columns to come that a mask keeps.

    "GPTQ" (Frantar et al., ICLR 2023), with a Hessian for each output channel: that of the columns which it keeps.
    The scale is that of several which leaves the least loss when all columns are rounded at once.

    Args:
        problem: the loss.
        mask: ``(O / block, units)``.
        weights: ``(O, K)``, of least loss under the mask.

    Returns:
        The weights ``(O, K)`` and their scales ``(O,)``, float64; a scale is exact in single precision.
    """
    result, scales = torch.zeros_like(weights), weights.new_empty(len(weights))
    by_block = weights.view(len(mask), problem.block, -1)
    # Where everything is kept, all output channels have one Hessian.
    chunks = iter([torch.arange(len(mask))]) if bool(mask.all()) else _chunks(problem, mask)
    for blocks in chunks:
        kept = _columns(_positions(mask[blocks]), problem.width)
        one = kept[:1] if bool(mask.all()) else kept
        hessian = _submatrices(problem.hessian, one, one)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        factor = torch.linalg.cholesky(inverse, upper=True)
        now = by_block[blocks].gather(2, kept[:, None].expand(-1, problem.block, -1))  # (B, block, S)
        scale = _best_scale(now, hessian)
        integers = torch.empty_like(now)
        for column in range(now.shape[2]):
            integers[:, :, column] = (now[:, :, column] / scale).round().clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
            row = factor[:, column, column:]
            error = (now[:, :, column] - integers[:, :, column] * scale) / row[:, :1]
            now[:, :, column:] -= error[:, :, None] * row[:, None]
        rows = (blocks[:, None] * problem.block + torch.arange(problem.block)).flatten()
        scales[rows] = scale.flatten()
        columns = kept[:, None].expand(-1, problem.block, -1).flatten(0, 1)
        result[rows] = result[rows].scatter(1, columns, (integers * scale[:, :, None]).flatten(0, 1))
    return result, scales


def _best_scale(weights: Tensor, hessian: Tensor) -> Tensor:
    """Of scales up to that of the largest weight the one of least loss, ``(B, block)``, for weights (B, block, S)."""
    largest = weights.abs().amax(2) / LARGEST_WEIGHT
    largest = largest.masked_fill(largest == 0, 1.0)
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in _SCALES:
        scale = (largest * share).float().double()
        integers = (weights / scale[:, :, None]).round().clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
        error = integers * scale[:, :, None] - weights
        lost = ((error @ hessian) * error).sum(2)
        best, least = torch.where(lost < least, scale, best), torch.minimum(lost, least)
    return best


def exchange(problem: QuadraticProblem, mask: Tensor, rounds: int) -> Tensor:
    """Improves a mask ``(O / block, units)`` by exchanging kept for dropped units inside their groups.

    In each round the inverse on the kept columns is computed afresh for each block, which gives the exact change of the
    loss for every single exchange; the most promising one of each group are then made one after the other, each with
    its exact change after those before it. The loss never rises.
    """
    if problem.n == problem.m:
        return mask
    mask = mask.clone()
    # Single precision is twice as fast, and the final weights are solved for in double precision.
    scale = problem.hessian.diagonal().mean()
    single = QuadraticProblem(
        (problem.hessian / scale).float(),
        (problem.cross / scale).float(),
        problem.n,
        problem.m,
        problem.width,
        problem.block,
        problem.short,
    )
    for blocks in _chunks(problem, mask):
        for _ in range(rounds):
            changed = _exchange_round(single, mask, blocks)
            blocks = blocks[changed]
            if len(blocks) == 0:
                break
    return mask


def _exchange_round(problem: QuadraticProblem, mask: Tensor, blocks: Tensor) -> Tensor:
    """Makes one round of exchanges in ``mask``; returns which of the blocks changed ``(B,)``."""
    count, width, groups = len(blocks), problem.width, problem.units // problem.m
    kept, dropped = _positions(mask[blocks]), _positions(~mask[blocks])
    kept_columns, dropped_columns = _columns(kept, width), _columns(dropped, width)
    factor = torch.linalg.cholesky(_submatrices(problem.hessian, kept_columns, kept_columns))
    inverse = torch.cholesky_inverse(factor)
    across = _submatrices(problem.hessian, kept_columns, dropped_columns)
    coupling = inverse @ across
    solution = inverse @ _right_sides(problem.cross, problem.block, blocks, kept_columns)
    residual = _right_sides(problem.cross, problem.block, blocks, dropped_columns) - across.mT @ solution

    def in_groups(values: Tensor, per_group: int) -> Tensor:
        return values.view(count, groups, per_group, width, -1)

    n, rest = problem.n, problem.m - problem.n
    own_kept = _diagonal_blocks(inverse, width).view(count, groups, n, 1, width, width)
    across_units = across.view(count, -1, dropped.shape[1], width).transpose(1, 2)
    coupling_units = coupling.view(count, -1, dropped.shape[1], width).transpose(1, 2)
    if width == 1:
        schur = problem.hessian.diagonal()[dropped] - torch.linalg.vecdot(across, coupling, dim=1)
    else:
        own = problem.hessian.view(problem.units, width, problem.units, width).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        schur = own[dropped] - across_units.mT @ coupling_units
    own_dropped = schur.reshape(count, groups, 1, rest, width, width)
    pairs = coupling.view(count, groups, n * width, groups, rest * width).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    pairs = pairs.reshape(count, groups, n, width, rest, width).transpose(3, 4)
    change = exchange_change(
        own_kept,
        -pairs,
        pairs.mT,
        own_dropped,
        in_groups(solution, n)[:, :, :, None],
        -in_groups(residual, rest)[:, :, None],
    )
    if problem.short:
        last = change.unflatten(1, (-1, problem.short.every))[:, :, -1]  # a view
        last[:, :, problem.short.kept :] = torch.inf
        last[:, :, :, problem.short.size - problem.short.kept :] = torch.inf
    best, pair = change.flatten(2).min(2)
    chosen = (
        best.topk(min(groups, max(1, _GREATEST_TABLEAU // (2 * width))), dim=1, largest=False).indices.sort(1).values
    )
    out = chosen * n + pair.gather(1, chosen) // rest  # positions among the kept units
    into = chosen * rest + pair.gather(1, chosen) % rest  # positions among the dropped units

    out_columns, into_columns = _columns(out, width), _columns(into, width)
    tableau_pairs = _pick(coupling, out_columns, into_columns)
    across_into = across.gather(2, into_columns[:, None].expand(-1, across.shape[1], -1))
    coupling_into = coupling.gather(2, into_columns[:, None].expand(-1, across.shape[1], -1))
    into_global = dropped_columns.gather(1, into_columns)
    corner = _submatrices(problem.hessian, into_global, into_global) - across_into.mT @ coupling_into
    tableau = torch.cat(
        [
            torch.cat([_pick(inverse, out_columns, out_columns), -tableau_pairs], 2),
            torch.cat([tableau_pairs.mT, corner], 2),
        ],
        1,
    )
    sides = torch.cat(
        [
            solution.gather(1, out_columns[:, :, None].expand(-1, -1, problem.block)),
            -residual.gather(1, into_columns[:, :, None].expand(-1, -1, problem.block)),
        ],
        1,
    )
    scale = (solution * _right_sides(problem.cross, problem.block, blocks, kept_columns)).sum((1, 2))
    allowed = best.gather(1, chosen) < torch.inf
    made = _exchange_in_tableau(torch.cat([tableau, sides], 2), width, allowed, _LEAST_GAIN * scale)
    block_index, pair_index = made.nonzero(as_tuple=True)
    mask[blocks[block_index], kept.gather(1, out)[block_index, pair_index]] = False
    mask[blocks[block_index], dropped.gather(1, into)[block_index, pair_index]] = True
    return made.any(1)


def exchange_change(
    own_kept: Tensor, upper: Tensor, lower: Tensor, own_dropped: Tensor, side_kept: Tensor, side_dropped: Tensor
) -> Tensor:
    """How much the loss changes when a kept unit i is dropped and a dropped unit j is kept, all else re-solved.

    Args:
        own_kept, upper, lower, own_dropped: the blocks ii, ij, ji, jj ``(…, width, width)`` of the tableau, see
            ``pivot``.
        side_kept, side_dropped: their right-hand sides ``(…, width, block)``.
    """
    inner = _small_solve(own_kept, side_kept)
    cost = (side_kept * inner).sum((-2, -1))
    after = own_dropped - lower @ _small_solve(own_kept, upper)
    side_after = side_dropped - lower @ inner
    return cost - (side_after * _small_solve(after, side_after)).sum((-2, -1))


def _exchange_in_tableau(tableau: Tensor, width: int, allowed: Tensor, least_gain: Tensor) -> Tensor:
    """Makes the allowed exchanges i ↔ i + half of a tableau one by one, best first.

    Args:
        tableau: see ``pivot``.
        width: columns of a unit.
        allowed: which exchanges may be made, ``(B, half)``.
        least_gain: what an exchange must gain, ``(B,)``.

    Returns:
        Which exchanges were made, ``(B, half)``.
    """
    half = tableau.shape[1] // width // 2
    made = torch.zeros(len(tableau), half, dtype=torch.bool)
    lines = torch.arange(len(tableau))  # the tableaus that still change
    for _ in range(half):
        best, pair = _tableau_changes(tableau, half, width).masked_fill((made | ~allowed)[lines], torch.inf).min(1)
        going = best < -least_gain[lines]
        if not going.any():
            break
        lines, tableau, pair = lines[going], tableau[going], pair[going]
        made[lines, pair] = True
        tableau = pivot(pivot(tableau, pair, width), pair + half, width)
    return made


def _tableau_changes(tableau: Tensor, half: int, width: int) -> Tensor:
    """The change of the loss ``(B, half)`` by each of a tableau's exchanges."""
    columns = 2 * half * width
    square = tableau[:, :, :columns].unflatten(1, (2 * half, width)).unflatten(3, (2 * half, width))
    own = square.diagonal(dim1=1, dim2=3).movedim(-1, 1)
    upper = square[:, :half, :, half:].diagonal(dim1=1, dim2=3).movedim(-1, 1)
    lower = square[:, half:, :, :half].diagonal(dim1=1, dim2=3).movedim(-1, 1)
    sides = tableau[:, :, columns:].unflatten(1, (2 * half, width))
    return exchange_change(own[:, :half], upper, lower, own[:, half:], sides[:, :half], sides[:, half:])


def pivot(tableau: Tensor, unit: Tensor, width: int) -> Tensor:
    """Exchanges what is free and what is fixed in one unit of each tableau (a principal pivot transform).

    A tableau ``(B, D, D + block)`` gives the values of kept columns and the gradients of dropped ones as linear
    functions of the gradients of the kept (all zero) and the values of the dropped (all zero); the columns after D
    hold the constant terms.

    Args:
        tableau: ``(B, D, D + block)``.
        unit: index of the unit ``(B,)``, columns unit * width … of each tableau.
        width: columns of a unit.
    """
    columns = _columns(unit[:, None], width)
    row = tableau.gather(1, columns[:, :, None].expand(-1, -1, tableau.shape[2]))
    column = tableau.gather(2, columns[:, None, :].expand(-1, tableau.shape[1], -1))
    own = _pick(tableau, columns, columns)
    solved = _small_solve(own, row)
    result = tableau - column @ solved
    result.scatter_(1, columns[:, :, None].expand_as(row), -solved)
    identity = torch.eye(width, dtype=tableau.dtype).expand_as(own)
    inverse = _small_solve(own, identity)
    scaled = (column @ inverse).scatter(1, columns[:, :, None].expand_as(own), inverse)
    return result.scatter_(2, columns[:, None, :].expand_as(column), scaled)


def _small_solve(matrix: Tensor, sides: Tensor) -> Tensor:
    if matrix.shape[-1] == 1:  # by far the most frequent, and LAPACK is slow on a million of them
        return sides / matrix
    return torch.linalg.solve(matrix, sides)


def _chunks(problem: QuadraticProblem, mask: Tensor) -> Iterator[Tensor]:
    kept = problem.units // problem.m * problem.n * problem.width
    size = problem.hessian.shape[0]
    return iter(torch.arange(len(mask)).split(max(1, _CHUNK_BYTES // (4 * kept * size))))


def _positions(mask: Tensor) -> Tensor:
    """Positions ``(B, S)`` of the True entries of a mask with as many in each row."""
    return mask.nonzero()[:, 1].view(len(mask), -1)


def _columns(units: Tensor, width: int) -> Tensor:
    """Columns ``(B, S * width)`` of units ``(B, S)``."""
    return (units[:, :, None] * width + torch.arange(width)).flatten(1)


def _submatrices(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``(B, R, C)``: for each b the rows ``(B, R)`` and columns ``(B, C)`` of one matrix."""
    return torch.stack([matrix.index_select(0, r).index_select(1, c) for r, c in zip(rows, columns)])


def _pick(matrices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``(B, R, C)``: rows ``(B, R)`` and columns ``(B, C)`` of each of a batch of matrices."""
    picked = matrices.gather(1, rows[:, :, None].expand(-1, -1, matrices.shape[2]))
    return picked.gather(2, columns[:, None, :].expand(-1, rows.shape[1], -1))


def _right_sides(cross: Tensor, block: int, blocks: Tensor, columns: Tensor) -> Tensor:
    """The right-hand sides ``(B, S, block)`` of some blocks at their columns ``(B, S)``."""
    by_block = cross.view(-1, block, cross.shape[1])[blocks]
    return by_block.gather(2, columns[:, None].expand(-1, block, -1)).transpose(1, 2)


def _diagonal_blocks(matrices: Tensor, width: int) -> Tensor:
    units = matrices.shape[1] // width
    return matrices.view(-1, units, width, units, width).diagonal(dim1=1, dim2=3).movedim(-1, 1)
