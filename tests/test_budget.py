"""Budgets: met, as good as brute force where tiles allow, refused out of range."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.routing.budget import deal_by_chance, least_errors, solve_budget, solve_for_mean_psnr
from basicsr_classpruning.routing.errors import errors_in_image, expected_errors

COSTS = {2: np.array([0.3, 1.01]), 3: np.array([0.26, 0.51, 1.01]), 4: np.array([0.26, 0.4, 0.7, 1.01])}


def average_cost(classes: np.ndarray, costs: np.ndarray, sizes: np.ndarray) -> float:
    """Average cost of an allocation, weighted by the tiles' sizes."""
    return float((sizes * costs[classes]).sum() / sizes.sum())


def rising_scores(tiles, classes, rng):
    """Denser is never worse, as the classifier predicts it; not concave in general."""
    return -np.cumsum(rng.exponential(rng.exponential(size=(tiles, 1)), (tiles, classes)), axis=1)[:, ::-1]


def total(scores, classes):
    return scores[np.arange(len(scores)), classes].sum()


def any_scores(tiles, classes, rng):
    """A denser class may be worse, as bypasses and noise make it."""
    return rng.standard_normal((tiles, classes)) * rng.exponential(size=(tiles, 1))


@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([2, 3, 4]),
    tiles=st.integers(1, 6),
    share=st.floats(0, 1),
    rising=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_against_brute_force(seed, classes, tiles, share, rising):
    rng = np.random.default_rng(seed)
    scores = (rising_scores if rising else any_scores)(tiles, classes, rng)
    costs, sizes = COSTS[classes], rng.uniform(0.5, 2, tiles)
    budget = costs[0] + share * (costs[-1] / 1.011 - costs[0])
    found = solve_budget(-scores, costs, sizes, budget)
    assert average_cost(found, costs, sizes) <= budget * (1 + 1e-6)
    every = [np.array(c) for c in itertools.product(range(classes), repeat=tiles)]
    within = [c for c in every if average_cost(c, costs, sizes) <= budget * (1 + 1e-9)]
    # None of those that differ in at most two tiles is better.
    near = max(total(scores, c) for c in within if (c != found).sum() <= 2)
    assert total(scores, found) >= near - 1e-9
    best = max(total(scores, c) for c in within)
    if best == max(total(scores, c) for c in every):  # the budget is large enough for all that helps
        assert total(scores, found) == pytest.approx(best)


def test_few_tiles_are_nearly_as_good_as_brute_force():
    rng = np.random.default_rng(5)
    lost = []
    for _ in range(60):
        scores, costs, sizes = any_scores(6, 3, rng), COSTS[3], np.ones(6)
        budget = rng.uniform(0.3, 0.9)
        every = [np.array(c) for c in itertools.product(range(3), repeat=6)]
        best = max(total(scores, c) for c in every if average_cost(c, costs, sizes) <= budget)
        worst = total(scores, np.zeros(6, int))
        found = total(scores, solve_budget(-scores, costs, sizes, budget))
        lost.append((best - found) / max(best - worst, 1e-9))
    assert np.mean(lost) < 0.01


def test_costs_in_any_order():
    """Measured times need not rise with the density."""
    rng = np.random.default_rng(8)
    scores, sizes = any_scores(30, 4, rng), np.ones(30)
    order = np.array([2, 0, 3, 1])
    for budget in (0.3, 0.5, 0.8):
        found = solve_budget(-scores[:, order], COSTS[4][order], sizes, budget)
        assert (order[found] == solve_budget(-scores, COSTS[4], sizes, budget)).all()


def test_what_is_better_at_the_same_cost_is_free():
    errors = np.tile([3.0, 1.0, 0.5], (20, 1))
    classes = solve_budget(errors, np.array([0.3, 0.3, 1.0]), np.ones(20), 0.31)
    assert (classes == 1).all()


def test_hull_solution_is_exact_where_the_budget_falls_on_a_step():
    """Concave scores and a budget that the best allocation spends exactly: brute force finds nothing better."""
    rng = np.random.default_rng(3)
    costs = np.array([0.25, 0.5, 0.75, 1.0])
    for _ in range(20):
        scores = -np.sort(-rng.exponential(size=(5, 3)), axis=1).cumsum(axis=1)
        scores = np.concatenate([np.zeros((5, 1)), -scores], axis=1) * -1
        sizes = np.ones(5)
        budget = 0.25 + 0.25 * 6 / 5
        every = [np.array(c) for c in itertools.product(range(4), repeat=5)]
        best = max(total(scores, c) for c in every if average_cost(c, costs, sizes) <= budget + 1e-9)
        assert total(scores, solve_budget(-scores, costs, sizes, budget)) == pytest.approx(best)


@pytest.mark.parametrize('budget', np.linspace(0.27, 0.95, 9))
@pytest.mark.parametrize('tiles', [60, 3000])
def test_budget_is_met_to_one_percent(tiles, budget):
    rng = np.random.default_rng(tiles)
    scores, costs = rising_scores(tiles, 4, rng), COSTS[4]
    for sizes in (np.ones(tiles), rng.uniform(0.5, 2, tiles)):
        spent = average_cost(solve_budget(-scores, costs, sizes, budget), costs, sizes)
        assert spent == pytest.approx(budget, rel=0.01)


def test_more_budget_never_lowers_the_total():
    rng = np.random.default_rng(0)
    scores, costs, sizes = rising_scores(400, 4, rng), COSTS[4], np.ones(400)
    totals = [total(scores, solve_budget(-scores, costs, sizes, b)) for b in np.linspace(0.26, 1.01, 60)]
    assert (np.diff(totals) >= -1e-9).all()


