"""Sampling: the data of a training depend on its seed and step only."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from basicsr_classpruning.data.samplers import Draw, ResumableSampler
from basicsr_classpruning.data.seeded_dataset import SeededDataset, seeded

FIXED = (0.9203084608561362, 0.38250246837875235, 0.9111251831054688)


class Pictures(Dataset):
    """Draws from all three random states, a different number of times for each picture."""

    def __init__(self, length: int = 10) -> None:
        self.length = length
        self.opt = {'phase': 'train'}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        for _ in range(index % 3):
            random.random()
        return torch.tensor([index, random.random(), np.random.random(), torch.rand(()).item()])


def sampler(length: int = 10, replicas: int = 1, rank: int = 0, **options) -> ResumableSampler:
    return ResumableSampler(range(length), replicas, rank, **{'batch_size': 4, **options})


def load(sampler: ResumableSampler, workers: int, epochs: range, seed: int = 0) -> list[torch.Tensor]:
    """The batches of some epochs, loaded as BasicSR does."""
    dataset = SeededDataset(Pictures(len(sampler.dataset)), seed)
    loader = DataLoader(dataset, sampler.batch_size, sampler=sampler, num_workers=workers, drop_last=True)
    batches = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


@pytest.mark.parametrize('length', [1, 3, 10, 16])
@pytest.mark.parametrize('replicas', [1, 2, 3])
@pytest.mark.parametrize('ratio', [1, 2.5])
def test_an_epoch_has_the_steps_that_basicsr_counts(length, replicas, ratio):
    each = sampler(length, replicas, ratio=ratio)
    steps = int(np.ceil(length * ratio / (4 * replicas)))  # num_iter_per_epoch in basicsr/train.py
    assert each.steps_per_epoch == steps
    assert len(each) == len(list(each)) == 4 * steps


def test_every_picture_is_drawn_equally_often_but_for_the_rounding():
    counts = np.bincount([draw.picture for draw in sampler(10, ratio=3)], minlength=10)
    assert counts.sum() == 32
    assert set(counts) == {3, 4}


def test_orders_differ_between_epochs_and_seeds_but_repeat():
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        each = sampler(40, seed=seed)
        each.set_epoch(epoch)
        return tuple(draw.picture for draw in each)

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    assert order(1, 2) == order(1, 2)


def test_numbers_count_all_draws_of_a_training():
    each, numbers = sampler(10), []
    for epoch in range(3):
        each.set_epoch(epoch)
        numbers += [draw.number for draw in each]
    assert numbers == list(range(36))


@pytest.mark.parametrize('epoch', [0, 2])
def test_two_processes_together_draw_what_one_does(epoch):
    whole = sampler(10, batch_size=4)
    halves = [sampler(10, 2, rank, batch_size=2) for rank in range(2)]
    for each in (whole, *halves):
        each.set_epoch(epoch)
    draws = [list(each) for each in halves]
    one = list(whole)
    assert one == [draw for pair in zip(*draws) for draw in pair]
    for step in range(whole.steps_per_epoch):
        assert set(one[4 * step : 4 * step + 4]) == {d for half in draws for d in half[2 * step : 2 * step + 2]}


@pytest.mark.parametrize('replicas', [1, 2])
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(replicas):
    for rank in range(replicas):
        whole = sampler(30, replicas, rank)
        whole.set_epoch(5)
        expected = list(whole)
        resumed = sampler(30, replicas, rank)
        resumed.resume_at(5, 2)
        assert list(resumed) == list(resumed) == expected[2 * 4 :]
        assert len(resumed) == len(expected) - 8
        resumed.set_epoch(6)
        whole.set_epoch(6)
        assert list(resumed) == list(whole)


def test_an_epoch_may_be_resumed_at_its_end_but_not_beyond():
    each = sampler(10)
    each.resume_at(0, 3)
    assert list(each) == []
    for offset in (-1, 4):
        with pytest.raises(ValueError, match='3 batches'):
            each.resume_at(0, offset)


@pytest.mark.parametrize('workers', [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    expected = torch.stack(load(sampler(), 0, range(2)))
    assert torch.equal(torch.stack(load(sampler(), workers, range(2))), expected)
    assert len(expected.view(-1, 4)[:, 1].unique()) == 24  # and no two samples share their randomness
    assert not torch.equal(torch.stack(load(sampler(), 0, range(2), seed=1)), expected)


@pytest.mark.parametrize('workers', [0, 2])
def test_an_interrupted_training_goes_on_with_the_same_batches(workers):
    expected = load(sampler(), workers, range(3))
    resumed = sampler()
    resumed.resume_at(1, 2)
    assert torch.equal(torch.stack(load(resumed, workers, range(1, 3))), torch.stack(expected[3 + 2 :]))


def test_the_callers_random_states_are_left_alone():
    dataset = SeededDataset(Pictures(), 0)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(()).item()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    dataset[Draw(1, 7)]
    with pytest.raises(ZeroDivisionError), seeded(0):
        _ = 1 / 0
    assert (random.random(), np.random.random(), torch.rand(()).item()) == expected


def test_samples_depend_on_seed_and_number_only():
    dataset = SeededDataset(Pictures(), 0)
    first = dataset[Draw(1, 7)]
    dataset[Draw(5, 8)]
    assert torch.equal(dataset[Draw(1, 7)], first)
    assert not torch.equal(dataset[Draw(1, 8)], first)
    assert not torch.equal(SeededDataset(Pictures(), 1)[Draw(1, 7)], first)


def test_the_seed_of_a_sample_is_fixed_for_all_time():
    # A change here changes every training: they would not go on as they began.
    with seeded(12, 345):
        found = random.random(), np.random.random(), torch.rand(()).item()
    assert found == pytest.approx(FIXED, abs=1e-7)


def test_length_and_options_are_those_of_the_data_set():
    pictures = Pictures(7)
    dataset = SeededDataset(pictures, 0)
    assert len(dataset) == 7
    assert dataset.opt is pictures.opt
