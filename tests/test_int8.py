"""Candidates of 8-bit integers: arithmetic, quantisation in the solver, ladders, networks, wrong calls."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from tiny import NETWORKS, classpruning, int8_network, network_g, prune, same, training_options
from torch import nn
from torch.nn import functional
from training import DISTILL, EXPERIMENT, batch, model_of, run, step

from basicsr_classpruning import load
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.cli import main
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.inference.patched import PatchedNetwork
from basicsr_classpruning.inference.restorer import Restorer
from basicsr_classpruning.routing.ladder import Ladder, LadderError
from basicsr_classpruning.sparsity import mask_search, sparse_layers
from basicsr_classpruning.sparsity.int8 import (
    InputRange,
    Int8Conv2d,
    Int8Linear,
    int8_layers,
    largest_scale,
    quantize_input,
    rounded_weight,
)
from basicsr_classpruning.sparsity.masks import satisfies
from basicsr_classpruning.sparsity.pattern import Pattern
from basicsr_classpruning.sparsity.second_order import input_ranges, prune_second_order

LADDER = ['4:16-int8', '8:16-int8', '16:16-int8', '16:16']
RANGE = InputRange.covering(-1.0, 2.0)

# ---------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize('channels', [5, 64])  # 64 · 9 products of 255 · 127 are more than float32 counts
def test_a_convolution_sums_integers_exactly(channels):
    layer = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
    layer.weight.data = layer.weight.data.sign() * layer.weight.data.abs().amax()
    layer.weight.data[:, :, 1] *= 0.3
    scale = largest_scale(layer.weight)
    made = Int8Conv2d.from_float(deepcopy(layer), scale, float(RANGE.scale), int(RANGE.zero))
    x = torch.randn(2, channels, 9, 8) * 2
    q = ((x * (1 / RANGE.scale)).round() + RANGE.zero).clamp(0, 255) - RANGE.zero
    windows = functional.unfold(q.double(), 3, padding=1, stride=2).long()
    sums = made.integers.long().flatten(1) @ windows
    wanted = sums.float().unflatten(2, (5, 4)) * (scale * RANGE.scale)[:, None, None] + layer.bias[:, None, None]
    assert torch.equal(made(x), wanted)
    padded = functional.pad(x, (1, 1, 1, 1))
    assert torch.equal(made.without_padding(padded), wanted)
    assert made.integers.abs().max() == 127


def test_a_linear_layer_sums_integers_exactly():
    layer = nn.Linear(12, 5)
    scale = largest_scale(layer.weight)
    made = Int8Linear.from_float(deepcopy(layer), scale, float(RANGE.scale), int(RANGE.zero))
    x = torch.randn(2, 3, 12)
    sums = quantize_input(x, RANGE.scale, RANGE.zero).long() @ made.integers.long().T
    assert torch.equal(made(x), sums.float() * (scale * RANGE.scale) + layer.bias)


def test_a_training_in_bfloat16_adds_up_in_it_and_all_else_stays_exact():
    layer = nn.Conv2d(16, 6, 3, padding=1)
    made = Int8Conv2d.from_float(layer, largest_scale(layer.weight), float(RANGE.scale), int(RANGE.zero))
    x = torch.randn(2, 16, 9, 8) * 2
    exact = made(x)
    exact.square().sum().backward()
    wanted, made.weight.grad = made.weight.grad, None
    with torch.autocast('cpu', torch.bfloat16):
        brief = made(x)
        with torch.no_grad():
            assert torch.equal(made(x), exact)
    assert brief.dtype == torch.float32
    assert not torch.equal(brief, exact)
    torch.testing.assert_close(brief, exact, rtol=0.01, atol=0.02)
    brief.square().sum().backward()
    torch.testing.assert_close(made.weight.grad, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_gradients_go_straight_through_and_stop_where_values_are_cut():
    x = torch.tensor([-3.0, 0.3, 1.9, 5.0], requires_grad=True)
    quantize_input(x, RANGE.scale, RANGE.zero).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 1.0, 0.0]) / RANGE.scale)
    layer = nn.Linear(4, 3)
    made = Int8Linear.from_float(deepcopy(layer), largest_scale(layer.weight), float(RANGE.scale), int(RANGE.zero))
    inputs = torch.rand(50, 4)
    for net in (layer, made):
        net(inputs).square().sum().backward()
    torch.testing.assert_close(made.weight.grad, layer.weight.grad, rtol=0.05, atol=0.3)


def test_a_range_holds_0_exactly():
    for low, high in ((0.5, 2.0), (-2.0, -0.5), (-0.7, 1.3), (0.0, 0.0)):
        found = InputRange.covering(low, high)
        assert found.rounded(torch.zeros(3)).eq(0).all()
        assert float(found.zero) == round(float(found.zero))
        near = found.rounded(torch.tensor([low, high]))
        torch.testing.assert_close(near, torch.tensor([low, high]), rtol=0, atol=float(found.scale) * 0.501)


# -------------------------------------------------------------------------------------------------------------- solver


@pytest.mark.parametrize(('n', 'unit', 'block'), [(4, 4, 1), (8, 1, 2), (16, 4, 1)])
def test_rounding_inside_the_solver_loses_less_than_rounding_at_the_end(n, unit, block):
    pattern = Pattern(n, 16, block, unit=unit)
    # Correlated, as neighbouring pixels are, so that there is something to push errors onto.
    inputs = torch.randn(36 * 9, 20, dtype=torch.float64) @ torch.randn(20, 400, dtype=torch.float64)
    hessian = inputs @ inputs.T / 400 + torch.eye(36 * 9, dtype=torch.float64)
    dense = torch.randn(8, 36 * 9, dtype=torch.float64)
    cross = dense @ hessian

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return (((weights - dense) @ hessian) * (weights - dense)).sum(1)

    best = mask_search.solve(hessian, cross, 36, pattern, 1)
    found, scales = mask_search.solve_int8(hessian, cross, 36, pattern, 1)
    integers = (found / scales[:, None]).round()
    assert torch.equal(integers * scales[:, None], found)
    assert integers.abs().max() <= 127
    assert torch.equal(scales.float().double(), scales)
    assert satisfies(found.view(8, 36, 3, 3), pattern)
    at_the_end = rounded_weight(best, largest_scale(best))
    assert (loss(found) - loss(best)).sum() < 0.8 * (loss(at_the_end) - loss(best)).sum()


def test_a_network_is_quantised_towards_the_dense_outputs():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1)
    ).eval()
    batches = [torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)]
    ranges = input_ranges(net, ['2', '4'], batches)
    seen = torch.cat([net[:2](batch) for batch in batches])
    torch.testing.assert_close(ranges['2'].scale * 255, seen.max())
    dense, fp32 = Pattern(16, 16, unit=4), Pattern(8, 16, unit=4)
    layers = [{'2': fp32, '4': fp32}, {'2': dense}, {'2': fp32, '4': fp32}]
    int8, only, plain = prune_second_order(net, layers, batches, int8=[ranges, {'2': ranges['2']}, {}])
    assert [pruned.grid is not None for pruned in (int8['2'], int8['4'], only['2'], plain['2'])] == [1, 1, 1, 0]
    again = prune_second_order(net, layers[2:], batches)[0]
    torch.testing.assert_close(again['2'].weight, plain['2'].weight, rtol=1e-3, atol=1e-5)

    def run(pruned) -> torch.Tensor:
        twin = deepcopy(net)
        for name, layer in pruned.items():
            twin.get_submodule(name).weight.data = layer.weight
            twin.get_submodule(name).bias.data = layer.bias
            if layer.grid is not None:
                Int8Conv2d.from_float(twin.get_submodule(name), *layer.grid.values)
        return twin(batches[0])

    errors = [float((run(pruned) - net(batches[0])).square().mean()) for pruned in (only, int8, plain)]
    assert errors[0] < 0.02 * errors[2]
    assert errors[1] < 1.2 * errors[2]


def test_what_is_not_finite_has_no_range():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)).eval()
    with torch.no_grad():
        net[0].bias[0] = torch.inf
    with pytest.raises(UserError, match='1: what it receives of the calibration pictures is not finite'):
        input_ranges(net, ['1'], [torch.rand(1, 3, 8, 8)])


# ------------------------------------------------------------------------------------------------- ladders and networks


def test_a_ladder_of_mixed_precision():
    ladder = Ladder.parse(['0:16', '4:16-int8', '8:16', '16:16-int8', '16:16'], unit=4)
    assert ladder.names == ('0:16', '4:16-int8', '8:16', '16:16-int8', '16:16')
    assert [candidate.int8 for candidate in ladder.sparse] == [True, False, True, False]
    for texts in (['16:16', '16:16-int8'], ['8:16', '8:16-int8'], ['8:16-int8', '8:16-int8']):
        with pytest.raises(LadderError, match='sparsest first and each once'):
            Ladder.parse(texts)
    for text in ('8:16-int4', '-int8', '0:16-int8', '8:16-int8-int8'):
        with pytest.raises(LadderError, match='is not allowed; N:M with 1 <= N'):
            Ladder.parse([text, '16:16'])


def test_a_network_runs_what_its_subnetworks_hold():
    net = int8_network()
    x = torch.rand(2, 3, 20, 24)
    for index, name in enumerate(net.candidates):
        with torch.no_grad():
            torch.testing.assert_close(net.run_sparse(x, index), net.restore_with(x, name), rtol=0, atol=1e-6)
        found = int8_layers(net.subnetwork(name).net)
        assert bool(found) == net.subnetwork(name).int8 == name.endswith('int8')
    frozen = net.subnetwork('8:16-int8').net
    assert {str(layer.integers.dtype) for layer in int8_layers(frozen).values()} == {'torch.int8'}
    ranges = [[layer.input_scale for layer in int8_layers(net.subnetwork(name).net).values()] for name in LADDER[:3]]
    assert ranges[0] == ranges[1] == ranges[2]
    # Both precisions multiply as often.
    macs = dict(zip(net.candidates, net.reference_macs.candidates))
    assert macs['16:16-int8'] == macs['16:16'] > macs['8:16-int8'] > macs['4:16-int8']
    net.budget = float(net.costs()[-1])
    assert net.classify(x).tolist() == [4, 4]
    net.budget = 0.6
    assert net(x).shape == x.shape


def test_a_network_is_rebuilt_from_its_options_and_weights():
    net = int8_network(fp32=['^model.6$'])
    options = {key: value for key, value in net.options.items() if key != 'type'}
    twin = ClassPruning(**options).eval()
    twin.load_params(net.state_dict())
    x = torch.rand(1, 3, 16, 16)
    for name in net.candidates:
        assert torch.equal(twin.restore_with(x, name), net.restore_with(x, name))
    assert [choice.name for choice in net.choices if choice.fp32 == 'named in fp32'] == ['model.6']


@pytest.mark.parametrize('name', ['NAFNet', 'SwinIR', 'EDSR'])
def test_layers_of_other_kinds_stay_in_float32(name):
    net = int8_network(name)
    for choice in net.choices:
        layer = net.base.get_submodule(choice.name)
        plain = isinstance(layer, nn.Linear) or (type(layer).__mro__[2] is nn.Conv2d and layer.groups == 1)
        assert not choice.patterns or bool(choice.fp32) != plain
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net.run_sparse(x, 1), net.restore_with(x, 1), rtol=1e-4, atol=1e-5)


def test_a_transposed_convolution_stays_in_float32():
    from basicsr_classpruning.sparsity.apply import why_not_int8

    assert why_not_int8(nn.ConvTranspose2d(8, 8, 2)) == 'a transposed convolution'
    assert why_not_int8(nn.Conv2d(8, 8, 3, groups=2)) == 'a convolution in 2 groups'
    assert why_not_int8(nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect')) == "padding 'reflect'"
    assert why_not_int8(nn.Conv2d(8, 8, 3)) == why_not_int8(nn.Linear(8, 8)) == ''


def test_wrong_networks_are_refused_in_one_line():
    with pytest.raises(UsageError, match="'shared' is not allowed with 4:16-int8, 8:16-int8, 16:16-int8; own"):
        classpruning('DnCNN', candidates=LADDER)
    fresh = classpruning('DnCNN', candidates=LADDER, weights='own')
    for start in (
        lambda: fresh.run_sparse(torch.rand(1, 3, 8, 8), 0),
        lambda: fresh.load_params(fresh.dense.net.state_dict()),
    ):
        with pytest.raises(UserError, match='start from a checkpoint that `prune --int8` made'):
            start()
    good = int8_network().state_dict()
    for key, value in (('input_scale', torch.inf), ('input_zero', 3.5), ('weight_scales', 0.0), ('input_zero', 256)):
        net = int8_network()
        damaged = {**good, f'base.model.2.{key}': torch.full_like(good[f'base.model.2.{key}'], value)}
        with pytest.raises(UserError, match=r'model\.2 has no finite ranges for 8-bit integers'):
            net.load_params(damaged)


# --------------------------------------------------------------------------------------------------- command and files


@pytest.fixture(scope='module')
def pruned(prunable, tmp_path_factory):
    """A checkpoint of ``prune --int8`` and what the command wrote about it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (('_ERROR_CROPS', (6, 6)), ('_FIT_STEPS', 12), ('_HELD_OUT', 6), ('_WEIGHT_CROPS', (4, 4))):
            patch.setattr(f'basicsr_classpruning.pruning.prune.{name}', value)
        folder = tmp_path_factory.mktemp('int8')
        calibration = ('--calibration', str(prunable / 'pictures'), '--degrade', 'noise25-25')
        assert prune(prunable, folder / 'x.pth', '--int8', *calibration, '--json', str(folder / 'x.json')) == 0
    return folder


