"""Second-order pruning against brute force, and on small networks of every kind of layer."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sparsity import mask_search
from basicsr_classpruning.sparsity.calibration import (
    CalibrationOptions,
    Moments,
    draw_sampling,
    observe,
)
from basicsr_classpruning.sparsity.masks import magnitude_rank, satisfies
from basicsr_classpruning.sparsity.nested_search import nested_ranks
from basicsr_classpruning.sparsity.pattern import Pattern
from basicsr_classpruning.sparsity.second_order import damped, prune_layer, prune_second_order, rank_second_order


def random_problem(outputs: int, pattern: Pattern, channels: int, taps: int, seed: int) -> mask_search.QuadraticProblem:
    """A badly conditioned problem, as neighbouring pixels make it; its columns are in the order of the units."""
    generator = torch.Generator().manual_seed(seed)
    size = channels * taps
    samples = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    samples = samples @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    hessian = samples.T @ samples / len(samples)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    centre = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    width = taps if pattern.share_taps else 1
    return mask_search.QuadraticProblem(hessian, centre @ hessian, pattern.n, pattern.m, width, pattern.block)


def block_losses(problem: mask_search.QuadraticProblem, mask: torch.Tensor) -> torch.Tensor:
    losses = mask_search.loss(problem, mask_search.least_squares(problem, mask))
    return losses.view(-1, problem.block).sum(1)


def best_losses(problem: mask_search.QuadraticProblem) -> torch.Tensor:
    """The least loss of each block over all its masks."""
    groups = problem.units // problem.m
    in_group = [
        [place in kept for place in range(problem.m)] for kept in itertools.combinations(range(problem.m), problem.n)
    ]
    blocks = problem.cross.shape[0] // problem.block
    tried = [
        block_losses(problem, torch.tensor([list(itertools.chain(*choice))] * blocks))
        for choice in itertools.product(in_group, repeat=groups)
    ]
    return torch.stack(tried).min(0).values


PROBLEMS = [
    (Pattern(1, 4), 8, 1),
    (Pattern(2, 4), 12, 1),
    (Pattern(3, 4), 4, 2),
    (Pattern(2, 4, block=2), 8, 1),
    (Pattern(2, 4, share_taps=True), 8, 3),
    (Pattern(1, 4, block=4, share_taps=True), 8, 2),
]


@pytest.mark.parametrize(('pattern', 'channels', 'taps'), PROBLEMS, ids=str)
def test_masks_are_near_the_best_of_all_masks(pattern: Pattern, channels: int, taps: int) -> None:
    ratios = []
    for seed in range(6):
        problem = random_problem(8, pattern, channels, taps, seed)
        greedy = mask_search.greedy_mask(problem)
        found = block_losses(problem, mask_search.exchange(problem, greedy, rounds=6))
        best = best_losses(problem)
        assert (found >= best * (1 - 1e-9)).all()
        assert (found <= block_losses(problem, greedy) * (1 + 1e-9)).all()
        ratios.append((found / best).mean())
    assert torch.stack(ratios).mean() < 1.15


@pytest.mark.parametrize(('pattern', 'channels', 'taps'), PROBLEMS, ids=str)
def test_no_single_exchange_improves_the_final_mask(pattern: Pattern, channels: int, taps: int) -> None:
    problem = random_problem(4, pattern, channels, taps, seed=1)
    mask = mask_search.exchange(problem, mask_search.greedy_mask(problem), rounds=20)
    final = block_losses(problem, mask)
    for group in range(problem.units // problem.m):
        places = range(group * problem.m, (group + 1) * problem.m)
        for out, into in itertools.permutations(places, 2):
            other = mask.clone()
            other[:, [out, into]] = mask[:, [into, out]]
            assert (block_losses(problem, other) >= final * (1 - 1e-4)).all()


@pytest.mark.parametrize('width', [1, 3])
def test_change_by_an_exchange_is_that_of_the_least_squares_loss(width: int) -> None:
    pattern = Pattern(1, 2, block=2, share_taps=True)
    problem = random_problem(2, pattern, 4, width, seed=3)
    mask = torch.tensor([[True, False, False, True]])
    tableau = _tableau(problem, mask)

    changes = {}
    for out, into in ((0, 1), (3, 2)):
        other = mask.clone()
        other[0, [out, into]] = mask[0, [into, out]]
        changes[out, into] = float(block_losses(problem, other) - block_losses(problem, mask))
        blocks = {
            (i, j): tableau[:, i * width : (i + 1) * width, j * width : (j + 1) * width]
            for i in (out, into)
            for j in (out, into)
        }
        sides = {i: tableau[:, i * width : (i + 1) * width, 4 * width :] for i in (out, into)}
        predicted = mask_search.exchange_change(
            blocks[out, out], blocks[out, into], blocks[into, out], blocks[into, into], sides[out], sides[into]
        )
        assert float(predicted) == pytest.approx(changes[out, into], rel=1e-8)


@pytest.mark.parametrize('width', [1, 2])
def test_pivoting_a_tableau_is_factorising_it_afresh(width: int) -> None:
    problem = random_problem(1, Pattern(2, 4, share_taps=True), 4, width, seed=4)
    before, after = torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]])
    pivoted = mask_search.pivot(_tableau(problem, before), torch.tensor([1]), width)
    pivoted = mask_search.pivot(pivoted, torch.tensor([2]), width)
    torch.testing.assert_close(pivoted, _tableau(problem, after))


def _tableau(problem: mask_search.QuadraticProblem, mask: torch.Tensor) -> torch.Tensor:
    """The tableau of one block's mask, from the definition: kept columns solved for, in their places."""
    kept = mask[0].repeat_interleave(problem.width)
    hessian, sides = problem.hessian, -problem.cross.T
    tableau = torch.empty(len(hessian), len(hessian) + sides.shape[1], dtype=torch.float64)
    inverse = torch.linalg.inv(hessian[kept][:, kept])
    square, constants = tableau[:, : len(hessian)], tableau[:, len(hessian) :]
    across = hessian[kept][:, ~kept]
    square[torch.outer(kept, kept)] = inverse.flatten()
    square[torch.outer(kept, ~kept)] = (-inverse @ across).flatten()
    square[torch.outer(~kept, kept)] = (across.T @ inverse).flatten()
    square[torch.outer(~kept, ~kept)] = (hessian[~kept][:, ~kept] - across.T @ inverse @ across).flatten()
    constants[kept] = -inverse @ sides[kept]
    constants[~kept] = sides[~kept] - across.T @ inverse @ sides[kept]
    return tableau[None]


