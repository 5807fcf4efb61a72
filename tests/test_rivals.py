"""Engines for comparison: they restore what PyTorch does, and say why they cannot."""

from __future__ import annotations

import importlib.util
import math
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import dense
from torch import nn

from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.benchmark.models import BenchmarkModel, missing_engines
from basicsr_classpruning.benchmark.rivals import RIVALS, Conditions, Rival, calibration_inputs, make_rivals
from basicsr_classpruning.benchmark.rivals.openvino_rival import _fold_biases
from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.sizes import probe

# Largest difference of what is lossless, as a part of the output's range, and least PSNR in dB of what is not.
LOSSLESS = 1e-4
LOSSY = {'openvino-bf16': 40, 'openvino-int8': 30}


def subnetwork(net, channels=3):
    return DenseNetwork(net.eval().requires_grad_(False), probe(net, [channels]), {}).routed().dense


def smooth(count, channels, height, width):
    rough = torch.rand(count, channels, height // 8 + 1, width // 8 + 1)
    return nn.functional.interpolate(rough, (height, width), mode='bilinear')


@pytest.fixture(scope='module')
def conditions():
    """Networks with all that such networks consist of: shuffles, skips, batch norms folded, gates, grey pictures."""
    torch.manual_seed(0)
    return {
        name: Conditions(subnetwork(dense(name)), 1, 32, smooth(8, 3, 32, 32))
        for name in ('EDSR', 'NAFNet', 'SRVGGNetCompact')
    }


def engine(name, conditions):
    for package in RIVALS[name].packages:
        pytest.importorskip(package)
    if name == 'openvino-bf16':
        openvino = pytest.importorskip('openvino')
        if 'BF16' not in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
            pytest.skip('no bf16')
    return RIVALS[name].try_out(conditions)


@torch.no_grad()
def assert_restores(name, run, network, x):
    found, wanted = run(x), network.net(x)
    assert found.shape == wanted.shape
    peak = float(wanted.abs().max().clamp(min=1))
    if RIVALS[name].lossless:
        assert float((found - wanted).abs().max()) < LOSSLESS * peak
    else:
        assert 20 * math.log10(peak) - 10 * math.log10(float((found - wanted).square().mean())) > LOSSY[name]


def test_what_there_is():
    assert set(RIVALS) == {
        'eager', 'torch-compile', 'onnxruntime', 'ncnn', 'openvino-fp32', 'openvino-bf16', 'openvino-int8',
    }  # fmt: skip
    assert {name for name, rival in RIVALS.items() if not rival.lossless} == set(LOSSY)


@pytest.mark.parametrize(('network', 'threads'), [('EDSR', 1), ('NAFNet', 2), ('SRVGGNetCompact', 3)])
@pytest.mark.parametrize('name', [name for name in RIVALS if name != 'torch-compile'])
def test_restores_batches_of_any_size_as_the_network_does(name, network, threads, conditions):
    given = conditions[network]
    run = engine(name, Conditions(given.network, threads, given.tile, given.calibration))
    for shape in ((1, 3, 32, 32), (2, 3, 24, 40), (1, 3, 48, 16), (3, 3, 24, 40)):
        assert_restores(name, run, given.network, smooth(*shape))


@pytest.mark.parametrize('name', [name for name in RIVALS if name != 'torch-compile'])
def test_grey_networks_and_weights_in_channels_last(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))
    network = subnetwork(net.to(memory_format=torch.channels_last), 1)
    run = engine(name, Conditions(network, 1, 33, smooth(8, 1, 33, 33)))
    assert_restores(name, run, network, smooth(2, 1, 29, 37))


@pytest.mark.skipif(not shutil.which('g++'), reason='no C++ compiler')
def test_torch_compile_runs_no_size_in_eager_pytorch():
    """After eight of them it would, without a word."""
    from torch._dynamo import config

    torch.manual_seed(0)
    network = subnetwork(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2)))
    network.net.requires_grad_(False)
    with config.patch(fail_on_recompile_limit_hit=True):
        run = RIVALS['torch-compile'].try_out(Conditions(network, 1, 32))
        for side in range(20, 30):
            assert_restores('torch-compile', run, network, smooth(2 - side % 2, 3, side, 32))


