"""Per-layer N: which layers keep more, at which MACs, and what a checkpoint pruned so carries into training."""

from __future__ import annotations

import copy
import itertools
import json
import random
import re

import numpy as np
import pytest
import torch
from tiny import NETWORKS, dense, prune, training_options, write_pictures
from training import model_of

from basicsr_classpruning import load
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.pruning.allocation import allocate_layers
from basicsr_classpruning.pruning.crops import Crops
from basicsr_classpruning.sparsity import Pattern
from basicsr_classpruning.sparsity.second_order import errors_of_single_layers, prune_second_order


@pytest.fixture(scope='module')
def crops() -> Crops:
    torch.manual_seed(0)
    return Crops(torch.nn.functional.avg_pool2d(torch.rand(8, 3, 26, 26), 3, 1), None)


def network(candidates: list[str], **options) -> ClassPruning:
    """EDSR with a block that hardly matters."""
    base = dense('EDSR')
    with torch.no_grad():
        base.body[0].conv2.weight.mul_(0.05)
    return ClassPruning(NETWORKS['EDSR'], candidates, base_net=base, **options).eval()


@torch.no_grad()
def moved(net: ClassPruning, patterns: dict[str, Pattern], crops: Crops) -> torch.Tensor:
    """Mean squared change of each output when layers are pruned, one after the other as in a candidate."""
    twin = copy.deepcopy(net.dense.net)
    (pruned,) = prune_second_order(twin, [patterns], [crops.lq])
    before = twin(crops.lq).clamp(0, 1)
    for name, layer in pruned.items():
        twin.get_submodule(name).weight.copy_(layer.weight)
        twin.get_submodule(name).bias.copy_(layer.bias)
    return (twin(crops.lq).clamp(0, 1) - before).square().mean((1, 2, 3))


def test_an_error_is_what_the_output_shows_when_that_layer_alone_is_pruned(crops):
    net = network(['2:4', '4:4'])
    names = list(net.patterns(0))
    patterns = [Pattern(1, 4), Pattern(2, 4), Pattern(4, 4)]
    importance = torch.linspace(1, 2, len(crops))
    told = []
    found = errors_of_single_layers(
        net.dense.net, dict.fromkeys(names, patterns), [crops.lq], importance, progress=lambda *at: told.append(at)
    )
    assert told == [('comparing layers', done + 1, len(names)) for done in range(len(names))]
    assert [*found] == names
    for name, (quarter, half, whole) in found.items():
        assert quarter > half > whole == 0, name
        expected = (importance * moved(net, {name: patterns[0]}, crops)).mean()
        assert quarter == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ('candidates', 'options'),
    [
        (['1:4', '2:4', '4:4'], {}),
        (['2:4'], {}),
        (['3:16', '6:16', '10:16', '16:16'], {}),
        (['1:8', '4:8', '7:8'], {'block': 4}),
        (['2:8', '4:8'], {'weights': 'own', 'share_taps': True}),
        (['4:16', '8:16', '16:16'], {'unit': 4}),
        (['4:16', '10:16'], {'unit': 2, 'weights': 'own'}),
    ],
)
def test_candidates_keep_their_macs_and_layers_their_order(crops, candidates, options):
    uniform = network(candidates, **options)
    layers = allocate_layers(uniform, crops)
    ladders = [[Pattern.parse(text) for text in ladder] for ladder in layers.values()]
    m = Pattern.parse(candidates[0]).m
    for ladder in ladders:
        kept = [pattern.n for pattern in ladder]
        assert kept == sorted(kept)
        for pattern, candidate in zip(ladder, candidates):
            assert pattern.m == m
            assert pattern.n % options.get('unit', 1) == 0
            assert pattern.is_dense == Pattern.parse(candidate).is_dense
    net = network(candidates, layers=layers, **options)
    sizes = [layer.dense for layer in net.reference_macs.layers if layer.pruned]
    step = max(sizes) * options.get('unit', 1) / m / net.reference_macs.dense  # what a layer's N changes
    for ours, theirs in zip(net.reference_macs.costs, uniform.reference_macs.costs):
        assert theirs - step <= ours <= theirs * 1.01


