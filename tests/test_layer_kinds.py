"""Every kind of layer and wiring goes the whole way: pruned, saved, restored, trained, exported, accelerated."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from kinds import KINDS
from tiny import randomise, training_options, write_pictures, write_yaml
from torch import nn
from training import model_of, step

from basicsr_classpruning import kernels, load
from basicsr_classpruning.archs.base_network import find_inputs, load_fitting
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.cli import main
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sparsity import sparse_layers
from basicsr_classpruning.sparsity.masks import satisfies
from basicsr_classpruning.sparsity.orientation import by_output

CANDIDATES = ['4:16', '8:16', '16:16']
DENSE = {
    'Ragged': {'head': 'the first layer'},
    'Grouped': {'head': 'the first layer', 'depthwise': 'a depthwise convolution'},
    'Transposed': {'head': 'the first layer'},
    'RunsInAnotherOrder': {'head': 'the first layer', 'attention': '1 input channel: too few to choose among'},
    'Recurrent': {'head': 'the first layer'},
    'BatchNormalised': {'layers.0': 'the first layer'},
    'Experts': {'head': 'the first layer'},
    'InATuple': {'head': 'the first layer', 'read': 'its weight is used by other code too'},
    'SwinIR': {'conv_first': 'the first layer'},
}
"""Layers that stay dense, and why."""


def dense(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(build_network(KINDS[name]))


def scale_of(name: str) -> int:
    return 2 if name in ('Ragged', 'SwinIR') else 1


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to calibrate with and to restore."""
    folder = tmp_path_factory.mktemp('kinds')
    write_pictures(folder / 'pictures', height=104, width=112)
    picture = np.random.default_rng(0).integers(0, 256, (21, 26, 3), np.uint8)
    cv2.imwrite(str(folder / 'small.png'), picture)
    return folder


@pytest.mark.usefixtures('little_work')
@pytest.mark.parametrize('way', ['magnitude', 'calibrated'])
@pytest.mark.parametrize(
    ('name', 'unit'), [*((name, 1) for name in KINDS), ('Ragged', 2), ('Ragged', 4), ('Transposed', 4)]
)
def test_the_whole_way(folder, tmp_path, name, unit, way):
    net = dense(name)
    write_checkpoint(tmp_path / 'dense.pth', {'params': net.state_dict()}, None)
    arch = write_yaml(tmp_path / 'arch.yml', {'network_g': KINDS[name]})
    degrade = f'bicubic{scale_of(name)}' if scale_of(name) > 1 else 'noise25-25'
    calibration = ['--calibration', str(folder / 'pictures'), '--degrade', degrade] if way == 'calibrated' else []
    pruned_file = str(tmp_path / 'pruned.pth')
    call = ['prune', str(tmp_path / 'dense.pth'), '--arch', arch, '--out', pruned_file, '--candidates', *CANDIDATES]
    assert main([*call, '--unit', str(unit), *calibration]) == 0

    pruned = load(pruned_file)
    assert isinstance(pruned, ClassPruning)
    assert pruned.options['unit'] == unit
    check_zeros_and_macs(pruned)
    assert main(['analyze', '--model', pruned_file, '--size', '3x32x32']) == 0
    x = torch.rand(2, 3, 21, 26)
    torch.testing.assert_close(pruned.restore_with(x, '16:16'), net_on(net, x, pruned))
    assert not torch.equal(pruned.restore_with(x, '4:16'), pruned.restore_with(x, '16:16'))

    small = ['--model', pruned_file, '--output', str(tmp_path / 'restored'), '--candidate', '4:16']
    assert main(['restore', str(folder / 'small.png'), *small]) == 0
    (restored,) = (tmp_path / 'restored').glob('*.png')
    assert cv2.imread(str(restored)).shape == (21 * scale_of(name), 26 * scale_of(name), 3)

    check_kernels(pruned, x)
    check_training(pruned_file, tmp_path, folder, name, pruned)
    for target, file in (('basicsr', 'static.pth'), ('onnx', 'static.onnx')):
        if target == 'onnx' and name == 'Experts':
            continue  # what a graph holds cannot depend on the picture
        out = str(tmp_path / file)
        assert main(['export', '--model', pruned_file, '--to', target, '--candidate', '4:16', '--out', out]) == 0
    again = dense(name)
    load_fitting(again, load(tmp_path / 'static.pth', arch=KINDS[name]).net.state_dict())
    torch.testing.assert_close(net_on(again, x, pruned), pruned.restore_with(x, '4:16'))