def test_several_threads_may_call_ncnn(conditions):
    given = conditions['EDSR']
    run = engine('ncnn', given)
    images = smooth(12, 3, 32, 32).split(1)
    with ThreadPoolExecutor(4) as pool:
        for image, found in zip(images, pool.map(run, images)):
            with torch.no_grad():
                assert float((found - given.network.net(image)).abs().max()) < LOSSLESS


def test_biases_are_seen_where_int8_corrects_them(conditions):
    openvino = pytest.importorskip('openvino')
    pytest.importorskip('onnxruntime')

    def added(model):
        adds = (operator for operator in model.get_ordered_ops() if operator.get_type_name() == 'Add')
        pairs = [[value.get_node().get_type_name() for value in add.input_values()] for add in adds]
        return [second for first, second in pairs if first == 'Convolution' and second != 'Convolution']

    model = openvino.Core().read_model(conditions['SRVGGNetCompact'].graph.content, b'')
    assert 'Reshape' in added(model)
    _fold_biases(model)
    assert set(added(model)) == {'Constant'}


def test_each_missing_package_is_named(conditions, monkeypatch):
    hidden = {package for rival in RIVALS.values() for package in rival.packages}
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *rest: None if name in hidden else find_spec(name, *rest)
    )
    for rival in RIVALS.values():
        if rival.packages:
            with pytest.raises(UserError) as error:
                rival.try_out(conditions['EDSR'])
            names = ' and '.join(rival.packages)
            assert str(error.value) == f'{names} not installed: pip install basicsr-classpruning[engines]'


def test_int8_asks_for_calibration_pictures(conditions):
    pytest.importorskip('nncf')
    given = conditions['EDSR']
    with pytest.raises(UserError, match='needs `calibration`'):
        RIVALS['openvino-int8'].try_out(Conditions(given.network, 1, 32))


class Odd(nn.Module):
    """Has an operator that neither ONNX nor ncnn knows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return torch.special.i0e(self.conv(x))


def test_a_network_that_cannot_be_converted_is_missing_there_only():
    network = subnetwork(Odd())
    given = Conditions(network, 1, 32, smooth(2, 3, 32, 32))
    told = []
    engines, missing = make_rivals(given, lambda done, total: told.append((done, total)))
    assert set(engines) == {'eager', *(['torch-compile'] if shutil.which('g++') else [])}
    assert set(engines) | set(missing) == set(RIVALS)
    assert told == [(done, len(RIVALS)) for done in range(1, len(RIVALS) + 1)]
    if importlib.util.find_spec('ncnn') and importlib.util.find_spec('pnnx'):
        assert missing['ncnn'] == 'Odd cannot be converted to ncnn, which lacks aten::special_i0e'
    if importlib.util.find_spec('onnxruntime'):
        assert missing['onnxruntime'].startswith('Odd cannot be exported to ONNX')


def test_what_restores_something_else_is_refused(conditions):
    given = conditions['EDSR']
    net = given.network.net
    for make, message in (
        (lambda _: lambda x: net(x) + 0.01, 'its output is off by 0.01'),
        (lambda _: lambda x: net(x)[..., 1:], 'its output is of shape'),
        (lambda _: lambda x: net(x) * math.nan, 'its output is off by nan'),
        (lambda _: lambda x: [].pop(), 'EDSR cannot be run with it: IndexError: pop from empty list'),
    ):
        with pytest.raises(UserError, match=message):
            Rival('wrong', (), True, make).try_out(given)


def test_engines_that_only_some_networks_lack():
    class Named(BenchmarkModel):
        candidates = 0

    models = [
        Named(name, None, None, ['dense', 'eager'], missing)
        for name, missing in (('a', {'x': 'not there', 'y': 'slow'}), ('b', {'x': 'not there'}))
    ]
    assert missing_engines(models) == {'x': 'not there', 'y': 'slow (a)'}


def test_calibration_inputs(conditions, pictures):
    network = conditions['EDSR'].network
    inputs = calibration_inputs(str(pictures), Degradation.parse('bicubic2'), network, 16)
    assert inputs.shape == (60, 3, 16, 16)
    assert 0 <= float(inputs.min()) < float(inputs.max()) <= 1
    assert calibration_inputs(str(pictures), None, network, 24).shape == (60, 3, 24, 24)
    with pytest.raises(UsageError, match='absent'):
        calibration_inputs(str(pictures / 'absent'), None, network, 24)
    with pytest.raises(UsageError, match='scale'):
        calibration_inputs(str(pictures), Degradation.parse('noise0-50'), network, 24)