def test_prune_makes_the_ladder_of_8_bit_integers(pruned):
    net = load(pruned / 'x.pth')
    report = json.loads((pruned / 'x.json').read_text())
    assert net.candidates == ('0:16', *LADDER)
    assert net.options['unit'] == 4
    assert [row['candidate'] for row in report['weights'][0]['candidates']] == ['dense', '0:16', *LADDER[:3]]
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        errors = [float((net.restore_with(x, name) - net.dense.net(x)).square().mean()) for name in LADDER]
    assert errors[0] > errors[1] > 20 * errors[2] > errors[3] == 0
    # The last layer, which rounds every pixel.
    assert report['layers_fp32'] == {'model.6': 'named in fp32'}
    assert [*int8_layers(net.subnetwork('4:16-int8').net)] == ['model.2', 'model.4']


def test_integers_are_stored_packed(pruned):
    net = load(pruned / 'x.pth')
    entries = torch.load(pruned / 'x.pth', weights_only=True)['packed']['params']
    own = [entries[f'base.model.{layer}.weights.0'] for layer in (2, 4)]
    stored = sum(part.nbytes for entry in own for part in entry.values() if isinstance(part, torch.Tensor))
    # The scales of 16 output channels weigh as much as in a layer of 64 they do not.
    scales = sum(entry['scale'].nbytes for entry in own)
    assert stored - scales <= 0.0704 * sum(net.base.model[layer].weight.nbytes for layer in (2, 4))
    assert all(entry['values'].dtype == torch.int8 for entry in own)


