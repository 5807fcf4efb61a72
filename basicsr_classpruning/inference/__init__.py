"""Restores pictures with built networks: tiling, routing to a budget, files, and comparing networks."""

from basicsr_classpruning.inference.restorer import Restorer, RestoreStats

__all__ = ['RestoreStats', 'Restorer']
