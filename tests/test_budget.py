"""Choosing candidates for a budget, against trying all choices."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_classpruning.sparsity.budget import solve_budget

COSTS = torch.tensor([0.3, 0.55, 1.01])


def average(classes: torch.Tensor, costs: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    weights = torch.ones(len(classes)) if weights is None else weights
    return float((weights.double() * costs.double()[classes]).sum() / weights.double().sum())


def total(scores: torch.Tensor, classes: torch.Tensor, weights: torch.Tensor) -> float:
    return float((weights.double() * scores.double()[torch.arange(len(classes)), classes]).sum())


@st.composite
def problems(draw):
    tiles, candidates = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    # As classifiers score: never worse with a dearer candidate.
    scores = torch.rand(tiles, candidates, generator=generator).cumsum(1) ** draw(st.sampled_from([0.5, 1, 3]))
    costs = (0.1 + torch.rand(candidates, generator=generator)).cumsum(0) / candidates
    weights = torch.randint(1, 5, (tiles,), generator=generator).float()
    return scores, costs, weights, draw(st.floats(0.01, 1.5))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_no_choice_of_the_same_cost_scores_higher(problem):
    scores, costs, weights, budget = problem
    classes = solve_budget(scores, costs, budget, weights)
    spent, scored = average(classes, costs, weights), total(scores, classes, weights)
    step = max(float((weights / weights.sum()).max()) * float(costs[-1] - costs[0]), 0.0)
    if float(costs[0]) >= budget:
        assert (classes == 0).all()
        return
    assert spent <= budget + step / 2 + 1e-9
    affordable = [
        choice
        for choice in map(torch.tensor, itertools.product(range(len(costs)), repeat=len(scores)))
        # What costs a step less leaves room for rounding to whole images.
        if average(choice, costs, weights) <= min(budget, spent) - step + 1e-12
    ]
    best = max((total(scores, choice, weights) for choice in affordable), default=float('-inf'))
    assert scored >= best - 1e-9


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_budget_is_met_to_within_one_image(problem):
    scores, costs, weights, budget = problem
    classes = solve_budget(scores, costs, budget, weights)
    spent = average(classes, costs, weights)
    step = float((weights / weights.sum()).max()) * float(costs[-1] - costs[0])
    wanted = min(max(budget, float(costs[0])), average(scores.argmax(1), costs, weights))
    assert abs(spent - wanted) <= step + 1e-9


def test_more_budget_never_buys_less():
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(40, 3, generator=generator).cumsum(1)
    spent = [average(solve_budget(scores, COSTS, budget / 50), COSTS) for budget in range(10, 60)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(spent))


def test_many_equal_images_share_out_a_budget():
    scores = torch.tensor([[0.0, 1.0, 1.5]]).repeat(100, 1)
    for budget in (0.35, 0.5, 0.7, 0.9):
        assert average(solve_budget(scores, COSTS, budget), COSTS) == pytest.approx(budget, abs=0.01 * 0.71)


def test_the_image_that_gains_most_gets_the_dearer_candidate():
    scores = torch.tensor([[0.0, 0.1], [0.0, 5.0], [0.0, 0.2], [0.0, 1.0]])
    assert solve_budget(scores, torch.tensor([0.0, 1.0]), 0.5).tolist() == [0, 1, 0, 1]


def test_a_large_image_counts_for_more():
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    weights = torch.tensor([9.0, 1.0])
    classes = solve_budget(scores, torch.tensor([0.0, 1.0]), 0.1, weights)
    assert classes.tolist() == [0, 1]


def test_budgets_outside_the_candidates_give_the_ends():
    scores = torch.rand(5, 3).cumsum(1)
    assert (solve_budget(scores, COSTS, 0.01) == 0).all()
    assert (solve_budget(scores, COSTS, 9.0) == 2).all()


def test_one_candidate_is_always_chosen():
    assert solve_budget(torch.rand(3, 1), torch.tensor([0.6]), 0.1).tolist() == [0, 0, 0]


def test_of_equal_scores_the_cheaper_candidate_is_chosen():
    assert solve_budget(torch.zeros(2, 3), COSTS, 2.0).tolist() == [0, 0]
