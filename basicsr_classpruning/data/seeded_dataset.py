"""Makes each training sample a function of the seed and of its number alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from basicsr_classpruning.data.samplers import Draw


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds ``random``, ``numpy.random`` and torch on the CPU for a while, then puts their states back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(numbers).generate_state(8)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.default_generator.manual_seed(int(words[:2].view(np.uint64)[0]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededDataset(Dataset):
    """A data set whose sample ``number`` is the same whichever worker or process makes it, and whatever it made before.

    To be drawn from with a :class:`~basicsr_classpruning.data.samplers.ResumableSampler`. Then the data of a training
    depend on ``seed`` and on the step only: not on the number of workers, and not on interruptions.

    Args:
        dataset: draws its randomness from ``random``, ``numpy.random`` and torch's CPU generator.
        seed: ``manual_seed`` of the options, not negative.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    @property
    def opt(self) -> dict[str, Any]:
        """Options of the data set."""
        return self.dataset.opt  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw) -> Any:
        with seeded(self.seed, draw.number):
            return self.dataset[draw.picture]
