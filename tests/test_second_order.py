"""Second-order pruning on small networks with every kind of layer, and what their layers are observed to receive."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sparsity.calibration import (
    CalibrationOptions,
    Moments,
    columns_of,
    draw_sampling,
    observe,
    weight_of,
)
from basicsr_classpruning.sparsity.masks import magnitude_rank, satisfies
from basicsr_classpruning.sparsity.pattern import Pattern
from basicsr_classpruning.sparsity.second_order import damped, prune_layer, prune_second_order, rank_second_order

CONVOLUTIONS = {
    'plain': nn.Conv2d(4, 8, 3, padding=1),
    'strided': nn.Conv2d(4, 4, 3, stride=2, padding=1),
    'oblong': nn.Conv2d(4, 4, (1, 3), stride=(1, 2), padding=(0, 1)),
    'dilated': nn.Conv2d(4, 4, 3, padding=2, dilation=2),
    'same': nn.Conv2d(4, 4, 3, padding='same'),
    'reflecting': nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'),
    'pointwise': nn.Conv2d(4, 4, 1),
    'grouped': nn.Conv2d(4, 6, 3, padding=1, groups=2),
    'transposed': nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
    'transposed, grouped': nn.ConvTranspose2d(4, 6, 3, stride=(2, 3), padding=1, output_padding=1, groups=2),
    'transposed, dilated': nn.ConvTranspose2d(4, 6, (2, 3), stride=2, dilation=2),
    'transposed, cropped': nn.ConvTranspose2d(4, 6, 2, stride=2, padding=1),
}


@pytest.mark.parametrize('limit', [10_000, 40])
@pytest.mark.parametrize('name', CONVOLUTIONS)
@torch.no_grad()
def test_observed_columns_times_the_weight_are_the_outputs(name: str, limit: int) -> None:
    conv = CONVOLUTIONS[name]
    inputs = torch.randn(3, 4, 11, 13)
    outputs = conv(inputs)
    sampling = draw_sampling(conv, outputs, limit, torch.Generator().manual_seed(0))
    columns, wanted = (torch.cat(parts, 2) for parts in zip(*observe(conv, inputs, outputs, sampling)))
    weights = columns_of(conv, conv.weight)
    torch.testing.assert_close((weights @ columns).flatten(0, 1) + conv.bias[:, None], wanted.flatten(0, 1))
    assert torch.equal(weight_of(conv, weights), conv.weight)
    assert columns.shape[2] <= 5 / 3 * limit


@torch.no_grad()
def test_every_phase_of_a_transposed_convolution_is_observed() -> None:
    conv = nn.ConvTranspose2d(4, 4, 2, stride=2)
    inputs = torch.rand(1, 4, 40, 40) + 1
    outputs = conv(inputs)
    sampling = draw_sampling(conv, outputs, 400, torch.Generator().manual_seed(0))
    assert sampling.step > 1
    columns, _ = next(observe(conv, inputs, outputs, sampling))
    seen = (columns[0].view(4, 4, -1) != 0).float().mean((0, 2))
    assert (seen > 0.15).all()
    assert seen.sum() == 1


@torch.no_grad()
def test_a_transposed_convolution_asked_for_a_size_is_observed_at_it() -> None:
    conv = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
    inputs = torch.randn(2, 4, 5, 6)
    outputs = conv(inputs, output_size=[10, 12])
    sampling = draw_sampling(conv, outputs, 1000, torch.Generator().manual_seed(0))
    ((columns, wanted),) = observe(conv, inputs, outputs, sampling)
    torch.testing.assert_close((columns_of(conv, conv.weight) @ columns)[0] + conv.bias[:, None], wanted[0])


@torch.no_grad()
def test_observed_rows_of_a_linear_layer() -> None:
    linear = nn.Linear(6, 5)
    inputs = torch.randn(2, 7, 9, 6)
    outputs = linear(inputs)
    sampling = draw_sampling(linear, outputs, 30, torch.Generator().manual_seed(0))
    columns, wanted = (torch.cat(parts, 2)[0] for parts in zip(*observe(linear, inputs, outputs, sampling)))
    torch.testing.assert_close(linear(columns.T), wanted.T)
    assert 20 <= columns.shape[1] <= 50


def test_moments_are_exact_far_from_zero_and_in_any_chunks() -> None:
    inputs, outputs = torch.randn(500, 4) + 300, torch.randn(500, 2) - 200
    moments = Moments()
    for part in ((0, 7), (7, 300), (300, 500)):
        moments.add(inputs[slice(*part)].T[None], outputs[slice(*part)].T[None])
    x, y = inputs.double(), outputs.double()
    squares, products = (moment[0] for moment in moments.second(centred=True))
    torch.testing.assert_close(squares, torch.cov(x.T, correction=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products, (y - y.mean(0)).T @ (x - x.mean(0)) / 500, rtol=1e-5, atol=1e-5)
    squares, products = (moment[0] for moment in moments.second(centred=False))
    torch.testing.assert_close(squares, x.T @ x / 500)
    torch.testing.assert_close(products, y.T @ x / 500)


class SmallNetwork(nn.Module):
    """Strides, in-place activations, a residual, a layer without bias, one called twice, and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.1, inplace=True))
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.mix = nn.Linear(16, 16)
        self.up = nn.Conv2d(16, 4, 1)
        self.unused = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(self.first(x))
        y = y + self.twice(torch.relu(self.twice(y)))
        y = torch.relu_(self.down(y))
        y = self.mix(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + nn.functional.pixel_shuffle(self.up(y), 2)


PRUNED = ('body.1', 'twice', 'down', 'mix', 'up', 'unused')


@pytest.fixture(scope='module')
def network() -> nn.Module:
    torch.manual_seed(0)
    return SmallNetwork()


@pytest.fixture(scope='module')
def pictures() -> torch.Tensor:
    torch.manual_seed(1)
    return nn.functional.avg_pool2d(torch.rand(12, 1, 26, 26), 3, 1)


def test_ranked_network_keeps_the_weights_and_beats_magnitude(network, pictures) -> None:
    layers = [dict.fromkeys(PRUNED, Pattern(1, 4)), dict.fromkeys(PRUNED, Pattern(3, 4))]
    masks = rank_second_order(network, layers, [pictures[:8]])
    assert set(masks.ranks) == set(PRUNED)
    assert [set(biases) for biases in masks.biases] == [set(PRUNED) - {'down'}] * 2
    for candidate, pattern in enumerate((Pattern(1, 4), Pattern(3, 4))):
        ranked, magnitude = copy.deepcopy(network), copy.deepcopy(network)
        for name in PRUNED:
            ranks = masks.ranks[name]
            layer = ranked.get_submodule(name)
            assert ranks.shape == layer.weight.shape
            layer.weight.data *= ranks < pattern.n
            assert satisfies(layer.weight, pattern)
            if layer.bias is not None:
                layer.bias.data = masks.biases[candidate][name]
            weight = magnitude.get_submodule(name).weight
            weight.data *= magnitude_rank(weight, pattern) < pattern.n
        assert error(network, ranked, pictures[8:]) < 0.7 * error(network, magnitude, pictures[8:])


def with_layers(network: nn.Module, layers: dict) -> nn.Module:
    pruned = copy.deepcopy(network)
    for name, layer in layers.items():
        module = pruned.get_submodule(name)
        assert layer.weight.shape == module.weight.shape
        module.weight.data = layer.weight
        assert (layer.bias is None) == (module.bias is None)
        if layer.bias is not None:
            module.bias.data = layer.bias
    return pruned


@torch.no_grad()
def error(network: nn.Module, pruned: nn.Module, pictures: torch.Tensor) -> float:
    return float((network(pictures) - pruned(pictures)).square().mean())


@pytest.mark.parametrize(
    'pattern',
    [Pattern(2, 4), Pattern(1, 4, block=4), Pattern(4, 8, share_taps=True), Pattern(4, 8, unit=2)],
    ids=repr,
)
def test_network_keeps_the_patterns_and_beats_magnitude(network, pictures, pattern) -> None:
    before = copy.deepcopy(network.state_dict())
    (layers,) = prune_second_order(network, [dict.fromkeys(PRUNED, pattern)], [pictures[:8]])
    assert set(layers) == set(PRUNED)
    assert all(satisfies(layer.weight, pattern) for layer in layers.values())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    magnitude = copy.deepcopy(network)
    for name in PRUNED:
        weight = magnitude.get_submodule(name).weight
        weight.data *= magnitude_rank(weight, pattern) < pattern.n
    held_back = pictures[8:]
    calibrated_error = error(network, with_layers(network, layers), held_back)
    assert calibrated_error < 0.3 * error(network, magnitude, held_back)
    unused = magnitude.get_submodule('unused').weight
    torch.testing.assert_close(layers['unused'].weight, unused)


def test_candidates_pruned_together_are_those_pruned_alone(network, pictures) -> None:
    options = CalibrationOptions(samples=500)
    layers = [dict.fromkeys(PRUNED, Pattern(1, 4)), {'twice': Pattern(2, 4), 'up': Pattern(4, 8)}]
    together = prune_second_order(network, layers, [pictures[:8]], options)
    for candidate, mapping in enumerate(layers):
        (alone,) = prune_second_order(network, [mapping], [pictures[:4], pictures[4:8]], options)
        assert set(alone) == set(mapping)
        for name, layer in alone.items():
            torch.testing.assert_close(together[candidate][name].weight, layer.weight, rtol=1e-3, atol=1e-4)


def test_a_dense_pattern_leaves_the_layer_alone(network, pictures) -> None:
    (layers,) = prune_second_order(network, [{'twice': Pattern(4, 4), 'mix': Pattern(1, 4)}], [pictures[:4]])
    assert torch.equal(layers['twice'].weight, network.twice.weight)
    assert torch.equal(layers['twice'].bias, network.twice.bias)
    assert satisfies(layers['mix'].weight, Pattern(1, 4))


def test_biases_keep_the_mean_of_the_dense_outputs(pictures) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3))
    (layers,) = prune_second_order(net, [{'2': Pattern(1, 8)}], [pictures])
    with torch.no_grad():
        dense, pruned = net(pictures), with_layers(net, layers)(pictures)
    torch.testing.assert_close(pruned.mean((0, 2, 3)), dense.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_later_layers_mend_what_earlier_ones_lost(pictures) -> None:
    """The second layer is fitted to what the pruned first one feeds it: closer than fitted on dense inputs."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    both = {'2': Pattern(1, 4), '4': Pattern(2, 4)}
    (in_sequence,) = prune_second_order(net, [both], [pictures])
    separately = {name: prune_second_order(net, [{name: both[name]}], [pictures])[0][name] for name in both}
    assert error(net, with_layers(net, in_sequence), pictures) < 0.9 * error(
        net, with_layers(net, separately), pictures
    )


def test_few_samples_do_not_overrule_the_dense_weights() -> None:
    torch.manual_seed(4)
    linear = nn.Linear(64, 8)
    moments = Moments()
    inputs = torch.randn(4, 64)
    moments.add(inputs.T[None], linear(inputs).detach().T[None])
    pruned = prune_layer(linear, moments, Pattern(2, 4), CalibrationOptions())
    assert (pruned.weight - linear.weight).norm() < linear.weight.norm()
    hessian, _ = damped(moments, linear.weight.detach().double()[None], True, 0.01)
    torch.linalg.cholesky(hessian)


def test_progress_counts_the_layers_that_run(network, pictures) -> None:
    calls = []
    layers = [dict.fromkeys(PRUNED, Pattern(2, 4))]
    prune_second_order(network, layers, [pictures[:2]], progress=lambda *done: calls.append(done))
    assert calls == [('pruning, own weights', done, 5) for done in range(1, 6)]


def test_wrong_layers_and_networks_are_refused(network, pictures) -> None:
    with pytest.raises(ValueError, match='nowhere'):
        prune_second_order(network, [{'nowhere': Pattern(2, 4)}], [pictures[:2]])
    with pytest.raises(ValueError, match='damping'):
        CalibrationOptions(damping=0)

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 1)
            self.last = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.conv(x) - self.conv(x).mean(0, keepdim=True))

    with pytest.raises(UserError, match='independent pictures'):
        prune_second_order(Mixing(), [{'last': Pattern(2, 4)}], [pictures[:2]])