def net_on(net: nn.Module, x: torch.Tensor, pruned: ClassPruning) -> torch.Tensor:
    from basicsr_classpruning.sizes import run_padded

    with torch.no_grad():
        return run_padded(net, x, pruned.sizes)


def check_zeros_and_macs(pruned: ClassPruning) -> None:
    """MACs of each layer are in proportion to the weights that are not zero, which lie as the patterns say."""
    macs = {layer.name: layer for layer in pruned.macs(32, 32).layers}
    for slot, candidate in enumerate(pruned.ladder.sparse):
        index, frozen = pruned.ladder.index(candidate), pruned.subnetwork(candidate).net
        for choice in pruned.choices:
            layer = macs[choice.name]
            assert (layer.reason == '') == bool(choice.patterns)
            if choice.patterns:
                module = frozen.get_submodule(choice.name)
                weight = module.weight
                assert satisfies(by_output(module, weight), choice.patterns[slot])
                assert layer.candidates[index] * weight.numel() == layer.dense * int(torch.count_nonzero(weight))
    total = pruned.macs(32, 32)
    for index in map(pruned.ladder.index, pruned.ladder.sparse):
        saved = sum(layer.dense - layer.candidates[index] for layer in total.layers)
        assert total.candidates[index] == total.dense - saved


def check_kernels(pruned: ClassPruning, x: torch.Tensor) -> None:
    frozen, patterns = pruned.subnetwork('4:16').net, pruned.patterns('4:16')
    for planned in kernels.plan(frozen, patterns):
        layer = frozen.get_submodule(planned.name)
        plain = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
        if planned.name in patterns and plain and planned.why != 'not called in the forward pass':
            assert planned.engine != 'torch', planned
        if not plain and not (isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels):
            assert planned.engine == 'torch'
            assert planned.why
    side = pruned.sizes.padded(24)
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        wanted = frozen(x)
        found = kernels.accelerate(frozen, patterns)(x)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def check_training(pruned_file: str, tmp_path: Path, folder: Path, name: str, pruned: ClassPruning) -> None:
    scale = scale_of(name)
    options = training_options(folder / 'pictures')
    options['scale'] = options['datasets']['train']['scale'] = scale
    degradation = {'type': 'bicubic'} if scale > 1 else {'type': 'noise', 'sigma': [0, 50]}
    options['datasets']['train'].update(degradation=degradation, gt_size=8 * scale)
    del options['datasets']['train']['scale']
    options['network_g'] = pruned.options
    options['path'] = {'pretrain_network_g': pruned_file}
    options['train']['stages'] = {'supernet': 4}  # a joint step may send all images to the bypass
    model = model_of(tmp_path, options)
    side = pruned.sizes.padded(8)
    data = {'lq': torch.rand(3, 3, side, side), 'gt': torch.rand(3, 3, side * scale, side * scale)}
    before = {layer_name: layer.candidate_weight(0) != 0 for layer_name, layer in sparse_layers(model.net_g.base)}
    for iteration in (1, 2):
        assert 'base' in step(model, iteration, data)
    for layer_name, layer in sparse_layers(model.net_g.base):
        assert not layer.broken_patterns()
        if pruned.options['weights'] == 'own':
            assert torch.equal(layer.candidate_weight(0) != 0, before[layer_name])


@pytest.mark.parametrize('name', DENSE)
def test_what_stays_dense_is_named(name):
    net = ClassPruning(KINDS[name], CANDIDATES)
    assert {choice.name: choice.reason for choice in net.choices if choice.reason} == DENSE[name]


def test_experts_that_no_picture_reaches_stay_dense_and_are_named(folder, tmp_path, caplog, little_work):
    write_checkpoint(tmp_path / 'dense.pth', {'params': dense('Experts').state_dict()}, None)
    arch = write_yaml(tmp_path / 'arch.yml', {'network_g': KINDS['Experts']})
    call = ['prune', str(tmp_path / 'dense.pth'), '--arch', arch, '--out', str(tmp_path / 'x.pth')]
    assert main([*call, '--calibration', str(folder / 'pictures'), '--degrade', 'noise25-25']) == 0
    assert 'no calibration picture reaches them: experts.0, experts.2' in caplog.text
    reasons = {choice.name: choice.reason for choice in load(tmp_path / 'x.pth').choices}
    assert reasons['experts.2'] == 'named in skip'
    assert not reasons['tail']