def test_no_more_is_spent_on_worse():
    rng = np.random.default_rng(2)
    scores = any_scores(400, 4, rng)
    best = least_errors(-scores, COSTS[4])
    assert (best == scores.argmax(axis=1)).all()
    needed = average_cost(best, COSTS[4], np.ones(400))
    for budget in (needed * 1.01, 0.9, 1.0, 1.01):
        assert (solve_budget(-scores, COSTS[4], np.ones(400), budget) == best).all()
    below = solve_budget(-scores, COSTS[4], np.ones(400), needed * 0.98)
    assert average_cost(below, COSTS[4], np.ones(400)) == pytest.approx(needed * 0.98, rel=0.005)
    assert (below != best).any()


def test_ends_of_the_range():
    scores, sizes = np.tile([0.0, 1.0, 2.0], (4, 1)), np.ones(4)
    assert (solve_budget(-scores, COSTS[3], sizes, 0.26) == 0).all()
    assert (solve_budget(-scores, COSTS[3], sizes, 0.258) == 0).all()  # within 1 %
    assert (solve_budget(-scores, COSTS[3], sizes, 1.0) == 2).all()  # the classifier's own MACs come on top
    for budget in (0.2, 1.1, float('nan'), -1.0):
        with pytest.raises(UsageError, match=r'allowed is 0\.26 to 1\.01'):
            solve_budget(-scores, COSTS[3], sizes, budget)


def test_equal_scores_are_solved_deterministically():
    scores = np.zeros((40, 3))
    first = solve_budget(-scores, COSTS[3], np.ones(40), 0.6)
    assert (first == solve_budget(-scores, COSTS[3], np.ones(40), 0.6)).all()


def test_deal_by_chance_keeps_the_shares():
    classes = np.repeat([0, 1, 2], [10, 20, 30])
    dealt = deal_by_chance(classes, np.random.default_rng(0))
    assert sorted(dealt) == sorted(classes)
    assert (dealt != classes).any()
    assert (dealt == deal_by_chance(classes, np.random.default_rng(0))).all()


def test_errors_in_an_image_are_relative_to_its_own_error():
    errors = np.array([[3.0, 2.0, 1.0], [5.0, 5.0, 3.0]])
    wanted = errors / 3.5
    np.testing.assert_allclose(errors_in_image(errors), wanted)
    np.testing.assert_allclose(errors_in_image(1e-4 * errors), wanted)


def test_relative_errors_raise_the_mean_psnr_where_absolute_ones_do_not():
    # A noisy picture, whose error hardly grows in proportion, and a clean one, whose error doubles.
    errors = [np.array([[110.0, 100.0]]), np.array([[2.0, 1.0]])]
    costs, sizes = np.array([0.25, 1.0]), np.ones(2)

    def mean_psnr(weighed):
        classes = solve_budget(weighed, costs, sizes, 0.625)
        return np.mean([-10 * np.log10(error[0, k]) for error, k in zip(errors, classes)])

    absolute = mean_psnr(np.concatenate(errors))
    relative = mean_psnr(np.concatenate([errors_in_image(error) for error in errors]))
    assert relative > absolute + 1


@pytest.mark.parametrize('seed', range(8))
def test_images_that_share_a_budget_get_a_greater_mean_psnr_than_by_the_sum_of_errors(seed):
    rng = np.random.default_rng(seed)
    costs = np.array([0.0, 0.4, 1.0])
    errors = [np.sort(10 ** rng.uniform(0, 1.5, (2, 3)), axis=1)[:, ::-1] for _ in range(3)]
    errors = [errors_in_image(each) / len(each) for each in errors]
    allocations = np.array(list(itertools.product(range(3), repeat=6)))
    allocations = allocations[costs[allocations].mean(axis=1) <= 0.5]

    def totals(weighed, allocation):
        return np.array([each[[0, 1], own].sum() for each, own in zip(weighed, np.split(allocation, 3))])

    def solve(weighed):
        return np.split(min(allocations, key=lambda one: totals(weighed, one).sum()), 3)

    def mean_psnr(allocation):
        return -10 * np.log10(totals(errors, allocation)).mean()

    plain, found = (np.concatenate(each) for each in (solve(errors), solve_for_mean_psnr(solve, errors)))
    best = max(map(mean_psnr, allocations))
    assert mean_psnr(plain) <= mean_psnr(found) <= best
    assert mean_psnr(found) > best - 0.3


def test_denser_subnetworks_are_expected_to_be_better_and_a_bypass_is_believed():
    predicted = np.array([[0.5, -0.2, 0.1, 0.0], [-0.1, 0.4, 0.2, 0.0]])
    costs, runs = np.array([0.01, 0.2, 0.6, 1.0]), np.array([False, True, True, True])
    found = expected_errors(predicted, costs, runs)
    np.testing.assert_allclose(found, [[0.5, 0.1, 0.1, 0.0], [-0.1, 0.4, 0.2, 0.0]], atol=1.1e-3)
    assert (np.diff(found[:, 1:], axis=1) < 0).all()
    assert (found[:, 0] == predicted[:, 0]).all()
    # So a budget goes to the first tile, and is not spent on the second.
    assert solve_budget(found, costs, np.ones(2), 0.9).tolist() == [3, 0]
    assert solve_budget(predicted, costs, np.ones(2), 0.9).tolist() == [1, 0]
