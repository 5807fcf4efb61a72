"""Masks chosen on a quadratic loss, against brute force over all masks."""

from __future__ import annotations

import itertools

import pytest
import torch

from basicsr_classpruning.sparsity import mask_search
from basicsr_classpruning.sparsity.masks import satisfies
from basicsr_classpruning.sparsity.nested_search import nested_ranks
from basicsr_classpruning.sparsity.pattern import Pattern


def random_problem(outputs: int, pattern: Pattern, channels: int, taps: int, seed: int) -> mask_search.QuadraticProblem:
    """A badly conditioned problem, as neighbouring pixels make it; its columns are in the order of the units."""
    generator = torch.Generator().manual_seed(seed)
    size = channels * taps
    samples = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    samples = samples @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    hessian = samples.T @ samples / len(samples)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    centre = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    width = taps if pattern.share_taps else 1
    return mask_search.QuadraticProblem(hessian, centre @ hessian, pattern.n, pattern.m, width, pattern.block)


def block_losses(problem: mask_search.QuadraticProblem, mask: torch.Tensor) -> torch.Tensor:
    losses = mask_search.loss(problem, mask_search.least_squares(problem, mask))
    return losses.view(-1, problem.block).sum(1)


def best_losses(problem: mask_search.QuadraticProblem) -> torch.Tensor:
    """The least loss of each block over all its masks."""
    groups = problem.units // problem.m
    in_group = [
        [place in kept for place in range(problem.m)] for kept in itertools.combinations(range(problem.m), problem.n)
    ]
    blocks = problem.cross.shape[0] // problem.block
    tried = [
        block_losses(problem, torch.tensor([list(itertools.chain(*choice))] * blocks))
        for choice in itertools.product(in_group, repeat=groups)
    ]
    return torch.stack(tried).min(0).values


PROBLEMS = [
    (Pattern(1, 4), 8, 1),
    (Pattern(2, 4), 12, 1),
    (Pattern(3, 4), 4, 2),
    (Pattern(2, 4, block=2), 8, 1),
    (Pattern(2, 4, share_taps=True), 8, 3),
    (Pattern(1, 4, block=4, share_taps=True), 8, 2),
]


@pytest.mark.parametrize(('pattern', 'channels', 'taps'), PROBLEMS, ids=str)
def test_masks_are_near_the_best_of_all_masks(pattern: Pattern, channels: int, taps: int) -> None:
    ratios = []
    for seed in range(6):
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
        places = range(group * problem.m, (group + 1) * problem.m)
        for out, into in itertools.permutations(places, 2):
            other = mask.clone()
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
]


@pytest.mark.parametrize('patterns', NESTED, ids=str)
def test_nested_masks_are_near_the_best_of_all_masks(patterns: list[Pattern]) -> None:
    """The cheapest candidate is free in its choice, each dearer one is bound to what the cheaper ones keep."""
    channels, taps, outputs = 8, 2, 4
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in patterns:
        samples = torch.randn(200, 16, generator=generator, dtype=torch.float64)
        samples = samples @ torch.randn(16, 16, generator=generator, dtype=torch.float64)
        losses.append((samples.T @ samples / 200, torch.randn(outputs, 16, generator=generator, dtype=torch.float64)))
    dense = torch.randn(outputs, 16, generator=generator, dtype=torch.float64)
    losses = [(hessian, dense @ hessian + 0.1 * noise) for hessian, noise in losses]
    ranks = nested_ranks(losses, dense, channels, patterns)
    assert ranks.dtype == torch.uint8

    def block_loss(mask: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        weights = dense * mask
        error = weights - torch.linalg.solve(hessian, cross.T).T
        by_row = ((error @ hessian) * error).sum(1)
        return by_row.view(-1, patterns[0].block).sum(1)

    cheapest = min(range(len(patterns)), key=lambda k: patterns[k].n)
    for pattern in patterns:
        mask = ranks < pattern.n
        assert satisfies(mask.view(outputs, channels, taps).float(), pattern)
        groups = mask.view(outputs, 2, 4, taps)
        assert (groups.sum(2) == pattern.n).all()
    found = block_loss(ranks < patterns[cheapest].n, *losses[cheapest])
    best = torch.full_like(found, torch.inf)
    in_group = list(itertools.combinations(range(4), patterns[cheapest].n))
    units = 1 if patterns[0].share_taps else taps
    for choice in itertools.product(in_group, repeat=2 * units):
        mask = torch.zeros(2, units, 4)
        for place, kept in enumerate(choice):
            mask[place // units, place % units, list(kept)] = 1
        mask = mask.transpose(1, 2).expand(2, 4, taps).reshape(1, 16)
        best = torch.minimum(best, block_loss(mask, *losses[cheapest]))
    assert (found >= best - 1e-9).all()
    assert (found / best).mean() < 1.1
