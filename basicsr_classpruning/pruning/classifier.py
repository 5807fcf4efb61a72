"""Fits the classifier to measured errors of the candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from basicsr_classpruning.archs.classifier_arch import DifficultyClassifier
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.losses.classpruning_loss import RoutingLoss
from basicsr_classpruning.pruning.crops import Crops

_LEARNING_RATE = 2e-3
_BATCH = 16


@dataclass(frozen=True)
class ErrorMaps:
    """Squared errors of the candidates on crops, averaged over parts of ``stride`` × ``stride`` input pixels."""

    lq: Tensor
    """Inputs ``(N, C, h, w)``."""
    errors: Tensor
    """``(N, K, h / stride, w / stride)``; against the clean pictures, or the dense network's outputs without them."""


@torch.no_grad()
def measure_errors(
    net: ClassPruning, crops: Crops, stride: int, batch: int, on_batch: Callable[[int], None] = lambda _: None
) -> ErrorMaps:
    """Runs every candidate on every crop.

    Args:
        net: in eval mode.
        crops: sides must be multiples of ``stride``.
        stride: side of the parts of the maps, in input pixels.
        batch: crops that run together.
        on_batch: is given the number of crops done.
    """
    maps = []
    for part in crops.batches(batch):
        target = net.frozen_dense()(part.lq) if part.gt is None else part.gt
        errors = []
        for candidate in range(len(net.candidates)):
            error = (
                (net.restore_with(part.lq, candidate).clamp(0, 1) - target.clamp(0, 1)).square().mean(1, keepdim=True)
            )
            errors.append(functional.avg_pool2d(error, stride * net.scale))
        maps.append(torch.cat(errors, dim=1))
        on_batch(len(part))
    return ErrorMaps(crops.lq, torch.cat(maps))


def fit_classifier(
    net: ClassPruning, maps: ErrorMaps, steps: int, seed: int, on_step: Callable[[], None] = lambda: None
) -> None:
    """Trains a network's ``DifficultyClassifier`` on measured errors; the candidates stay as they are.

    Two terms: the Poisson deviance of the predicted excess error of every part, whose minimum is the mean, whatever
    the distribution; and the regret of routing whole crops at random prices (``RoutingLoss``).
    """
    classifier = net.classifier
    assert isinstance(classifier, DifficultyClassifier)
    generator = torch.Generator().manual_seed(seed)
    steps_of_error = (maps.errors[:, :-1] - maps.errors[:, 1:]).contiguous()
    unit = (maps.errors[:, 0] - maps.errors[:, -1]).mean().clamp(min=1e-12)
    routing = RoutingLoss(momentum=1.0)
    routing.unit.copy_(unit)
    costs = net.costs()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            index = torch.randint(len(maps.lq), (min(_BATCH, len(maps.lq)),), generator=generator)
            images, targets, errors = _augment(
                (maps.lq[index], steps_of_error[index] / unit, maps.errors[index]), generator
            )
            logs = classifier.log_steps(images)
            deviance = (logs.exp() - targets * logs).mean()
            regret = routing(classifier.scores_of(logs), errors.mean((2, 3)), costs)
            optimizer.zero_grad()
            (deviance + regret).backward()
            torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            on_step()


def _augment(tensors: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Flips and transposes all tensors alike, and cuts them to a random size: a context of any kind is met later."""
    flip, mirror, turn = (bool(torch.randint(2, (), generator=generator)) for _ in range(3))
    if flip:
        tensors = tuple(tensor.flip(2) for tensor in tensors)
    if mirror:
        tensors = tuple(tensor.flip(3) for tensor in tensors)
    if turn:
        tensors = tuple(tensor.transpose(2, 3) for tensor in tensors)
    return tensors


@torch.no_grad()
def set_price(net: ClassPruning, lq: Tensor, target: float) -> None:
    """Sets the price so that images like ``lq`` ``(N, C, H, W)`` have the target's average MACs without a budget."""
    scores, costs = net.scores(lq), net.costs()
    low, high = -12.0, 12.0
    for _ in range(50):
        middle = (low + high) / 2
        average = costs[(scores - torch.tensor(middle).exp() * costs).argmax(dim=1)].mean()
        low, high = (middle, high) if average > target else (low, middle)
    net.log_price.fill_(high)