@pytest.mark.parametrize(('pattern', 'channels', 'taps'), PROBLEMS, ids=str)
def test_gradient_vanishes_on_the_kept_weights(pattern: Pattern, channels: int, taps: int) -> None:
    problem = random_problem(4, pattern, channels, taps, seed=2)
    mask = mask_search.greedy_mask(problem)
    weights = mask_search.least_squares(problem, mask)
    gradient = weights @ problem.hessian - problem.cross
    allowed = mask.repeat_interleave(problem.block, 0).repeat_interleave(problem.width, 1)
    assert gradient[allowed].abs().max() < 1e-8 * problem.cross.abs().max()
    assert (weights[~allowed] == 0).all()


CONVOLUTIONS = {
    'plain': nn.Conv2d(4, 8, 3, padding=1),
    'strided': nn.Conv2d(4, 4, 3, stride=2, padding=1),
    'oblong': nn.Conv2d(4, 4, (1, 3), stride=(1, 2), padding=(0, 1)),
    'dilated': nn.Conv2d(4, 4, 3, padding=2, dilation=2),
    'same': nn.Conv2d(4, 4, 3, padding='same'),
    'reflecting': nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'),
    'pointwise': nn.Conv2d(4, 4, 1),
}


@pytest.mark.parametrize('limit', [10_000, 40])
@pytest.mark.parametrize('name', CONVOLUTIONS)
@torch.no_grad()
def test_observed_columns_times_the_weight_are_the_outputs(name: str, limit: int) -> None:
    conv = CONVOLUTIONS[name]
    inputs = torch.randn(3, 4, 11, 13)
    outputs = conv(inputs)
    sampling = draw_sampling(conv, outputs, limit, torch.Generator().manual_seed(0))
    columns, wanted = (torch.cat(parts, 1) for parts in zip(*observe(conv, inputs, outputs, sampling)))
    torch.testing.assert_close(conv.weight.flatten(1) @ columns + conv.bias[:, None], wanted)
    assert columns.shape[1] <= 5 / 3 * limit


