"""Budgets: met, as good as brute force where tiles allow, refused out of range."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.routing.budget import deal_by_chance, solve_budget
from basicsr_classpruning.routing.errors import errors_in_image

COSTS = {2: np.array([0.3, 1.01]), 3: np.array([0.26, 0.51, 1.01]), 4: np.array([0.26, 0.4, 0.7, 1.01])}


def average_cost(classes: np.ndarray, costs: np.ndarray, sizes: np.ndarray) -> float:
    """Average cost of an allocation, weighted by the tiles' sizes."""
    return float((sizes * costs[classes]).sum() / sizes.sum())


def rising_scores(tiles, classes, rng):
    """Denser is never worse, as the classifier predicts it; not concave in general."""
    return -np.cumsum(rng.exponential(rng.exponential(size=(tiles, 1)), (tiles, classes)), axis=1)[:, ::-1]


def total(scores, classes):
    return scores[np.arange(len(scores)), classes].sum()


@given(seed=st.integers(0, 10_000), classes=st.sampled_from([2, 3, 4]), tiles=st.integers(1, 6), share=st.floats(0, 1))
@example(seed=0, classes=3, tiles=1, share=0.328125)  # a single tile, whose nearest class is above the budget
@settings(max_examples=150, deadline=None)
def test_against_brute_force(seed, classes, tiles, share):
    rng = np.random.default_rng(seed)
    scores, costs, sizes = rising_scores(tiles, classes, rng), COSTS[classes], np.ones(tiles)
    budget = costs[0] + share * (costs[-1] - costs[0])
    found = solve_budget(-scores, costs, sizes, budget)
    every = [np.array(c) for c in itertools.product(range(classes), repeat=tiles)]
    averages = np.array([average_cost(c, costs, sizes) for c in every])
    totals = np.array([total(scores, c) for c in every])
    spent = average_cost(found, costs, sizes)
    assert spent <= budget * 1.01 + 1e-9
    # No single step fits any more.
    left = (budget - spent) * tiles
    steps = (costs[None] - costs[found][:, None])[(costs[None] > costs[found][:, None])]
    assert left <= 0 or steps.size == 0 or steps.min() > left * (1 - 1e-9)
    # The budget is met to 1 %, or else as nearly as moving any two tiles allows.
    pairs = averages[np.array([(c != found).sum() <= 2 for c in every])]
    nearest = np.abs(pairs[pairs <= budget * 1.01] - budget).min()
    assert abs(spent - budget) <= max(0.01 * budget, nearest) + 1e-9
    assert total(scores, found) <= totals[averages <= budget * 1.01 + 1e-9].max() + 1e-9


def test_few_tiles_meet_the_budget_where_they_can():
    rng = np.random.default_rng(5)
    misses = 0
    for _ in range(200):
        scores, costs, sizes = rising_scores(9, 3, rng), COSTS[3], np.ones(9)
        budget = rng.uniform(0.35, 0.9)
        spent = average_cost(solve_budget(-scores, costs, sizes, budget), costs, sizes)
        sums = {round(float(costs[list(c)].mean()), 6) for c in itertools.combinations_with_replacement(range(3), 9)}
        reachable = min(abs(value - budget) for value in sums if value <= 1.01 * budget)
        misses += abs(spent - budget) > max(reachable, 0.01 * budget) + 1e-6
    assert misses <= 4


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


def test_a_budget_is_spent_even_against_the_scores():
    scores = np.tile([0.0, -1.0, -2.0], (50, 1))
    classes = solve_budget(-scores, COSTS[3], np.ones(50), 0.8)
    assert average_cost(classes, COSTS[3], np.ones(50)) == pytest.approx(0.8, rel=0.01)


def test_ends_of_the_range():
    scores, sizes = np.zeros((4, 3)), np.ones(4)
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
    wanted = np.array([[2.0, 1.0, 0.0], [2.0, 2.0, 0.0]]) / 3.5
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
