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
_TYPICAL_EXCESS = 0.1
_PARTS_WEIGHT = 0.3


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
class DifficultyLoss(nn.Module):
    """Teaches the classifier the errors that the candidates leave, relative to the image's own.

    With d_bk the error that candidate k adds to that of the next dearer one in a part of image b, d_bK the dearest
    one's error, E_b the error of the dearest but one (or the only one) in the whole image, and hats for predictions:

    mean_b[ 1/(r E_b) · mean_{k<K} D(d̂_bk, d_bk) + w/E_b · D(d̂_bK, d_bK) + (log Ê_b − log E_b)² ],

    D(d̂, d) = d̂ − d⁺ − d log(d̂ / d⁺) with d⁺ = max(d, 1e-6), averaged over the parts, never negative. It is the deviance
    of a Poisson distribution, whose minimum is the mean of d, whatever the distribution; a cheaper candidate may leave
    less in a part, so d may be below 0. The last term makes sure of the error of the whole image, by which routing
    divides: not the dearest candidate's, which is 0 where the dense network's outputs are the truth. r = 0.1 is the
    share of the error that pruning typically adds, w = 0.3.

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
        errors = errors.detach() / self.unit
        image, predicted_image = _image_errors(errors), _image_errors(predicted)
        predicted, wanted = _steps(predicted).clamp(min=_LEAST_ERROR), _steps(errors)
        best = wanted.clamp(min=_LEAST_ERROR)
        deviance = (predicted - best - wanted * (predicted / best).log()).mean((2, 3)) / image[:, None]
        steps = deviance[:, :-1].sum(dim=1) / max(deviance.shape[1] - 1, 1)
        whole = (predicted_image.log() - image.log()).square()
        return self.loss_weight * batch_mean(steps / _TYPICAL_EXCESS + _PARTS_WEIGHT * deviance[:, -1] + whole)


def _steps(errors: Tensor) -> Tensor:
    """What each candidate's error ``(B, K, h, w)`` adds to that of the next dearer one; the dearest one's itself."""
    return torch.cat([errors[:, :-1] - errors[:, 1:], errors[:, -1:]], dim=1)


def _image_errors(errors: Tensor) -> Tensor:
    """Error ``(B,)`` of the dearest candidate but one, or of the only one, from those of the parts."""
    return reference_errors(errors).mean((1, 2)).clamp(min=_LEAST_ERROR)
