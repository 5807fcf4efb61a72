"""The loss terms that ClassPruning adds to a restoration loss.

The paper speaks of two additional loss terms; their formulas here are this project's own reading.
"""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional

from basicsr_classpruning.routing.errors import reference_errors

_LEAST_ERROR = 1e-6  # in units of the scores: 90 dB, beyond what 8 bits can tell
_RATIO_SIDES = (2, 8)  # in parts of 8 pixels: what gets one candidate has 16 to 64
_RATIO_WEIGHT = 3.0
_LEAST_RATIO = 0.01  # of an error to the reference candidate's: where outputs are the truth, one leaves none


def batch_mean(values: Tensor) -> Tensor:
    """Mean over the first dimension, over all processes of a distributed run.

    The gradient is that of this process's part. As DistributedDataParallel averages gradients, a loss that is any
    function of this mean then has the gradient it would have in one process with the whole batch.
    """
    mean = values.mean(dim=0)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        total = mean.detach().clone()
        torch.distributed.all_reduce(total)
        mean = mean + (total / torch.distributed.get_world_size() - mean.detach())
    return mean


@LOSS_REGISTRY.register()
class ComputeBudgetLoss(nn.Module):
    """Squared distance of the expected average MACs from the target: ((Σ_k p̄_k c_k − target) / target)².

    p̄ is the mean of the class probabilities over the batch and c_k the MACs of candidate k, the classifier's
    included, as a fraction of the dense network's.

    Args:
        target: wanted average MACs as a fraction of the dense MACs, above 0 and at most 1.
        loss_weight: factor of the term.
    """

    def __init__(self, target: float, loss_weight: float = 1.0) -> None:
        super().__init__()
        if not 0 < target <= 1:
            raise ValueError(f'target {target} is not allowed: above 0 and at most 1')
        self.target = target
        self.loss_weight = loss_weight

    def forward(self, probabilities: Tensor, costs: Tensor) -> Tensor:
        """Takes class probabilities ``(B, K)`` and costs ``(K,)``; returns a scalar."""
        expected = (batch_mean(probabilities) * costs).sum()
        return self.loss_weight * ((expected - self.target) / self.target).square()


@LOSS_REGISTRY.register()
class ClassificationLoss(nn.Module):
    """Makes the class of each image certain while the batch keeps using several classes.

    ``certainty_weight`` · mean_b[1 − Σ_{j<k} |p_bj − p_bk| / (K − 1)]
    + ``variety_weight`` · Σ_k max(0, floor / K − p̄_k) · K.

    The first is ClassSR's class loss, scaled to [0, 1]: 1 for uniform probabilities, 0 for a sure choice. The second
    replaces its average loss, which asks for equal shares and so contradicts any budget: it only keeps every class
    from dying out.

    ClassSR: Kong et al., CVPR 2021. The combination is this project's reading.

    Args:
        certainty_weight: factor of the first part.
        variety_weight: factor of the second part.
        floor: share below which a class is dying out, as a fraction of an equal share, in [0, 1].
        loss_weight: factor of the whole term.
    """

    def __init__(
        self,
        certainty_weight: float = 1.0,
        variety_weight: float = 1.0,
        floor: float = 0.3,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= floor <= 1:
            raise ValueError(f'floor {floor} is not allowed: between 0 and 1')
        self.certainty_weight = certainty_weight
        self.variety_weight = variety_weight
        self.floor = floor
        self.loss_weight = loss_weight

    def forward(self, probabilities: Tensor) -> Tensor:
        """Takes class probabilities ``(B, K)``; returns a scalar, 0 for a network with one candidate."""
        classes = probabilities.shape[1]
        if classes == 1:
            return probabilities.sum() * 0
        gaps = (probabilities[:, :, None] - probabilities[:, None, :]).abs().sum((1, 2)) / 2
        certainty = batch_mean(1 - gaps / (classes - 1))
        variety = functional.relu(self.floor / classes - batch_mean(probabilities)).sum() * classes
        return self.loss_weight * (self.certainty_weight * certainty + self.variety_weight * variety)


@LOSS_REGISTRY.register()
class DistillationLoss(nn.Module):
    """Mean absolute difference from what the dense network makes of the same images.

    Args:
        loss_weight: factor of the term.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, output: Tensor, teacher: Tensor) -> Tensor:
        """Takes a candidate's and the dense network's outputs, ``(B, C, H, W)``; returns a scalar."""
        return self.loss_weight * functional.l1_loss(output, teacher.detach())


@LOSS_REGISTRY.register()
class ErrorRatioLoss(nn.Module):
    """Teaches the classifier errors of any size, and above all their ratios between neighbours of the ladder.

    With e_bk the error that candidate k leaves in a part of image b, e'_bk in an area of several parts, E_bk in the
    whole image, and hats for predictions:

    mean[log ê_bk + e_bk / ê_bk] + mean[log Ê_bk + E_bk / Ê_bk]
    + 3 · Σ_areas mean_b Σ_{k<K} (log(ê'_bk / ê'_b,k+1) − log(e'_bk / e'_b,k+1))².

    The first two are the likelihood of a gamma distribution, whose minimum is the mean of the errors, whatever the
    distribution; a prediction is judged by its ratio to the truth, so that errors that span decades count alike. That
    is too coarse for the difference between neighbours, which decides: much of the chance in their errors is common to
    both, and their ratio is free of it. Areas are of 2×2 and of 8×8 parts (16 and 64 pixels for parts of 8). Measured
    errors count as at least 1 % of the reference candidate's there, as the dense network leaves none where its outputs
    are the truth.

    Args:
        loss_weight: factor of the term.
    """

    unit = 1e-3
    """The squared error in which predicted errors are counted: that of 30 dB."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, predicted: Tensor, errors: Tensor) -> Tensor:
        """Takes predicted errors of parts of images, ``(B, K, h, w)`` above 0, and the mean squared errors measured
        there, of the same shape; returns a scalar."""
        errors = _raised(errors.detach() / self.unit)
        predicted = predicted.clamp(min=_LEAST_ERROR)
        parts = _gamma(predicted, errors).mean((1, 2, 3))
        whole = _gamma(predicted.mean((2, 3)), errors.mean((2, 3))).mean(1)
        areas = sum(_ratio_error(predicted, errors, side) for side in _RATIO_SIDES)
        return self.loss_weight * batch_mean(parts + whole + _RATIO_WEIGHT * areas)


def _raised(errors: Tensor) -> Tensor:
    """Errors ``(B, K, h, w)``, those raised that are hardly any beside the reference candidate's in that part."""
    least = _LEAST_RATIO * reference_errors(errors)[:, None]
    return errors.maximum(least).clamp(min=_LEAST_ERROR)


def _gamma(predicted: Tensor, errors: Tensor) -> Tensor:
    return predicted.log() + errors / predicted


def _ratio_error(predicted: Tensor, errors: Tensor, side: int) -> Tensor:
    """Squared errors ``(B,)`` of the logarithms of the ratios of neighbouring candidates, in areas of side² parts."""
    window = [min(side, length) for length in errors.shape[2:]]
    logs = [functional.avg_pool2d(each, window).log() for each in (predicted, errors)]
    wrong = (logs[0] - logs[1]).diff(dim=1)
    return wrong.square().sum(dim=1).mean((1, 2))
