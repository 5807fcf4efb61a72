"""Sizes and channels found by running networks on small images, within limits of memory and time."""

from __future__ import annotations

import pytest
import torch
from kinds import KINDS
from torch import nn

from basicsr_classpruning import sizes
from basicsr_classpruning.archs.base_network import build_base, find_inputs
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sizes import SizeRequirements, bytes_of_image, probe


class Seen(nn.Module):
    """Remembers the images that it and its copies are given."""

    def __init__(self, body: nn.Module | None = None, multiple: int = 1, least: int = 1) -> None:
        super().__init__()
        self.body = body or nn.Identity()
        self.multiple, self.least = multiple, least
        self.images: list[tuple[int, ...]] = []

    def __deepcopy__(self, memo: dict) -> Seen:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.images.append(tuple(x.shape))
        if min(x.shape[2:]) < self.least or any(side % self.multiple for side in x.shape[2:]):
            raise IndexError('does not fit')
        return self.body(x)


@pytest.mark.parametrize('multiple', [1, 2, 4, 7, 8, 12, 16, 24, 32, 64])
@pytest.mark.parametrize('least', [1, 12, 20, 32])
def test_multiples_are_found_with_any_least_side(multiple, least):
    found = probe(Seen(multiple=multiple, least=least), [3]).sizes
    assert (found.scale, found.multiple) == (1, multiple)
    assert found.minimum >= least
    assert found.minimum % multiple == 0


def test_small_images_come_first():
    net = Seen()
    probe(net, [3])
    assert net.images[0] == (1, 3, 9, 11)
    assert max(height * width for _, _, height, width in net.images) < 400


def test_the_first_layer_is_the_first_that_runs_and_weights_that_are_read_are_seen():
    assert find_inputs(build_base(KINDS['RunsInAnotherOrder']), {}).use.first == 'head'
    use = find_inputs(build_base(KINDS['InATuple']), {}).use
    assert (use.first, use.read) == ('head', {'read'})
    assert not find_inputs(build_base(KINDS['NAFNet']), {}).use.read


def test_the_network_stays_as_it_was():
    net = build_base(KINDS['BatchNormalised']).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    probe(net, [3])
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_layer_that_does_not_take_the_image_is_named():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(64, 8, 3)))
    with pytest.raises(UserError, match=r'restores no image of any size tried: 1\.0: .*expected .* 64 channels'):
        probe(net, [3])


class Scan(nn.Module):
    """Walks through the pixels one by one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, states = x.new_zeros(x.shape[:2]), []
        for pixel in x.flatten(2).unbind(2):
            state = 0.5 * state + pixel
            states.append(state)
        return torch.stack(states, 2).view(x.shape)


def test_macs_of_networks_that_loop_over_pixels_are_counted_on_smaller_images():
    assert probe(Scan(), [3]).sizes == SizeRequirements(1, 1, 1, reference=16)
    assert probe(build_base(KINDS['SwinIR']), [3]).sizes.reference == 64


class Hungry(nn.Module):
    """Makes tensors of a megabyte for each pixel, which live together."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.megabytes = megabytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = [x.new_empty(x.shape[2] * x.shape[3], 2**18) for _ in range(self.megabytes)]
        return x + 0 * sum(one[0, 0] * 0 for one in made).nan_to_num()


def test_what_takes_too_much_memory_is_one_line():
    with pytest.raises(
        UserError, match=r'64×64 pixels would take about 0 s and 4\.\d GB; at most 600 s and 4 GB'
    ) as error:
        probe(Hungry(1), [3])
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match=r'Hungry: an image of 9×11 pixels takes more than 4 GB'):
        probe(Hungry(50), [3])


def test_what_takes_too_long_is_one_line(monkeypatch):
    monkeypatch.setattr(sizes, '_MOST_SECONDS', 0.0)
    with pytest.raises(UserError, match=r'Scan: an image of 9×11 pixels takes more than 0 s'):
        probe(Scan(), [3])


def test_memory_of_an_image_is_that_of_the_tensors_alive_together():
    body = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 1))
    assert 2 * 64 * 32 * 32 * 4 <= bytes_of_image(body, 3, 32) <= 2.2 * 64 * 32 * 32 * 4
