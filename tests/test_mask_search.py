"""Masks chosen on a quadratic loss, against brute force over all masks."""

from __future__ import annotations

import itertools

import pytest
import torch

from basicsr_classpruning.sparsity import mask_search
from basicsr_classpruning.sparsity.masks import mask_of, satisfies
from basicsr_classpruning.sparsity.nested_search import nested_ranks
from basicsr_classpruning.sparsity.pattern import Pattern


def random_problem(outputs: int, pattern: Pattern, channels: int, taps: int, seed: int) -> mask_search.QuadraticProblem:
    """A badly conditioned problem, as neighbouring pixels make it; its columns are in the order of the units."""
    generator = torch.Generator().manual_seed(seed)
    size = channels * taps
    layout = mask_search.lay_out(channels, taps, pattern)
    samples = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    samples = samples @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    hessian = samples.T @ samples / len(samples)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    centre = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    padded = layout.spread_square(hessian)
    padded.diagonal()[layout.padding] = 1
    cross = layout.spread(centre @ hessian)
    n, m = pattern.n // pattern.unit, pattern.m // pattern.unit
    return mask_search.QuadraticProblem(padded, cross, n, m, layout.width, pattern.block, layout.short)


def block_losses(problem: mask_search.QuadraticProblem, mask: torch.Tensor) -> torch.Tensor:
    losses = mask_search.loss(problem, mask_search.least_squares(problem, mask))
    return losses.view(-1, problem.block).sum(1)


def choices_of_group(problem: mask_search.QuadraticProblem, group: int) -> list[list[bool]]:
    """All masks of a group; a shorter last unit and padding follow the whole units, the kept part of padding first."""
    size, kept, dropped = problem.m, problem.n, 0
    if problem.short and (group + 1) % problem.short.every == 0:
        size, kept, dropped = problem.short.size, problem.short.kept, problem.short.dropped
    padding = [dropped <= place < dropped + problem.n - kept for place in range(problem.m - size)]
    return [
        [place in chosen for place in range(size)] + padding for chosen in itertools.combinations(range(size), kept)
    ]


