"""Which pictures a process trains on, in which order, and where an interrupted epoch goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One training sample to be made."""

    picture: int
    """Index of the picture in its data set."""
    number: int
    """Counted over all epochs and processes of a training: the seed of the sample's randomness."""


class ResumableSampler(Sampler[Draw]):
    """BasicSR's EnlargedSampler, with whole batches only, numbered draws and a way into the middle of an epoch.

    As there, an epoch is a random order of ``ratio`` times the data set, and process ``rank`` takes every
    ``num_replicas``-th sample of it from ``rank`` on. But an epoch is rounded up to whole batches of all processes:
    BasicSR counts a last, partial batch as a step and its loader drops it, so that training on a small data set ends
    before ``total_iter``.

    Args:
        dataset: sized data set.
        num_replicas: processes that train together.
        rank: of this process.
        ratio: how often an epoch repeats the data set.
        batch_size: of this process's loader.
        seed: of the order, ``manual_seed`` of the options.
    """

    def __init__(
        self, dataset: Sized, num_replicas: int, rank: int, ratio: float = 1, batch_size: int = 1, seed: int = 0
    ) -> None:
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.total_size = -(-int(np.ceil(len(dataset) * ratio)) // self._step) * self._step
        self._resumed = (0, 0)  # an epoch, and how many of its steps are done

    @property
    def _step(self) -> int:
        return self.batch_size * self.num_replicas

    @property
    def steps_per_epoch(self) -> int:
        """Batches of a whole epoch."""
        return self.total_size // self._step

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iterator runs through."""
        self.epoch = epoch

    def resume_at(self, epoch: int, offset: int) -> None:
        """Makes ``epoch`` begin after its first ``offset`` batches; all other epochs stay whole."""
        if not 0 <= offset <= self.steps_per_epoch:
            raise ValueError(f'an epoch has {self.steps_per_epoch} batches; it cannot be resumed after {offset}')
        self._resumed = (epoch, offset)
        self.epoch = epoch

    def _first(self) -> int:
        """Position in the epoch, over all processes, from which its samples are drawn."""
        epoch, offset = self._resumed
        return offset * self._step if self.epoch == epoch else 0

    def __len__(self) -> int:
        return (self.total_size - self._first()) // self.num_replicas

    def __iter__(self) -> Iterator[Draw]:
        # An order of its own for each seed and epoch: seed 1, epoch 2 and seed 2, epoch 1 share nothing.
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        order = torch.randperm(self.total_size, generator=generator).remainder(len(self.dataset)).tolist()
        before = self.epoch * self.total_size
        for position in range(self._first() + self.rank, self.total_size, self.num_replicas):
            yield Draw(order[position], before + position)
