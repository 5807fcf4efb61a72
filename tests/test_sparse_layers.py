"""Layers that carry every candidate's weights: names, gradients, frozen copies."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from basicsr_classpruning.sparsity import (
    LayerUse,
    Pattern,
    Selection,
    SparseConv2d,
    SparseConvTranspose2d,
    SparseLinear,
    choose_layers,
    freeze,
    sparse_layers,
    sparsify,
)
from basicsr_classpruning.sparsity.masks import magnitude_rank, mask_of, satisfies

PATTERNS = (Pattern(1, 4), Pattern(2, 4), Pattern(4, 4))


class Net(nn.Module):
    """Layers in every place where networks keep them; one is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 1)))
        self.branches = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1, bias=False)])
        self.attention = nn.Linear(8, 8)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.shared
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.odd = nn.Conv2d(8, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(self.first(x))
        x = self.branches[0](x) + self.again(self.shared(x))
        x = x * self.attention(x.mean((2, 3)))[:, :, None, None]
        return self.last(self.odd(self.depthwise(x)))


def sparse_net(own_weights: bool = False, seed: int = 0) -> tuple[Net, Selection]:
    torch.manual_seed(seed)
    net = Net()
    return net, sparsify(net, choose_layers(net, PATTERNS), own_weights)


def sparse_conv(own_weights: bool = False, decay: float = 0.0) -> SparseConv2d:
    torch.manual_seed(0)
    return SparseConv2d.from_dense(nn.Conv2d(8, 4, 3, padding=1), PATTERNS, own_weights, Selection(decay))


def test_parameter_names_and_values_stay():
    torch.manual_seed(0)
    before = Net().state_dict()
    after = sparse_net()[0].state_dict()
    assert [key for key in after if key in before] == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    added = {key.split('.')[-1] if 'biases' not in key else 'biases' for key in after.keys() - before.keys()}
    assert added == {'ranks', 'biases'}


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('first', 'the first layer'),
        ('body.0', ''),
        ('body.2.0', ''),
        ('branches.0', ''),
        ('attention', ''),
        ('shared', ''),
        ('depthwise', 'a depthwise convolution'),
        ('odd', ''),
        ('last', ''),
    ],
)
def test_each_layer_is_pruned_or_says_why_not(name, reason):
    (choice,) = [choice for choice in choose_layers(Net(), PATTERNS) if choice.name == name]
    assert choice.reason == reason
    assert choice.patterns == (() if reason else PATTERNS)


def test_layers_are_replaced_wherever_they_are():
    net, _ = sparse_net()
    assert isinstance(net.body[0], SparseConv2d)
    assert isinstance(net.body[2][0], SparseConv2d)
    assert isinstance(net.branches[0], SparseConv2d)
    assert isinstance(net.attention, SparseLinear)
    assert net.again is net.shared
    assert [name for name, _ in sparse_layers(net)] == [
        'body.0', 'body.2.0', 'branches.0', 'attention', 'shared', 'odd', 'last',
    ]  # fmt: skip


def test_skip_and_own_patterns_are_regular_expressions():
    finer = (Pattern(2, 8), Pattern(4, 8), Pattern(8, 8))
    choices = {c.name: c for c in choose_layers(Net(), PATTERNS, skip=[r'^body\.'], layer_patterns={'^od+$': finer})}
    assert choices['body.0'].reason == choices['body.2.0'].reason == 'named in skip'
    assert choices['odd'].patterns == finer
    assert choices['shared'].patterns == PATTERNS


def test_subclasses_of_convolutions_are_left_alone():
    class Scaled(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    net = nn.Sequential(nn.Conv2d(4, 8, 1), Scaled(8, 8, 1), nn.Conv1d(8, 8, 1), nn.Conv2d(8, 8, 1))
    reasons = [choice.reason for choice in choose_layers(net, PATTERNS)]
    assert reasons[1] == 'a Scaled, not an nn.Conv2d, nn.ConvTranspose2d or nn.Linear itself'
    assert reasons[2].startswith('a Conv1d')
    assert reasons[3] == ''


def test_what_a_run_showed_is_what_stays_dense():
    use = LayerUse('body.0', frozenset({'shared'}))
    reasons = {choice.name: choice.reason for choice in choose_layers(Net(), PATTERNS, use=use)}
    assert reasons['first'] == ''
    assert reasons['body.0'] == 'the first layer'
    assert reasons['shared'] == 'its weight is used by other code too'


def test_normalised_weights_stay_dense():
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.utils.weight_norm(nn.Conv2d(8, 8, 1)))
    assert choose_layers(net, PATTERNS)[1].reason.startswith('its weight is computed')


