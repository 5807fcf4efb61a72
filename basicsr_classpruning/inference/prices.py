"""What candidates cost, as budgets count it: MACs, or seconds on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.routing.budget import TOLERANCE
from basicsr_classpruning.routing.network import RoutedNetwork


@dataclass(frozen=True)
class Prices:
    """Costs of an input pixel, in MACs or seconds."""

    candidates: np.ndarray
    """``(K,)``, of each candidate, the classifier not included."""
    runs_base: np.ndarray
    """``(K,)``: whether it runs layers of the base network; what does not, such as a bypass, runs on the whole image
    where patches are routed."""
    classifier: float
    dense: float
    """Of the dense network: budgets are fractions of it."""
    unit: str
    """``macs`` or ``time``."""
    ring: float = 1.0
    """What a pixel of the ring around patches costs, as a multiple of one that its candidate restores: more than 1 in
    time, since at the border of what runs kernels compute more than they are asked for."""

    @property
    def running(self) -> np.ndarray:
        """``(K,)``: what a candidate costs only in those cells that it runs in."""
        return np.where(self.runs_base, self.candidates, 0.0)

    @property
    def everywhere(self) -> float:
        """What is computed in every cell: the classifier, and the candidates that run nothing of the base network."""
        return self.classifier + float(self.candidates[~self.runs_base].sum())

    @property
    def of_tiles(self) -> np.ndarray:
        """Costs ``(K,)`` of routed tiles, as fractions of the dense network's."""
        return (self.candidates + self.classifier) / self.dense

    @property
    def of_patches(self) -> np.ndarray:
        """Costs ``(K,)`` of routed patches without their rings, as fractions of the dense network's."""
        return (self.running + self.everywhere) / self.dense

    def check(self, budget: float, patches: bool) -> None:
        """Raises UsageError for a budget out of range: below the cheapest candidate, or above the dearest."""
        costs = self.of_patches if patches else self.of_tiles
        least, most = float(costs.min()), max(float(costs.max()), 1.0)
        if not least * (1 - TOLERANCE) <= budget <= most * (1 + TOLERANCE):
            what = 'of the dense MACs' if self.unit == 'macs' else "of the dense network's time"
            raise UsageError(f'{budget:g} cannot be met: allowed is {least:.3g} to {most:.3g} {what}', key='budget')


def prices_in_macs(network: RoutedNetwork) -> Prices:
    """Counted MACs."""
    info = network.info
    runs = np.array([subnetwork.runs_base for subnetwork in network.subnetworks])
    return Prices(np.array(info.macs), runs, info.macs_classifier, info.macs_dense, 'macs')