@pytest.mark.parametrize('damage', ['values', 'mask', 'scale', 'shape', 'unit', 'range'])
def test_a_damaged_packed_file_is_refused_in_one_line(pruned, tmp_path, damage, capsys):
    content = torch.load(pruned / 'x.pth', weights_only=True)
    entry = content['packed']['params']['base.model.2.weights.0']
    if damage == 'range':
        content['params']['base.model.2.input_scale'] = torch.tensor(torch.nan)
    elif damage == 'scale':
        entry['scale'] = entry['scale'] * torch.nan
    elif damage == 'shape':
        entry['shape'] = (16, 12, 3, 3)
    elif damage == 'unit':
        entry['values'] = entry['values'].reshape(-1, 3)
    else:
        entry[damage] = entry[damage][:-1]
    torch.save(content, tmp_path / 'x.pth')
    size = ('--size', '3x32x32')
    assert main(['analyze', '--model', str(tmp_path / 'x.pth'), *size]) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert ('no finite ranges' if damage == 'range' else "packed weight 'base.model.2.weights.0': damaged") in error


def test_wrong_calls_get_one_line(prunable, tmp_path, capsys):
    calibration = ('--calibration', str(prunable / 'pictures'))
    for arguments, message in (
        (('--int8',), '--int8: needs --calibration'),
        (('--candidates', '4:16-int8', '16:16'), '--int8: needs --calibration'),
        (('--int8', *calibration, '--candidates', '4:16', '16:16'), 'none of 4:16 16:16 is an N:M-int8'),
        (('--int8', *calibration, '--weights', 'shared'), '--int8: needs --weights own'),
        (
            ('--int8', *calibration, '--candidates', '3:6-int8', '6:6'),
            'unit 4 is not allowed with 3:6; it must divide M',
        ),
        (('--int8', *calibration, '--candidates', '6:16-int8', '16:16'), "'6:16' is not allowed with unit 4"),
    ):
        assert prune(prunable, tmp_path / 'x.pth', *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count('\n') == 1
    assert not (tmp_path / 'x.pth').exists()


def test_ranges_that_are_not_finite_are_refused_in_one_line(prunable, tmp_path, capsys, little_work):
    content = torch.load(prunable / 'dense.pth', weights_only=True)
    content['params']['model.0.bias'][0] = torch.nan
    torch.save(content, tmp_path / 'nan.pth')
    call = ['prune', str(tmp_path / 'nan.pth'), '--arch', str(prunable / 'arch.yml'), '--out', str(tmp_path / 'x.pth')]
    calibration = ['--calibration', str(prunable / 'pictures'), '--degrade', 'noise25-25']
    assert main([*call, '--int8', '--no-bypass', *calibration]) == 1
    assert 'model.2: what it receives of the calibration pictures is not finite' in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ restoring


def test_restoring_with_one_precision():
    net = int8_network()
    image = torch.rand(40, 48, 3).numpy()
    for precision, names in (
        ('auto', net.candidates),
        ('fp32', ('0:16', '16:16')),
        ('int8', ('0:16', '4:16-int8', '8:16-int8', '16:16-int8')),
    ):
        restorer = Restorer(net, tile=16, precision=precision, backend='dense', threads=1)
        _, stats = restorer.restore(image)
        assert tuple(stats.class_share) == names
        assert restorer.info.candidates == names
        errors = net.routed().router.predicted_errors(torch.rand(1, 3, 16, 16))
        assert errors.shape[1] == 5
    one = Restorer(net, candidate='8:16-int8', tile=40, precision='int8', backend='dense', threads=1)
    restored, _ = one.restore(image)
    assert restored.shape == image.shape
    with pytest.raises(UsageError, match="'8:16-int8' is not one of this network: 0:16, 16:16"):
        Restorer(net, candidate='8:16-int8', precision='fp32')
    with pytest.raises(UsageError, match='int8: none of its candidates computes so'):
        Restorer(classpruning('DnCNN'), precision='int8')
    with pytest.raises(UsageError, match="'fp16': allowed are auto, fp32, int8"):
        Restorer(net, precision='fp16')


def test_the_kernels_and_the_dense_backend_give_the_same(monkeypatch):
    # Winograd's algorithm, where it happens to be measured as the faster one, rounds float32 layers otherwise: what is
    # just at a half then becomes another integer.
    monkeypatch.setenv('CLASSPRUNING_ALGORITHM', 'direct')
    net = int8_network()
    image = torch.rand(32, 40, 3).numpy()
    for name in ('4:16-int8', '16:16-int8'):
        both = [
            Restorer(net, candidate=name, backend=backend, threads=1).restore(image)[0] for backend in ('dense', 'cpu')
        ]
        assert abs(both[0] - both[1]).max() < 1e-4


def test_patches_of_8_bit_integers_are_those_of_the_whole_image():
    net = int8_network(classifier={'type': 'BandClassifier'})
    patched = PatchedNetwork(net.routed())
    x = torch.rand(1, 3, 24, 32)
    for place, name in enumerate(net.candidates[1:], 1):
        cells = torch.full((3, 4), place).numpy()
        torch.testing.assert_close(patched(x, cells), net.restore_with(x, name), rtol=0, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize('target', ['basicsr', 'safetensors', 'compact'])
def test_exported_weights_are_those_that_the_integers_stand_for(pruned, tmp_path, target, capsys):
    out = tmp_path / ('x.pth' if target == 'basicsr' else 'x.safetensors')
    to = ['--to', 'safetensors', '--compact'] if target == 'compact' else ['--to', target]
    assert main(['export', '--model', str(pruned / 'x.pth'), '--candidate', '8:16-int8', '--out', str(out), *to]) == 0
    assert 'as the float32 weights that they stand for' in capsys.readouterr().out
    net, exported = load(pruned / 'x.pth'), load(out)
    frozen = net.subnetwork('8:16-int8').net
    for name, layer in int8_layers(frozen).items():
        weight = exported.net.get_submodule(name).weight
        assert torch.equal(weight, layer.integers * layer.weight_scale[:, None, None, None])
    x = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), frozen(x), rtol=0, atol=0.1)
    if target == 'compact':
        assert out.stat().st_size < 0.75 * (pruned / 'x.pth').stat().st_size


