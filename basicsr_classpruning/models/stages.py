"""The training strategy: each stage says how a batch is dealt to the candidates, and what learns from it.

A new way of dealing a batch is a class here, and a name in ``SUPERNETS`` and in the schema of ``train.split``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.inference.patched import CELL, ring_width, with_ring


@dataclass(frozen=True)
class Batch:
    """The images that a process has in one iteration."""

    images: Tensor
    """Degraded images ``(B, C, H, W)``."""
    iteration: int
    """Counted from 1."""
    rank: int
    """Number of the process, from 0."""
    world_size: int
    """Number of processes; every one has as many images."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Deal:
    """Which candidate restores which image of a batch."""

    images: Tensor | slice
    """The images ``(R,)`` to restore; one may be there several times."""
    candidates: Tensor
    """The candidate ``(R,)`` of each, from sparsest to densest; or that of each pixel, ``(R, H, W)``."""
    used: Tensor | None = None
    """Which pixels of the restored images ``(R, 1, H, W)`` teach, where candidates are mixed in them; None: all."""
    by_all: int = 0
    """Number of images, the first of the batch, that every candidate that learns restores."""

    def outputs_of(self, candidate: int, outputs: Tensor) -> Tensor:
        """What a candidate that learns made of the first ``by_all`` images, from all outputs ``(R, C, H, W)``."""
        return outputs[self.candidates == candidate][: self.by_all]


class Stage:
    """A stage of the training; here one in which nothing learns."""

    name: str
    """Key of its length in ``train.stages``."""
    candidates_learn = False
    """Whether the restoration losses train the candidates, and masks are renewed."""
    classifier_learns = False
    """Whether the classifier's losses train it, from the errors that candidates left."""
    needs_variety = False
    """Whether a classifier that puts all images into one class is something to act upon."""

    def __init__(self, train: Mapping[str, Any]) -> None:
        """Takes its options from the ``train`` section, filled in."""

    def __str__(self) -> str:
        return self.name

    def to_measure(self, images: int, known: int) -> int:
        """How many of a batch's ``images`` all candidates are run on, only to learn their errors.

        ``known`` is the number of images whose errors are remembered.
        """
        return 0

    def deal(self, net: ClassPruning, batch: Batch) -> Deal | None:
        """Deals a batch; None where no image is restored. Randomness comes from torch's global generator."""
        return None


class RoundRobin(Stage):
    """Supernet training, ``split: turn``: the images of all processes go to the candidates in turn.

    Each iteration begins with another candidate, so that none is always given the first image of small batches. A
    candidate without weights, the bypass, has no turn.
    """

    name = 'supernet'
    candidates_learn = True

    def deal(self, net: ClassPruning, batch: Batch) -> Deal:
        position = torch.arange(len(batch), device=batch.images.device) * batch.world_size + batch.rank
        learners = torch.tensor(net.learners, device=batch.images.device)
        return Deal(slice(None), learners[(position + batch.iteration) % len(learners)])


class Sandwich(Stage):
    """Supernet training, ``split: none``: every candidate restores every image, and the classifier learns beside them.

    Of a candidate without weights, the bypass, only the errors are measured. With ``train.sparse_batch`` the sparse
    candidates restore the first images only. With ``train.patch`` every second step is of another kind: all candidates
    restore each image together, patches dealt to them by chance, as ``PatchedNetwork`` runs them.
    """

    name = 'supernet'
    candidates_learn = True
    classifier_learns = True

    def __init__(self, train: Mapping[str, Any]) -> None:
        self.sparse_batch: int | None = train['sparse_batch']
        self.patch: int | None = train['patch']

    def to_measure(self, images: int, known: int) -> int:
        return 0 if known else images  # from the second step on, the outputs of the one before have been measured

    def deal(self, net: ClassPruning, batch: Batch) -> Deal:
        if self.patch is not None and batch.iteration % 2 == 0:
            return _mixed(net, batch.images, self.patch)
        every = torch.arange(len(batch), device=batch.images.device)
        first = every[: self.sparse_batch]
        parts = [first] * (len(net.learners) - 1) + [every]
        candidates = [torch.full_like(part, candidate) for candidate, part in zip(net.learners, parts)]
        return Deal(torch.cat(parts), torch.cat(candidates), by_all=len(parts[0]))


