"""The loss terms that ClassPruning adds to a restoration loss.

The paper speaks of two additional loss terms; their formulas here are this project's own reading.
"""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional


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
class RoutingLoss(nn.Module):
    """Expected excess error plus the price of the expected MACs: mean_b[Σ_k p_bk (e_bk / ē + λ_b c_k)].

    p_b = softmax(s_b − λ_b c) are the class probabilities of the classifier's scores s at a price λ_b, drawn for each
    image from a log-uniform distribution: so trained, the scores are good at every budget. e_bk is the error of
    candidate k beyond the best candidate's; ē its mean over the cheapest candidate, kept as a running average.

    Args:
        low, high: range of the prices drawn.
        momentum: of the running average ē.
        loss_weight: factor of the term.
    """

    unit: Tensor

    def __init__(self, low: float = 0.03, high: float = 30.0, momentum: float = 0.99, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.low = low
        self.high = high
        self.momentum = momentum
        self.loss_weight = loss_weight
        self.register_buffer('unit', torch.zeros(()))

    def forward(self, scores: Tensor, errors: Tensor, costs: Tensor) -> Tensor:
        """Takes scores ``(B, K)``, measured errors ``(B, K)`` (any unit) and costs ``(K,)``; returns a scalar."""
        excess = (errors - errors.min(dim=1, keepdim=True).values).detach()
        mean = batch_mean(excess[:, 0]).detach()
        self.unit.copy_(torch.where(self.unit > 0, torch.lerp(mean, self.unit, self.momentum), mean))
        draws = torch.rand(len(scores), 1, device=scores.device)
        price = self.low * (self.high / self.low) ** draws
        probabilities = torch.softmax(scores - price * costs, dim=1)
        regret = probabilities * (excess / self.unit.clamp(min=1e-12) + price * costs)
        # A dear mistake at a high price must not drown all others.
        return self.loss_weight * batch_mean(regret.sum(dim=1) / (1 + price[:, 0]))