def test_where_no_layer_matters_the_macs_are_kept_all_the_same(crops):
    net = network(['1:4', '2:4'])
    with torch.no_grad():
        net.base.conv_last.bias.fill_(9)  # every output is clipped
    net.forget_subnetworks()
    layers = allocate_layers(net, crops)
    costs = network(['1:4', '2:4'], layers=layers).reference_macs.costs
    assert all(ours <= theirs for ours, theirs in zip(costs, net.reference_macs.costs))


def test_the_layers_that_matter_keep_more_and_the_output_moves_less_than_with_one_n(crops):
    uniform = network(['2:4', '4:4'])
    names = list(uniform.patterns(0))
    layers = allocate_layers(uniform, crops)
    chosen = {name: Pattern.parse(next(v[0] for k, v in layers.items() if re.search(k, name))) for name in names}
    error = moved(uniform, chosen, crops).mean()
    assert error < moved(uniform, dict.fromkeys(names, Pattern(2, 4)), crops).mean()

    # And less than with other ways to give the layers 1, 2 or 3 of 4 at these MACs.
    macs = {layer.name: layer.dense for layer in uniform.reference_macs.layers if layer.pruned}
    allowed = sum(macs.values()) * 0.505
    ways = [
        dict(zip(names, kept))
        for kept in itertools.product((1, 2, 3), repeat=len(names))
        if 0.95 * allowed <= sum(macs[name] * n / 4 for name, n in zip(names, kept)) <= allowed
    ]
    some = random.Random(0).sample(ways, 30)
    errors = [float(moved(uniform, {name: Pattern(n, 4) for name, n in way.items()}, crops).mean()) for way in some]
    assert error <= np.quantile(errors, 0.1)


@pytest.mark.usefixtures('little_work')
def test_a_training_takes_the_layers_of_the_checkpoint_it_starts_from(prunable, tmp_path, monkeypatch):
    out, report = tmp_path / 'pruned.pth', tmp_path / 'report.json'
    calibration = ('--calibration', str(prunable / 'pictures'), '--degrade', 'noise25-25')
    argv = (
        '--candidates',
        '1:4',
        '2:4',
        '4:4',
        '--weights',
        'own',
        '--per-layer',
        '--no-bypass',
        '--json',
        str(report),
    )
    assert prune(prunable, out, *calibration, *argv) == 0
    net = load(out)
    assert net.options['layers']
    assert json.loads(report.read_text())['layers_patterns'] == net.options['layers']

    monkeypatch.chdir(tmp_path)
    options = training_options(write_pictures(tmp_path / 'pictures'), 'DnCNN')
    options['network_g']['weights'] = 'own'
    options['path'] = {'pretrain_network_g': str(out)}
    model = model_of(tmp_path, options)
    assert model.net_g.options['layers'] == net.options['layers']
    assert torch.equal(model.net_g.state_dict()['base.model.2.weight'], net.state_dict()['base.model.2.weight'])

    for damaged in ([1], {'body': '2:4'}):
        network_g = {**net.options, 'layers': damaged}
        write_checkpoint(tmp_path / 'damaged.pth', {'params': net.state_dict()}, network_g)
        options['path'] = {'pretrain_network_g': str(tmp_path / 'damaged.pth')}
        with pytest.raises(UserError, match=r'damaged\.pth: network_g\.layers: damaged'):
            model_of(tmp_path, options)
    options['path'] = {'pretrain_network_g': str(out)}

    # The options file comes first; weights that do not fit it are refused.
    options['network_g']['layers'] = {'.': ['1:4', '1:4', '4:4']}
    with pytest.raises(UserError, match=r'weights do not fit the network: .* keeps more of them than 1:4'):
        model_of(tmp_path, options)
