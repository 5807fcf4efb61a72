"""Hidden channels of one range: which values are scaled together, and that the network computes the same."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tiny import NETWORKS, dense
from torch import nn

from basicsr_classpruning.pruning.equalisation import channel_groups, equalise_channels
from basicsr_classpruning.sparsity.int8 import Int8Conv2d, largest_scale
from basicsr_classpruning.sparsity.second_order import input_ranges


def convolutions(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_computes_the_same(name):
    net = dense(name)
    x = torch.rand(2, 3, 16, 16)
    scaled = deepcopy(net)
    groups = equalise_channels(scaled, convolutions(scaled), [x])
    assert bool(groups) == bool(channel_groups(net))
    with torch.no_grad():
        torch.testing.assert_close(scaled(x), net(x), rtol=1e-5, atol=1e-5)
    changed = [key for key, value in scaled.state_dict().items() if not torch.equal(value, net.state_dict()[key])]
    assert bool(changed) == bool(groups)


def test_values_that_are_added_are_scaled_together():
    (trunk,) = [group for group in channel_groups(dense('EDSR')) if len(group.consumers) > 1]
    assert sorted(trunk.producers) == ['body.0.conv2', 'body.1.conv2', 'conv_after_body', 'conv_first']
    assert sorted(trunk.consumers) == ['body.0.conv1', 'body.1.conv1', 'conv_after_body', 'upsample.0']
    inner = [group for group in channel_groups(dense('EDSR')) if len(group.consumers) == 1]
    assert [(group.producers, group.consumers) for group in inner] == [
        (['body.0.conv1'], ['body.0.conv2']),
        (['body.1.conv1'], ['body.1.conv2']),
    ]


class Odd(nn.Module):
    """Values that something else than convolutions makes or reads, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.gated, self.last = (nn.Conv2d(c, 4, 1) for c in (3, 4, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.first(x)))
        x = self.gated(x)
        return self.last(x * torch.sigmoid(x))


def test_what_other_things_make_or_read_is_left_alone():
    assert channel_groups(Odd()) == []
    assert equalise_channels(Odd(), ['twice', 'last'], [torch.rand(1, 3, 8, 8)]) == 0


def uneven() -> nn.Sequential:
    """A network with channels of very different sizes, all of which matter as much."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1)).eval()
    with torch.no_grad():
        size = torch.full((16,), 0.2)
        size[0] = 1.0
        net[0].weight *= size.reshape(-1, 1, 1, 1)
        net[0].bias *= size
        net[2].weight /= size.reshape(1, -1, 1, 1)
    return net


def test_rounding_loses_less_where_channels_have_one_range():
    torch.manual_seed(0)
    net, x = uneven(), torch.rand(4, 3, 24, 24)

    def error(plain: nn.Sequential) -> float:
        inputs = input_ranges(plain, ['2'], [x])['2']
        made = deepcopy(plain)
        Int8Conv2d.from_float(made[2], largest_scale(made[2].weight), float(inputs.scale), int(inputs.zero))
        with torch.no_grad():
            return float((made(x) - net(x)).square().mean())

    scaled = deepcopy(net)
    assert equalise_channels(scaled, ['2'], [x]) == 1
    before, after = (each[:2](x).amax((0, 2, 3)) for each in (net, scaled))
    torch.testing.assert_close(after, torch.clamp(4 * before, max=before.max()), rtol=1e-5, atol=0)
    assert error(scaled) < 0.6 * error(net)


def test_a_channel_that_is_never_used_is_scaled_no_further_than_others():
    net, x = uneven(), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        net[0].bias[3] = -100.0
    before = net[2].weight[:, 3].clone()
    equalise_channels(net, ['2'], [x])
    torch.testing.assert_close(net[2].weight[:, 3], before / 4)