def _mixed(net: ClassPruning, images: Tensor, patch: int) -> Deal:
    """Deals patches of images to all candidates alike, the bypass among them; see ``PatchedNetwork.with_ring``."""
    rows, columns = (-(-side // patch) for side in images.shape[2:])
    drawn = torch.randint(len(net.candidates), (len(images), 1, rows, columns), device=images.device)
    cells = _enlarged(drawn, patch // CELL)
    subnetworks = [place for place, runs_base in enumerate(net.router.runs_base or ()) if runs_base]
    width = ring_width(net.scale)
    rings = [with_ring(image, subnetworks, width) for image in cells[:, 0].cpu().numpy()]
    running = torch.from_numpy(np.stack(rings))[:, None].to(images.device)
    runs = torch.isin(cells, torch.tensor(subnetworks, device=images.device))
    height, width = images.shape[2:]
    candidates = _enlarged(running, CELL)[:, 0, :height, :width]
    used = functional.interpolate(_enlarged(runs.float(), CELL)[..., :height, :width], scale_factor=net.scale) > 0
    return Deal(slice(None), candidates, used)


def _enlarged(values: Tensor, factor: int) -> Tensor:
    return values.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


class ClassifierOnly(Stage):
    """The classifier learns from the measured errors of the candidates, which stay as they are."""

    name = 'classifier'
    classifier_learns = True
    needs_variety = True

    def to_measure(self, images: int, known: int) -> int:
        return images


class Joint(Stage):
    """Both learn: images are routed as the classifier says, some at random.

    Images for a candidate without weights, the bypass, teach nothing, and are not restored.
    """

    name = 'joint'
    candidates_learn = True
    classifier_learns = True
    needs_variety = True

    def __init__(self, train: Mapping[str, Any]) -> None:
        self.explore: float = train['explore']
        self.share: float = train['classifier_share']

    def to_measure(self, images: int, known: int) -> int:
        return max(1, round(images * self.share))

    def deal(self, net: ClassPruning, batch: Batch) -> Deal | None:
        classes = net.classify(batch.images)
        learners = torch.tensor(net.learners, device=classes.device)
        # Some at random, so that no candidate stops learning because it is never chosen.
        chance = torch.rand(len(classes), device=classes.device) < self.explore
        classes = torch.where(chance, learners[torch.randint_like(classes, len(learners))], classes)
        images = torch.isin(classes, learners).nonzero()[:, 0]
        return Deal(images, classes[images]) if len(images) else None


SUPERNETS: dict[str, type[RoundRobin] | type[Sandwich]] = {'turn': RoundRobin, 'none': Sandwich}
"""The ways of dealing a batch in the supernet stage, by the value of ``train.split``."""


class Schedule:
    """The stages in the order in which they run, each with its length in iterations; one of length 0 is left out.

    Args:
        train: the ``train`` section of the options, filled in.
    """

    def __init__(self, train: Mapping[str, Any]) -> None:
        kinds = (SUPERNETS[train['split']], ClassifierOnly, Joint)
        self.stages: tuple[Stage, ...] = tuple(kind(train) for kind in kinds)
        self.lengths = tuple(train['stages'][stage.name] for stage in self.stages)

    def stage(self, iteration: int) -> Stage:
        """The stage of an iteration, counted from 1; iterations beyond the end belong to the last stage."""
        end = 0
        last = self.stages[0]
        for stage, length in zip(self.stages, self.lengths):
            end += length
            if length:
                last = stage
                if iteration <= end:
                    break
        return last

    def number(self, stage: Stage) -> int:
        """Place of a stage in the training, from 1, for logs."""
        return 1 + self.stages.index(stage)