def test_channels_are_found_by_running():
    for name in KINDS:
        assert find_inputs(dense(name), {}).channels == 3
    grey = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1))
    assert find_inputs(grey, {}).channels == 1
    unusual = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(20, 8, 3, padding=1), nn.PixelShuffle(2))
    assert find_inputs(unusual, {}).channels == 5


def test_files_without_counters_of_batch_normalisation_are_loaded():
    net = dense('BatchNormalised')
    params = {key: value for key, value in net.state_dict().items() if not key.endswith('num_batches_tracked')}
    other = build_network(KINDS['BatchNormalised']).eval()
    load_fitting(other, params)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(other(x), net(x))
    pruned = ClassPruning(KINDS['BatchNormalised'], CANDIDATES).eval()
    pruned.load_params(params)
    assert torch.equal(pruned.restore_with(x, '16:16'), net(x))


@pytest.mark.parametrize('weights', ['own', 'shared'])
@pytest.mark.parametrize(('name', 'then_dense'), [('Ragged', 'mix'), ('Grouped', 'four'), ('Transposed', 'upper')])
def test_files_from_before_a_layer_was_pruned_have_it_dense(tmp_path, caplog, name, weights, then_dense):
    torch.manual_seed(0)
    new = ClassPruning(KINDS[name], CANDIDATES, weights=weights)
    old = ClassPruning(KINDS[name], CANDIDATES, weights=weights, skip=[f'^{then_dense}$'])
    randomise(old)
    for _, layer in sparse_layers(old.base):
        layer.reset_candidates()
    options = new.options  # which say nothing of the layer
    missing = new.state_dict().keys() - old.state_dict().keys()
    assert {key.split('.')[1] for key in missing} == {then_dense}
    write_checkpoint(tmp_path / 'old.pth', {'params': old.state_dict()}, options)
    loaded = load(tmp_path / 'old.pth')
    assert f'left dense, as in the file, which has no candidates of them: {then_dense}' in caplog.text
    x = torch.rand(2, 3, 16, 16)
    for candidate in CANDIDATES:
        assert torch.equal(loaded.restore_with(x, candidate), old.eval().restore_with(x, candidate))


@pytest.mark.parametrize('weights', ['own', 'shared'])
@pytest.mark.parametrize(('name', 'then_dense'), [('Ragged', 'mix'), ('Grouped', 'four'), ('Transposed', 'upper')])
def test_training_starts_from_files_from_before_a_layer_was_pruned(caplog, name, weights, then_dense):
    torch.manual_seed(0)
    old = randomise(ClassPruning(KINDS[name], CANDIDATES, weights=weights, skip=[f'^{then_dense}$']))
    for _, layer in sparse_layers(old.base):
        layer.reset_candidates()
    new = ClassPruning(KINDS[name], CANDIDATES, weights=weights)
    new.start_from(old.state_dict())
    assert f'candidates begin from the dense weights where the file has none: {then_dense}' in caplog.text
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(new.eval().restore_with(x, '16:16'), old.eval().restore_with(x, '16:16'))
    fresh = ClassPruning(KINDS[name], CANDIDATES, weights=weights)
    fresh.load_params({key.removeprefix('base.'): value for key, value in dense_part(old).items()})
    for key, value in new.state_dict().items():
        if key.startswith('base.'):
            assert torch.equal(value, (fresh if f'.{then_dense}.' in key else old).state_dict()[key])


def dense_part(net: ClassPruning) -> dict[str, torch.Tensor]:
    dense = {f'base.{key}' for key in build_network(net.options['base']).state_dict()}
    return {key: value for key, value in net.state_dict().items() if key in dense}


def test_files_that_lack_a_layer_that_was_always_pruned_are_damaged(tmp_path):
    net = ClassPruning(KINDS['RunsInAnotherOrder'], CANDIDATES)
    params = {key: value for key, value in net.state_dict().items() if not key.startswith('base.body.ranks')}
    write_checkpoint(tmp_path / 'x.pth', {'params': params}, net.options)
    with pytest.raises(UserError, match=r'body\.ranks is missing'):
        load(tmp_path / 'x.pth')