@torch.no_grad()
def test_observed_rows_of_a_linear_layer() -> None:
    linear = nn.Linear(6, 5)
    inputs = torch.randn(2, 7, 9, 6)
    outputs = linear(inputs)
    sampling = draw_sampling(linear, outputs, 30, torch.Generator().manual_seed(0))
    columns, wanted = (torch.cat(parts, 1) for parts in zip(*observe(linear, inputs, outputs, sampling)))
    torch.testing.assert_close(linear(columns.T), wanted.T)
    assert 20 <= columns.shape[1] <= 50


def test_moments_are_exact_far_from_zero_and_in_any_chunks() -> None:
    inputs, outputs = torch.randn(500, 4) + 300, torch.randn(500, 2) - 200
    moments = Moments()
    for part in ((0, 7), (7, 300), (300, 500)):
        moments.add(inputs[slice(*part)].T, outputs[slice(*part)].T)
    x, y = inputs.double(), outputs.double()
    squares, products = moments.second(centred=True)
    torch.testing.assert_close(squares, torch.cov(x.T, correction=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products, (y - y.mean(0)).T @ (x - x.mean(0)) / 500, rtol=1e-5, atol=1e-5)
    squares, products = moments.second(centred=False)
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


NESTED = [
    [Pattern(1, 4), Pattern(2, 4), Pattern(3, 4)],
    [Pattern(2, 4, block=2), Pattern(1, 4, block=2)],
    [Pattern(1, 4, block=2, share_taps=True), Pattern(3, 4, block=2, share_taps=True)],
]


@pytest.mark.parametrize('patterns', NESTED, ids=str)
def test_nested_masks_are_near_the_best_of_all_masks(patterns: list[Pattern]) -> None:
    """The cheapest candidate is free in its choice, each dearer one is bound to what the cheaper ones keep."""
    channels, taps, outputs = 8, 2, 4
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in patterns:
        samples = torch.randn(200, 16, generator=generator, dtype=torch.float64)
        samples = samples @ torch.randn(16, 16, generator=generator, dtype=torch.float64)
        losses.append((samples.T @ samples / 200, torch.randn(outputs, 16, generator=generator, dtype=torch.float64)))
    dense = torch.randn(outputs, 16, generator=generator, dtype=torch.float64)
    losses = [(hessian, dense @ hessian + 0.1 * noise) for hessian, noise in losses]
    ranks = nested_ranks(losses, dense, channels, patterns)
    assert ranks.dtype == torch.uint8

    def block_loss(mask: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        weights = dense * mask
        error = weights - torch.linalg.solve(hessian, cross.T).T
        by_row = ((error @ hessian) * error).sum(1)
        return by_row.view(-1, patterns[0].block).sum(1)

    cheapest = min(range(len(patterns)), key=lambda k: patterns[k].n)
    for pattern in patterns:
        mask = ranks < pattern.n
        assert satisfies(mask.view(outputs, channels, taps).float(), pattern)
        groups = mask.view(outputs, 2, 4, taps)
        assert (groups.sum(2) == pattern.n).all()
    found = block_loss(ranks < patterns[cheapest].n, *losses[cheapest])
    best = torch.full_like(found, torch.inf)
    in_group = list(itertools.combinations(range(4), patterns[cheapest].n))
    units = 1 if patterns[0].share_taps else taps
    for choice in itertools.product(in_group, repeat=2 * units):
        mask = torch.zeros(2, units, 4)
        for place, kept in enumerate(choice):
            mask[place // units, place % units, list(kept)] = 1
        mask = mask.transpose(1, 2).expand(2, 4, taps).reshape(1, 16)
        best = torch.minimum(best, block_loss(mask, *losses[cheapest]))
    assert (found >= best - 1e-9).all()
    assert (found / best).mean() < 1.1


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


@pytest.mark.parametrize('pattern', [Pattern(2, 4), Pattern(1, 4, block=4), Pattern(4, 8, share_taps=True)], ids=repr)
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
    moments.add(inputs.T, linear(inputs).detach().T)
    pruned = prune_layer(linear, moments, Pattern(2, 4), CalibrationOptions())
    assert (pruned.weight - linear.weight).norm() < linear.weight.norm()
    hessian, _ = damped(moments, linear.weight.detach().double(), True, 0.01)
    torch.linalg.cholesky(hessian)


def test_progress_counts_the_layers_that_run(network, pictures) -> None:
    calls = []
    layers = [dict.fromkeys(PRUNED, Pattern(2, 4))]
    prune_second_order(network, layers, [pictures[:2]], progress=lambda *done: calls.append(done))
    assert calls == [(done, 5) for done in range(1, 6)]


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