def best_losses(problem: mask_search.QuadraticProblem) -> torch.Tensor:
    """The least loss of each block over all its masks."""
    groups = [choices_of_group(problem, group) for group in range(problem.units // problem.m)]
    blocks = problem.cross.shape[0] // problem.block
    tried = [
        block_losses(problem, torch.tensor([list(itertools.chain(*choice))] * blocks))
        for choice in itertools.product(*groups)
    ]
    return torch.stack(tried).min(0).values


PROBLEMS = [
    (Pattern(1, 4), 8, 1),
    (Pattern(2, 4), 12, 1),
    (Pattern(3, 4), 4, 2),
    (Pattern(2, 4, block=2), 8, 1),
    (Pattern(2, 4, share_taps=True), 8, 3),
    (Pattern(1, 4, block=4, share_taps=True), 8, 2),
    # The last group is shorter: it keeps some, none, all, or is the only one.
    (Pattern(1, 4), 11, 1),
    (Pattern(2, 4), 6, 2),
    (Pattern(1, 4), 9, 1),
    (Pattern(3, 4, block=2), 9, 1),
    (Pattern(2, 4, block=2, share_taps=True), 6, 3),
    (Pattern(4, 16), 10, 1),
    # Units of several channels, whose last may be shorter: dropped, or kept with all others.
    (Pattern(4, 8, unit=2), 16, 1),
    (Pattern(4, 8, unit=4), 24, 1),
    (Pattern(4, 8, block=2, unit=2), 8, 2),
    (Pattern(2, 8, share_taps=True, unit=2), 8, 2),
    (Pattern(4, 8, unit=2), 13, 1),
    (Pattern(6, 8, unit=2), 15, 1),
    (Pattern(4, 16, unit=4), 11, 1),
    (Pattern(12, 16, block=2, unit=4), 13, 1),
]


@pytest.mark.parametrize(('pattern', 'channels', 'taps'), PROBLEMS, ids=str)
def test_masks_are_near_the_best_of_all_masks(pattern: Pattern, channels: int, taps: int) -> None:
    ratios = []
    for seed in range(12):
        problem = random_problem(8, pattern, channels, taps, seed)
        greedy = mask_search.greedy_mask(problem)
        found = block_losses(problem, mask_search.exchange(problem, greedy, rounds=6))
        best = best_losses(problem)
        assert (found >= best * (1 - 1e-9)).all()
        assert (found <= block_losses(problem, greedy) * (1 + 1e-9)).all()
        ratios.append((found / best).mean())
    assert torch.stack(ratios).mean() < 1.15


@pytest.mark.parametrize(('pattern', 'channels', 'taps'), PROBLEMS, ids=str)
def test_no_single_exchange_improves_the_final_mask(pattern: Pattern, channels: int, taps: int) -> None:
    problem = random_problem(4, pattern, channels, taps, seed=1)
    mask = mask_search.exchange(problem, mask_search.greedy_mask(problem), rounds=20)
    final = block_losses(problem, mask)
    for group in range(problem.units // problem.m):
        allowed = choices_of_group(problem, group)
        places = range(group * problem.m, (group + 1) * problem.m)
        assert all(row.tolist() in allowed for row in mask[:, places])
        for out, into in itertools.permutations(places, 2):
            other = mask.clone()
            other[:, [out, into]] = mask[:, [into, out]]
            if any(row.tolist() not in allowed for row in other[:, places]):
                continue
            other[:, [out, into]] = mask[:, [into, out]]
            assert (block_losses(problem, other) >= final * (1 - 1e-4)).all()


@pytest.mark.parametrize('width', [1, 3])
def test_change_by_an_exchange_is_that_of_the_least_squares_loss(width: int) -> None:
    pattern = Pattern(1, 2, block=2, share_taps=True)
    problem = random_problem(2, pattern, 4, width, seed=3)
    mask = torch.tensor([[True, False, False, True]])
    tableau = _tableau(problem, mask)

    changes = {}
    for out, into in ((0, 1), (3, 2)):
        other = mask.clone()
        other[0, [out, into]] = mask[0, [into, out]]
        changes[out, into] = float(block_losses(problem, other) - block_losses(problem, mask))
        blocks = {
            (i, j): tableau[:, i * width : (i + 1) * width, j * width : (j + 1) * width]
            for i in (out, into)
            for j in (out, into)
        }
        sides = {i: tableau[:, i * width : (i + 1) * width, 4 * width :] for i in (out, into)}
        predicted = mask_search.exchange_change(
            blocks[out, out], blocks[out, into], blocks[into, out], blocks[into, into], sides[out], sides[into]
        )
        assert float(predicted) == pytest.approx(changes[out, into], rel=1e-8)


@pytest.mark.parametrize('width', [1, 2])
def test_pivoting_a_tableau_is_factorising_it_afresh(width: int) -> None:
    problem = random_problem(1, Pattern(2, 4, share_taps=True), 4, width, seed=4)
    before, after = torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]])
    pivoted = mask_search.pivot(_tableau(problem, before), torch.tensor([1]), width)
    pivoted = mask_search.pivot(pivoted, torch.tensor([2]), width)
    torch.testing.assert_close(pivoted, _tableau(problem, after))


def _tableau(problem: mask_search.QuadraticProblem, mask: torch.Tensor) -> torch.Tensor:
    """The tableau of one block's mask, from the definition: kept columns solved for, in their places."""
    kept = mask[0].repeat_interleave(problem.width)
    hessian, sides = problem.hessian, -problem.cross.T
    tableau = torch.empty(len(hessian), len(hessian) + sides.shape[1], dtype=torch.float64)
    inverse = torch.linalg.inv(hessian[kept][:, kept])
    square, constants = tableau[:, : len(hessian)], tableau[:, len(hessian) :]
    across = hessian[kept][:, ~kept]
    square[torch.outer(kept, kept)] = inverse.flatten()
    square[torch.outer(kept, ~kept)] = (-inverse @ across).flatten()
    square[torch.outer(~kept, kept)] = (across.T @ inverse).flatten()
    square[torch.outer(~kept, ~kept)] = (hessian[~kept][:, ~kept] - across.T @ inverse @ across).flatten()
    constants[kept] = -inverse @ sides[kept]
    constants[~kept] = sides[~kept] - across.T @ inverse @ sides[kept]
    return tableau[None]


@pytest.mark.parametrize(('pattern', 'channels', 'taps'), PROBLEMS, ids=str)
def test_solved_weights_keep_to_the_pattern(pattern: Pattern, channels: int, taps: int) -> None:
    generator = torch.Generator().manual_seed(5)
    samples = torch.randn(200, channels * taps, generator=generator, dtype=torch.float64)
    hessian = samples.T @ samples / 200
    dense = torch.randn(8, channels * taps, generator=generator, dtype=torch.float64)
    weights = mask_search.solve(hessian, dense @ hessian, channels, pattern, rounds=3).view(8, channels, taps)
    assert satisfies(weights, pattern)
    assert ((weights != 0).sum(1) == pattern.kept(channels)).all()