def test_an_onnx_file_quantises_and_gives_the_same(pruned, tmp_path):
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    out = tmp_path / 'x.onnx'
    call = ['export', '--model', str(pruned / 'x.pth'), '--candidate', '16:16-int8', '--to', 'onnx', '--out', str(out)]
    assert main(call) == 0
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds.count('QuantizeLinear') >= 2
    assert kinds.count('DequantizeLinear') >= 4
    x = torch.rand(1, 3, 33, 47)
    options = runtime.SessionOptions()
    options.add_session_config_entry('session.x64quantprecision', '1')  # no sums that saturate where there is no VNNI
    session = runtime.InferenceSession(str(out), options, providers=['CPUExecutionProvider'])
    output = torch.from_numpy(session.run(['output'], {'input': x.numpy()})[0])
    net = load(pruned / 'x.pth')
    steps = max(float(layer.input_scale) for layer in int8_layers(net.subnetwork('16:16-int8').net).values())
    with torch.no_grad():
        difference = (output - net.restore_with(x, '16:16-int8')).abs()
        assert difference.max() < steps
        float_weights = (output - net.dense.restore(x)).abs()
    assert difference.mean() < 0.2 * float_weights.mean()


def test_the_options_name_what_is_allowed():
    from basicsr_classpruning.config.networks import ClassPruningNetwork

    options = network_g('DnCNN', candidates=LADDER, weights='own', unit=4, fp32=['^model.6$'])
    assert ClassPruningNetwork.model_validate(options).fp32 == ['^model.6$']
    with pytest.raises(ValueError, match="'shared' is not allowed with 4:16-int8, 8:16-int8, 16:16-int8; own"):
        ClassPruningNetwork.model_validate({**options, 'weights': 'shared'})
    assert set(NETWORKS['DnCNN']) == set(options['base'])


