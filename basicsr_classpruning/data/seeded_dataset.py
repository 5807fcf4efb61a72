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
from basicsr_classpruning.errors import UserError


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


class NamingDataset(Dataset):
    """A data set that names the picture where it fails, in one line.

    Args:
        dataset: any data set of BasicSR's registry.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    @property
    def opt(self) -> dict[str, Any]:
        """Options of the data set."""
        return self.dataset.opt  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        """The sample. Raises UserError where the data set raises anything."""
        try:
            return self.dataset[index]
        except UserError:
            raise
        except Exception as error:  # whatever the data set's class raises
            path = path_of(getattr(self.dataset, 'paths', ()), index)
            reason = f'{type(error).__name__}: {error}'.splitlines()[0]
            raise UserError(f'data set {self.opt.get("name")}: {path}: {reason}') from None


def path_of(paths: Any, index: int) -> str:
    """What to call a picture, from a data set's ``paths``: paths, or mappings with ``gt_path`` or ``lq_path``."""
    try:
        entry = paths[index]
    except (LookupError, TypeError):
        return f'picture {index}'
    if isinstance(entry, dict):
        entry = entry.get('gt_path') or next(iter(entry.values()), f'picture {index}')
    return str(entry)


class SeededDataset(NamingDataset):
    """A data set whose sample ``number`` is the same whichever worker or process makes it, and whatever it made before.

    To be drawn from with a :class:`~basicsr_classpruning.data.samplers.ResumableSampler`. Then the data of a training
    depend on ``seed`` and on the step only: not on the number of workers, and not on interruptions.

    Args:
        dataset: draws its randomness from ``random``, ``numpy.random`` and torch's CPU generator.
        seed: ``manual_seed`` of the options, not negative.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__(dataset)
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Any:  # type: ignore[override]  # what its sampler gives
        with seeded(self.seed, draw.number):
            return super().__getitem__(draw.picture)
