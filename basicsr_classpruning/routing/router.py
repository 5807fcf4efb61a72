"""The classifier at work: what it predicts of each candidate, and which candidate is chosen by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from basicsr_classpruning.routing.budget import solve_budget
from basicsr_classpruning.routing.errors import expected_errors, relative_errors
from basicsr_classpruning.routing.price import probabilities


class Classifier(Protocol):
    """What a classifier has to be: an ``nn.Module``, registered in ``ARCH_REGISTRY``, made with ``num_in_ch`` and
    ``num_classes``."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, K)`` below 0 of images ``(B, C, H, W)`` in [0, 1], sparsest candidate first: minus the squared
        error that each candidate is expected to leave, in the unit of ``ErrorRatioLoss``."""
        ...


@runtime_checkable
class ClassifierOfParts(Classifier, Protocol):
    """A classifier that tells the parts of an image apart; without these two it is asked about whole images only."""

    stride: int
    """Side of a part, in pixels."""

    def score_map(self, x: Tensor) -> Tensor:
        """Scores ``(B, K, ⌈H / stride⌉, ⌈W / stride⌉)`` of the parts, whose means are those of the image."""
        ...


@dataclass(frozen=True)
class Router:
    """A classifier with the price that its predictions are weighed against. Both may be learning."""

    classifier: nn.Module
    """A ``Classifier``."""
    log_price: Tensor
    """A scalar; see ``routing.price``."""
    runs_base: tuple[bool, ...] | None = None
    """Which candidates are subnetworks of the base network, of all that the classifier knows; None: all of them."""
    only: tuple[int, ...] | None = None
    """Places of the candidates that may be chosen, of all that the classifier knows; None: all of them."""

    @property
    def stride(self) -> int | None:
        """Side of the parts of images that the classifier tells apart, in pixels; None: it knows whole images only."""
        return self.classifier.stride if isinstance(self.classifier, ClassifierOfParts) else None

    def predicted_errors(self, x: Tensor) -> Tensor:
        """Squared error ``(B, K)``, above 0, that each candidate is expected to leave in images ``(B, C, H, W)``."""
        return self._of_those(-self.classifier(x))

    def _of_those(self, errors: Tensor) -> Tensor:
        return errors if self.only is None else errors[:, list(self.only)]

    def error_map(self, x: Tensor) -> Tensor:
        """Predicted errors of the parts of images, ``(B, K, h, w)``, whose means are those of the images.

        A classifier that knows no parts gives those of whole images, ``(B, K, 1, 1)``.
        """
        if isinstance(self.classifier, ClassifierOfParts):
            return self._of_those(-self.classifier.score_map(x))
        return self.predicted_errors(x)[:, :, None, None]

    def route(self, errors: Tensor, costs: Sequence[float], budget: float | None) -> Tensor:
        """Difficulty classes ``(B,)``: of the best trade at the price, or of the best total that meets a budget.

        Args:
            errors: relative ones, ``(B, K)``; see ``routing.errors``.
            costs: ``(K,)`` MACs, the classifier's included, as fractions of the dense network's.
            budget: average cost over all B, or None for the price.
        """
        if budget is None:
            return probabilities(errors, torch.tensor(costs, device=errors.device), self.log_price).argmax(dim=1)
        classes = self.solve(errors.detach().double().cpu().numpy(), np.array(costs), np.ones(len(errors)), budget)
        return torch.from_numpy(classes).to(errors.device)

    def solve(self, errors: np.ndarray, costs: np.ndarray, sizes: np.ndarray, budget: float) -> np.ndarray:
        """Classes ``(B,)`` that meet a budget, from relative errors ``(B, K)`` as they were predicted; see
        ``solve_budget`` and ``expected_errors``."""
        places = range(errors.shape[1]) if self.only is None else self.only
        runs = np.array([self.runs_base is None or self.runs_base[place] for place in places])
        return solve_budget(expected_errors(errors, costs, runs), costs, sizes, budget)

    @torch.no_grad()
    def classify(self, x: Tensor, costs: Sequence[float], budget: float | None) -> Tensor:
        """Difficulty classes ``(B,)`` of images ``(B, C, H, W)`` in [0, 1], each routed as a whole."""
        return self.route(relative_errors(self.predicted_errors(x)), costs, budget)