# ------------------------------------------------------------------------------------------------------------- training


def training_from(folder, pictures, **train):
    """Options of a training that starts from a network with grids."""
    net = int8_network(candidates=LADDER, classifier={'type': 'BandClassifier'})
    write_checkpoint(folder / 'start.pth', {'params': net.state_dict()}, net.options)
    options = training_options(
        pictures, 'DnCNN', split='none', stages={'supernet': 4}, freeze_dense=True, **DISTILL, **train
    )
    options['network_g'] |= {
        'candidates': LADDER,
        'weights': 'own',
        'unit': 4,
        'classifier': {'type': 'BandClassifier'},
    }
    options['path'] = {'pretrain_network_g': str(folder / 'start.pth')}
    return net, options


def test_two_steps_train_what_rounds_and_keep_masks_and_grids(tmp_path, pictures):
    start, options = training_from(tmp_path, pictures)
    model = model_of(tmp_path, options)
    for iteration in (1, 2):
        step(model, iteration, batch('DnCNN'))
    for (name, before), (_, after) in zip(sparse_layers(start.base), sparse_layers(model.net_g.base)):
        assert torch.equal(before.weight_scales, after.weight_scales), name
        assert torch.equal(before.input_scale, after.input_scale)
        *_, dense = zip(before.weights, after.weights)
        for one, other in zip(before.weights, after.weights):
            # The dense integers are as near to the dense network as calibration brought them.
            assert torch.equal(one, other) == (one is dense[0])
            assert torch.equal(one == 0, other == 0)
    x = torch.rand(1, 3, 16, 16)
    own = ('.weights.', '.biases.')  # what is learnt from stays as it is, or both would drift together
    before = start.base.state_dict()
    changed = [key for key, value in model.net_g.base.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == [key for key in before if any(part in key for part in own) and not key.endswith('.2')]
    for index, name in enumerate(LADDER):
        net = model.net_g.eval()
        with torch.no_grad():
            torch.testing.assert_close(net.run_sparse(x, index), net.restore_with(x, name), rtol=0, atol=1e-6)


def test_a_resumed_run_ends_as_the_uninterrupted_one_and_its_last_file_is_packed(tmp_path, monkeypatch, pictures):
    _, options = training_from(tmp_path, pictures)
    options['logger']['save_checkpoint_freq'] = 2
    ends = []
    for folder in ('whole', 'resumed'):
        assert run(tmp_path / folder, monkeypatch, options) == 0
        models = tmp_path / folder / EXPERIMENT / 'models'
        if folder == 'resumed':
            for path in (*models.glob('*_4.pth'), *models.glob('*latest*'), models.parent / 'training_states/4.state'):
                path.unlink()
            assert run(tmp_path / folder, monkeypatch, options, '--auto_resume') == 0
        ends.append(torch.load(models / 'net_g_latest.pth', weights_only=True))
    assert same(ends[0]['params'], ends[1]['params'])
    assert same(ends[0]['packed'], ends[1]['packed'])
    entries = ends[0]['packed']['params']
    assert entries['base.model.2.weights.0']['values'].dtype == torch.int8
    # On the way nothing is rounded.
    between = torch.load(models / 'net_g_2.pth', weights_only=True)['packed']['params']
    assert between['base.model.2.weights.0']['values'].dtype == torch.float32