class InATuple(nn.Module):
    """Runs its layers from a plain tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)
        self.layers = (self.first, self.second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_layers_that_are_run_from_a_plain_tuple_are_pruned():
    net = InATuple()
    selection = sparsify(net, choose_layers(net, PATTERNS), True)
    x = torch.randn(1, 4, 5, 5)
    dense = net(x)
    selection.candidate = 0
    assert not torch.equal(net(x), dense)
    assert torch.equal(freeze(net, 0)(x), net(x))
    assert torch.equal(freeze(net, None)(x), dense)


def test_the_dense_selection_is_the_plain_network_bit_for_bit():
    torch.manual_seed(0)
    plain = Net()
    net, selection = sparse_net()
    x = torch.randn(2, 4, 9, 7)
    for selection.candidate in (None, 2):
        assert torch.equal(net(x), plain(x))


@pytest.mark.parametrize('own_weights', [False, True])
def test_frozen_equals_selected(own_weights):
    net, selection = sparse_net(own_weights)
    x = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        for _, layer in sparse_layers(net):
            for bias in layer.biases:
                bias.add_(torch.randn_like(bias))
        for selection.candidate in (None, 0, 1, 2):
            frozen = freeze(net, selection.candidate)
            assert torch.equal(frozen(x), net(x))
            assert not list(sparse_layers(frozen))
            assert not any(parameter.requires_grad for parameter in frozen.parameters())
            assert frozen.again is frozen.shared
            assert not frozen.training


def test_frozen_zeros_obey_the_pattern_and_later_training_does_not_reach_them():
    net, _ = sparse_net()
    frozen = freeze(net, 0)
    before = frozen.shared.weight.clone()
    assert satisfies(before, PATTERNS[0])
    assert (before != 0).float().mean() == 0.25
    with torch.no_grad():
        net.shared.weight.mul_(2)
    assert torch.equal(frozen.shared.weight, before)


@pytest.mark.parametrize(
    ('padding_mode', 'stride', 'dilation', 'kernel', 'padding'),
    [
        *itertools.product(['zeros', 'reflect', 'replicate', 'circular'], [1, 2], [1, 2], [3], [2]),
        ('zeros', (2, 1), 1, (1, 3), (0, 1)),
        ('zeros', 1, 1, 3, 'same'),
        ('zeros', 1, 1, 3, 'valid'),
    ],
)
def test_convolutions_of_every_kind(padding_mode, stride, dilation, kernel, padding):
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 4, kernel, stride, padding, dilation, padding_mode=padding_mode)
    masked = copy.deepcopy(dense)
    with torch.no_grad():
        masked.weight.mul_(magnitude_rank(dense.weight, PATTERNS[1]) < 2)
    layer = SparseConv2d.from_dense(dense, PATTERNS, False, Selection())
    layer.selection.candidate = 1
    x = torch.randn(2, 8, 12, 11)
    assert torch.equal(layer(x), masked(x))
    assert torch.equal(layer.frozen(1)(x), masked(x))


@pytest.mark.parametrize('own_weights', [False, True])
@pytest.mark.parametrize('channels', [16, 20])
@pytest.mark.parametrize('groups', [1, 2])
def test_transposed_convolutions_are_pruned_along_their_input_channels(channels, groups, own_weights):
    torch.manual_seed(0)
    patterns = (Pattern(1, 4, block=2), Pattern(4, 16, block=2), Pattern(16, 16))[1:]
    dense = nn.ConvTranspose2d(channels, 12, 3, 2, 1, 1, groups=groups)
    weight, each = dense.weight.detach().clone(), channels // groups
    # Group by group, as a convolution would store it: output channels first.
    kept = torch.zeros_like(weight)
    for group in range(groups):
        own = slice(group * each, (group + 1) * each)
        by_output = weight[own].transpose(0, 1)
        kept[own] = (by_output * mask_of(magnitude_rank(by_output, patterns[0]), patterns[0])).transpose(0, 1)
    layer = SparseConvTranspose2d.from_dense(dense, patterns, own_weights, Selection())
    layer.selection.candidate = 0
    x = torch.randn(2, channels, 5, 6)
    wanted = functional.conv_transpose2d(x, kept, dense.bias, 2, 1, 1, groups)
    assert torch.equal(layer(x), wanted)
    assert torch.equal(layer.frozen(0)(x), wanted)
    assert int((kept != 0).sum()) == patterns[0].kept(each) * 12 * 9
    assert not layer.broken_patterns()
    assert layer(x, output_size=[9, 11]).shape[2:] == (9, 11)


@pytest.mark.parametrize('own_weights', [False, True])
def test_grouped_convolutions_are_pruned_inside_each_group(own_weights):
    torch.manual_seed(0)
    dense = nn.Conv2d(48, 8, 3, padding=1, groups=4)
    pattern = Pattern(2, 8)
    kept = dense.weight.detach() * mask_of(magnitude_rank(dense.weight, pattern), pattern)
    layer = SparseConv2d.from_dense(dense, (pattern, Pattern(8, 8)), own_weights, Selection())
    layer.selection.candidate = 0
    x = torch.randn(2, 48, 5, 6)
    wanted = functional.conv2d(x, kept, dense.bias, padding=1, groups=4)
    assert torch.equal(layer(x), wanted)
    assert torch.equal(layer.frozen(0)(x), wanted)
    assert (layer.frozen(0).weight != 0).float().mean() == 0.25


def test_linear_layers_take_any_leading_dimensions():
    torch.manual_seed(0)
    dense = nn.Linear(8, 4)
    layer = SparseLinear.from_dense(dense, PATTERNS, False, Selection())
    layer.selection.candidate = 0
    x = torch.randn(2, 3, 5, 8)
    weight = dense.weight * (magnitude_rank(dense.weight, PATTERNS[0]) < 1)
    assert torch.equal(layer(x), functional.linear(x, weight, dense.bias))
    assert torch.equal(layer.frozen(0)(x), layer(x))


@pytest.mark.parametrize('decay', [0.0, 2e-4, 0.5])
def test_the_gradient_is_straight_through_with_srste_decay(decay):
    layer = sparse_conv(decay=decay)
    layer.selection.candidate = 1
    mask = layer.ranks < 2
    x, direction = torch.randn(2, 8, 6, 6), torch.randn(2, 4, 6, 6)
    masked = (layer.weight * mask).detach().requires_grad_()
    (functional.conv2d(x, masked, layer.biases[1], padding=1) * direction).sum().backward()
    layer.biases[1].grad = None
    (layer(x) * direction).sum().backward()
    # SR-STE: the gradient of the masked weight, everywhere, and a pull to zero on what the mask leaves out.
    wanted = masked.grad + decay * layer.weight.detach() * ~mask
    torch.testing.assert_close(layer.weight.grad, wanted)
    assert (layer.weight.grad[~mask] != 0).any()


def test_the_dense_candidate_has_a_plain_gradient():
    layer = sparse_conv(decay=0.5)
    layer.selection.candidate = 2
    x = torch.randn(1, 8, 6, 6)
    layer(x).sum().backward()
    wanted = torch.autograd.grad(functional.conv2d(x, layer.weight, layer.bias, padding=1).sum(), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, wanted)


def test_each_sparse_candidate_trains_its_own_bias():
    layer = sparse_conv()
    for candidate in (0, 1, 2):
        layer.selection.candidate = candidate
        layer.zero_grad()
        layer(torch.randn(1, 8, 6, 6)).sum().backward()
        touched = [bias.grad is not None for bias in (*layer.biases, layer.bias)]
        assert touched == [candidate == k for k in range(3)]


def test_own_weights_keep_their_zeros_under_adam():
    layer = sparse_conv(own_weights=True)
    assert torch.equal(layer.weights[0] != 0, magnitude_rank(layer.weight, PATTERNS[0]) < 1)
    dense, masks = layer.weight.detach().clone(), [weight != 0 for weight in layer.weights]
    optimizer = torch.optim.Adam(layer.parameters(), 0.05, weight_decay=0.01)
    for step in range(12):
        layer.selection.candidate = step % 2
        optimizer.zero_grad()
        (layer(torch.randn(2, 8, 6, 6)) - 1).square().mean().backward()
        optimizer.step()
    for candidate, mask in enumerate(masks):
        assert torch.equal(layer.weights[candidate] != 0, mask)
        assert not torch.equal(layer.weights[candidate], dense * mask)
    assert torch.equal(layer.weight, dense)


def test_ranking_again_follows_the_weights():
    layer = sparse_conv()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(1))
    stale = layer.ranks.clone()
    layer.rank_by_magnitude()
    assert not torch.equal(layer.ranks, stale)
    assert torch.equal(layer.ranks, magnitude_rank(layer.weight, PATTERNS[0]))


def test_a_candidate_can_be_given_its_weight():
    layer = sparse_conv(own_weights=True)
    weight = torch.zeros(4, 8, 3, 3)
    weight[:, ::4] = 7.0
    layer.set_candidate(0, weight, torch.arange(4.0))
    assert torch.equal(layer.frozen(0).weight, weight)
    assert layer.frozen(0).bias.tolist() == [0, 1, 2, 3]
    assert not torch.equal(layer.frozen(1).bias, layer.frozen(0).bias)


@pytest.mark.parametrize('own_weights', [False, True])
def test_copies_obey_a_selection_of_their_own(own_weights):
    net, selection = sparse_net(own_weights)
    twin = copy.deepcopy(net)
    x = torch.randn(1, 4, 8, 8)
    dense = twin(x)
    selection.candidate = 0
    assert torch.equal(twin(x), dense)
    assert not torch.equal(net(x), dense)
