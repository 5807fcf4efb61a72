"""Fits the classifier to measured errors of the candidates."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.losses.classpruning_loss import ErrorRatioLoss
from basicsr_classpruning.progress import Progress, untold
from basicsr_classpruning.pruning.crops import Crops
from basicsr_classpruning.routing.errors import relative_errors
from basicsr_classpruning.routing.network import RoutedNetwork
from basicsr_classpruning.routing.price import log_price_for
from basicsr_classpruning.routing.router import Router

_LEARNING_RATE = 5e-3
_BATCH = 16
LEAST_CROPS = 24  # that a classifier is fitted to, however slow the network is
_SIDE = 16  # parts a side of what is learnt from at a time; the noise of an image shows in few of them


@dataclass(frozen=True)
class ErrorMaps:
    """Squared errors of the candidates on crops, averaged over the parts of images that the classifier tells apart."""

    lq: Tensor
    """Inputs ``(N, C, h, w)``."""
    errors: Tensor
    """``(N, K, h / stride, w / stride)``, or ``(N, K, 1, 1)`` for a classifier of whole images; against the clean
    images, or the dense network's outputs without them."""


@torch.no_grad()
def measure_errors(
    network: RoutedNetwork, crops: Crops, batch: int, progress: Progress = untold, patience: float = math.inf
) -> ErrorMaps:
    """Runs every candidate on every crop.

    Args:
        network: one with candidates.
        crops: sides must be multiples of the router's stride.
        batch: crops that run together.
        progress: is told how many crops are done.
        patience: seconds, after which no more crops are measured than ``LEAST_CROPS``; their inputs
            are left out.
    """
    assert network.router is not None
    start = time.perf_counter()
    stride = network.router.stride
    side = None if stride is None else stride * network.sizes.scale
    maps: list[Tensor] = []
    done = 0
    for part in crops.batches(batch):
        if done >= LEAST_CROPS and time.perf_counter() - start > patience:
            break
        target = network.dense.net(part.lq) if part.gt is None else part.gt
        errors = []
        for subnetwork in network.subnetworks:
            error = (subnetwork.restore(part.lq).clamp(0, 1) - target.clamp(0, 1)).square().mean(1, keepdim=True)
            errors.append(functional.avg_pool2d(error, side or error.shape[2:]))
        maps.append(torch.cat(errors, dim=1))
        done += len(part)
        progress('measuring errors', done, len(crops))
    return ErrorMaps(crops.lq[:done], torch.cat(maps))


def fit_classifier(router: Router, maps: ErrorMaps, steps: int, seed: int, progress: Progress = untold) -> None:
    """Trains a classifier on measured errors (``ErrorRatioLoss``); the candidates stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    loss = ErrorRatioLoss()
    optimizer = torch.optim.Adam(router.classifier.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        index = torch.randint(len(maps.lq), (min(_BATCH, len(maps.lq)),), generator=generator)
        images, errors = _augment(_cut(maps.lq[index], maps.errors[index], generator), generator)
        optimizer.zero_grad()
        loss(router.error_map(images), errors).backward()
        torch.nn.utils.clip_grad_norm_(router.classifier.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress('fitting the classifier', step + 1, steps)


def _cut(images: Tensor, errors: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random place of at most ``_SIDE`` parts a side, the same in all images."""
    for dim in (2, 3):
        parts = errors.shape[dim]
        if parts <= _SIDE:
            continue
        side = images.shape[dim] // parts
        start = int(torch.randint(parts - _SIDE + 1, (), generator=generator))
        errors = errors.narrow(dim, start, _SIDE)
        images = images.narrow(dim, start * side, _SIDE * side)
    return images, errors


def _augment(tensors: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Flips and transposes all tensors alike."""
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
    errors = relative_errors(net.predicted_errors(lq))
    net.log_price.fill_(log_price_for(errors, net.costs(), target))
