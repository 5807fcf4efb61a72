"""The memory of errors from which the classifier learns."""

from __future__ import annotations

import pytest
import torch

from basicsr_classpruning.models import memory as module
from basicsr_classpruning.models.memory import ErrorMemory


def numbered(first: int, count: int, side: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that are filled with their number, and errors that are ten times that."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)[:, None, None, None]
    return numbers.expand(-1, 3, side, side), 10 * numbers.expand(-1, 2, 1, 1)


@pytest.mark.parametrize(('images', 'values', 'kept'), [(5, 10**6, 5), (100, 3 * 4 * 4 * 7, 7), (2, 1, 4)])
def test_the_oldest_give_way(monkeypatch, images, values, kept):
    monkeypatch.setattr(module, '_IMAGES', images)
    monkeypatch.setattr(module, '_VALUES', values)
    memory = ErrorMemory()
    for step in range(5):
        memory.add(*numbered(4 * step, 4))  # never fewer than were just given
    assert memory.images[:, 0, 0, 0].tolist() == list(range(20 - kept, 20))
    assert len(memory) == kept


def test_a_sample_holds_none_twice_and_each_with_its_errors():
    memory = ErrorMemory()
    memory.add(*numbered(0, 50))
    drawn = set()
    for _ in range(20):
        images, errors = memory.sample(32)
        numbers = images[:, 0, 0, 0].tolist()
        assert len(set(numbers)) == 32
        assert errors[:, 0, 0, 0].tolist() == [10 * number for number in numbers]
        drawn |= set(numbers)
    assert drawn == set(range(50))
    assert len(memory.sample(99)[0]) == 50


def test_what_is_no_number_is_left_out():
    memory = ErrorMemory()
    images, errors = numbered(0, 3)
    errors = errors.clone()
    errors[1, 0] = float('nan')
    memory.add(images, errors)
    assert memory.images[:, 0, 0, 0].tolist() == [0, 2]
    memory.add(images[1:2], errors[1:2])
    assert len(memory) == 2


def test_other_crops_start_afresh():
    memory = ErrorMemory()
    memory.add(*numbered(0, 3))
    memory.add(*numbered(3, 2, side=6))
    assert memory.images.shape == (2, 3, 6, 6)


def test_its_state_is_found_again():
    memory, again = ErrorMemory(), ErrorMemory()
    again.load_state_dict(memory.state_dict(), torch.device('cpu'))
    assert not again
    memory.add(*numbered(0, 3))
    again.load_state_dict(memory.state_dict(), torch.device('cpu'))
    assert torch.equal(again.images, memory.images)
    assert torch.equal(again.errors, memory.errors)
    with pytest.raises(ValueError, match='3 images with 2 errors'):
        again.load_state_dict({'images': memory.images, 'errors': memory.errors[:2]}, torch.device('cpu'))
