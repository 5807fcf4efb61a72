"""Which candidate restores what: the ladder of candidates, predicted errors, price, budget, and networks that route."""

from basicsr_classpruning.routing.budget import check_budget, deal_by_chance, least_errors, solve_budget
from basicsr_classpruning.routing.bypass import Bypass
from basicsr_classpruning.routing.errors import (
    LEAST_ERROR,
    errors_in_image,
    expected_errors,
    reference_errors,
    relative_errors,
)
from basicsr_classpruning.routing.ladder import Candidate, Ladder, SparseCandidate
from basicsr_classpruning.routing.network import ModelInfo, RoutedNetwork, Subnetwork
from basicsr_classpruning.routing.router import Router

__all__ = [
    'LEAST_ERROR',
    'Bypass',
    'Candidate',
    'Ladder',
    'ModelInfo',
    'RoutedNetwork',
    'Router',
    'SparseCandidate',
    'Subnetwork',
    'check_budget',
    'deal_by_chance',
    'errors_in_image',
    'expected_errors',
    'least_errors',
    'reference_errors',
    'relative_errors',
    'solve_budget',
]