@pytest.mark.parametrize(('pattern', 'channels', 'taps'), PROBLEMS, ids=str)
def test_gradient_vanishes_on_the_kept_weights(pattern: Pattern, channels: int, taps: int) -> None:
    problem = random_problem(4, pattern, channels, taps, seed=2)
    mask = mask_search.greedy_mask(problem)
    weights = mask_search.least_squares(problem, mask)
    gradient = weights @ problem.hessian - problem.cross
    allowed = mask.repeat_interleave(problem.block, 0).repeat_interleave(problem.width, 1)
    assert gradient[allowed].abs().max() < 1e-8 * problem.cross.abs().max()
    assert (weights[~allowed] == 0).all()


NESTED = [
    [Pattern(1, 4), Pattern(2, 4), Pattern(3, 4)],
    [Pattern(2, 4, block=2), Pattern(1, 4, block=2)],
    [Pattern(1, 4, block=2, share_taps=True), Pattern(3, 4, block=2, share_taps=True)],
    [Pattern(2, 8, unit=2), Pattern(4, 8, unit=2), Pattern(6, 8, unit=2)],
    [Pattern(4, 8, unit=4)],
    [Pattern(4, 8, block=2, share_taps=True, unit=2), Pattern(2, 8, block=2, share_taps=True, unit=2)],
]


def choices_of_channels(group: range, pattern: Pattern, channels: int) -> list[list[int]]:
    """The channels that a mask may keep of a group."""
    kept = pattern.n if len(group) == pattern.m else pattern.kept_of_rest(channels)
    units = [group[first : first + pattern.unit] for first in range(0, len(group), pattern.unit)]
    chosen = itertools.combinations(units, -(-kept // pattern.unit))
    return [all_of for all_of in (list(itertools.chain(*some)) for some in chosen) if len(all_of) == kept]


@pytest.mark.parametrize('channels', [8, 7, 5])
@pytest.mark.parametrize('patterns', NESTED, ids=str)
def test_nested_masks_are_near_the_best_of_all_masks(patterns: list[Pattern], channels: int) -> None:
    """The sparsest candidate is free in its choice, each denser one is bound to what the sparser ones keep."""
    taps, outputs = 2, 4
    size = channels * taps
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in patterns:
        samples = torch.randn(200, size, generator=generator, dtype=torch.float64)
        samples = samples @ torch.randn(size, size, generator=generator, dtype=torch.float64)
        losses.append((samples.T @ samples / 200, torch.randn(outputs, size, generator=generator, dtype=torch.float64)))
    dense = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    losses = [(hessian, dense @ hessian + 0.1 * noise) for hessian, noise in losses]
    ranks = nested_ranks(losses, dense, channels, patterns)
    assert ranks.dtype == torch.uint8

    def block_loss(mask: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        weights = dense * mask
        error = weights - torch.linalg.solve(hessian, cross.T).T
        by_row = ((error @ hessian) * error).sum(1)
        return by_row.view(-1, patterns[0].block).sum(1)

    sparsest = min(range(len(patterns)), key=lambda k: patterns[k].n)

    def mask_at(pattern: Pattern) -> torch.Tensor:
        return mask_of(ranks.view(outputs, channels, taps), pattern).flatten(1)

    for pattern in patterns:
        mask = mask_at(pattern).view(outputs, channels, taps)
        assert satisfies(mask.float(), pattern)
        assert (mask.sum(1) == pattern.kept(channels)).all()
    found = block_loss(mask_at(patterns[sparsest]), *losses[sparsest])
    best = torch.full_like(found, torch.inf)
    columns = 1 if patterns[0].share_taps else taps
    in_groups = [
        choices_of_channels(range(first, min(first + patterns[0].m, channels)), patterns[sparsest], channels)
        for first in range(0, channels, patterns[0].m)
    ]
    for choice in itertools.product(*in_groups * columns):
        mask = torch.zeros(columns, channels)
        for place, kept in enumerate(choice):
            mask[place // len(in_groups), list(kept)] = 1
        mask = mask.T.expand(channels, taps).reshape(1, size)
        best = torch.minimum(best, block_loss(mask, *losses[sparsest]))
    assert (found >= best - 1e-9).all()
    assert (found / best).mean() < 1.1
