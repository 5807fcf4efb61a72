"""What stands around layers without taps, depthwise convolutions and window attention compute what PyTorch computes."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from basicsr_classpruning import kernels
from basicsr_classpruning.kernels import block_ops, native
from basicsr_classpruning.kernels.block_ops import (
    AttentionCall,
    DepthwiseCall,
    attention_reference,
    depthwise,
    nm_pointwise,
    run_native,
    window_attention,
)
from basicsr_classpruning.kernels.blocks import Around, KernelPointwise, Norm, SwinBlock
from basicsr_classpruning.kernels.layers import Epilogue

LIBRARY = native.load()
ISAS = [isa for isa in ('avx2', 'avx512', 'wide') if LIBRARY is not None and LIBRARY.supports(isa)] + ['reference']
TOLERANCE = 2e-5  # of the output's scale

settings.register_profile('kernels', deadline=None, max_examples=40, derandomize=True)
settings.load_profile('kernels')


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv(native.ISA_VARIABLE, request.param)
    return request.param


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= TOLERANCE * max(float(wanted.abs().max()), 1e-3)


def layer_with_zeros(in_channels: int, out_channels: int, density: float, linear: bool) -> nn.Conv2d | nn.Linear:
    layer = nn.Linear(in_channels, out_channels) if linear else nn.Conv2d(in_channels, out_channels, 1)
    layer.weight.data *= torch.rand(layer.weight.shape) < density
    return layer.requires_grad_(False)


@given(data=st.data())
def test_a_pointwise_layer_and_what_is_around_it(isa_of_hypothesis, data):
    torch.manual_seed(data.draw(st.integers(0, 9)))
    in_channels, half = data.draw(st.sampled_from([1, 3, 16, 60, 100, 260])), data.draw(st.sampled_from([1, 2, 9, 32]))
    height, width = data.draw(st.sampled_from([(1, 1), (3, 5), (12, 12), (17, 23)]))
    gate, order = data.draw(st.booleans()), data.draw(st.sampled_from(['none', 'before', 'after']))
    linear, last = data.draw(st.booleans()), data.draw(st.booleans())
    layer = layer_with_zeros(in_channels, 2 * half, data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])), linear)
    norm = Norm(torch.rand(in_channels), torch.rand(in_channels), 1e-5) if data.draw(st.booleans()) else None
    activation = data.draw(st.sampled_from(['none', 'relu', 'gelu']))
    x = torch.randn(2, in_channels, height, width) + 1
    factors = torch.randn(2, in_channels, 1, 1) if not linear and data.draw(st.booleans()) else None
    residual = None if order == 'none' else torch.randn(2, half if gate else 2 * half, height, width)

    wanted = x if factors is None else x * factors
    if norm is not None:
        wanted = F.layer_norm(wanted.movedim(1, -1), (in_channels,), norm.weight, norm.bias, norm.eps).movedim(-1, 1)
    wanted = F.conv2d(wanted, layer.weight.reshape(2 * half, in_channels, 1, 1), layer.bias)
    wanted = wanted[:, :half] * wanted[:, half:] if gate else wanted
    wanted = wanted + residual if order == 'before' else wanted
    wanted = {'none': wanted, 'relu': F.relu(wanted), 'gelu': F.gelu(wanted)}[activation]
    wanted = wanted + residual if order == 'after' else wanted

    made = KernelPointwise(layer, Epilogue(activation, order=order), Around(norm, factors is not None, gate))
    if linear:
        x, residual = x.movedim(1, -1), None if residual is None else residual.movedim(1, -1)
        return in_both_packings(made, (x, residual), wanted.movedim(1, -1))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    return in_both_packings(made, (x, residual, factors), wanted)


def in_both_packings(made, inputs, wanted):
    """Runs a layer in classes and as lists."""
    for few_pixels in (0, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block_ops, 'FEW_PIXELS', few_pixels)
            assert_close(made(*inputs), wanted)


@pytest.fixture(scope='module', params=ISAS)
def isa_of_hypothesis(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.ISA_VARIABLE, request.param)
        yield request.param


def test_a_normalisation_far_from_zero(isa):
    layer = layer_with_zeros(64, 8, 0.5, linear=False)
    x = torch.randn(1, 64, 5, 7) + 100
    made = KernelPointwise(layer, Epilogue(), Around(Norm(torch.ones(64), torch.zeros(64), 1e-6)))
    wanted = layer.double()(F.layer_norm(x.double().movedim(1, -1), (64,), eps=1e-6).movedim(-1, 1)).float()
    assert (made(x) - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (12, 16), (5, 33)])
@pytest.mark.parametrize('gate', [False, True])
def test_depthwise_with_and_without_a_gate(isa, gate, size):
    x, weight, bias = torch.randn(2, 6, *size), torch.randn(6, 1, 3, 3), torch.randn(6)
    wanted = F.conv2d(x, weight, bias, padding=1, groups=6)
    wanted = wanted[:, :3] * wanted[:, 3:] if gate else wanted
    found, means = depthwise(x, weight, bias, gate)
    assert_close(found, wanted)
    assert_close(means, wanted.mean((2, 3)))


@pytest.mark.parametrize(('window', 'shift'), [(4, 0), (4, 2), (8, 4), (8, 3)])
@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (2, 3)])
def test_window_attention(isa, window, shift, rows, columns):
    qkv, bias = torch.randn(2, 3 * 2 * 5, rows * window, columns * window), torch.randn(2, window**2, window**2)
    found = window_attention(qkv, bias, window, shift, 0.5)
    assert_close(found, attention_reference(qkv, bias, window, shift, 0.5))


def test_a_swin_block_of_basicsr(isa):
    from basicsr.archs.swinir_arch import SwinTransformerBlock

    for shift in (0, 4):
        block = SwinTransformerBlock(24, (16, 16), 2, window_size=8, shift_size=shift).eval().requires_grad_(False)
        block.attn.relative_position_bias_table.normal_()
        x = torch.randn(2, 16 * 24, 24)
        assert_close(SwinBlock(block)(x, (16, 24)), block(x, (16, 24)))


def test_a_block_that_only_looks_like_a_swin_block_stays():
    from basicsr.archs.swinir_arch import SwinIR, WindowAttention

    class Cubed(WindowAttention):
        def forward(self, x, mask=None):
            return super().forward(x, mask) ** 3

    sizes = {'img_size': 16, 'window_size': 8, 'embed_dim': 16, 'depths': (2,), 'num_heads': (2,)}
    net = SwinIR(**sizes, upscale=2, upsampler='pixelshuffledirect').eval()
    blocks = net.layers[0].residual_group.blocks
    blocks[1].attn.__class__ = Cubed
    x = torch.rand(1, 3, 16, 16)
    made = kernels.accelerate(net, {})
    expected = 0 if native.available() is None else 1
    assert sum(isinstance(module, SwinBlock) for module in made.modules()) == expected
    with torch.no_grad():
        assert (made(x) - net(x)).abs().max() < 1e-4


def test_what_is_fused_in_nafnet():
    if native.available() is None:
        pytest.skip('the reference runs: depthwise convolutions and their gates stay')
    from basicsr_classpruning.archs.nafnet_arch import NAFNet

    net = NAFNet(width=16, enc_blk_nums=(1,), dec_blk_nums=(1,))
    found = {layer.name: layer for layer in kernels.plan(net, {})}
    block = {name: found[f'encoders.0.0.{name}'].fused for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')}
    assert block == {
        'conv1': ('norm',),
        'conv2': ('gate',),
        'conv3': ('factors', 'scale', 'residual'),
        'conv4': ('norm', 'gate'),
        'conv5': ('scale', 'residual'),
    }
    assert all(layer.engine == native.available() for layer in found.values())


def test_results_do_not_depend_on_threads(isa):
    layer = layer_with_zeros(60, 36, 0.5, linear=False)
    made = KernelPointwise(layer, Epilogue('gelu'), Around(Norm(torch.rand(60), torch.rand(60), 1e-5), gate=True))
    x, qkv, bias = torch.randn(2, 60, 24, 40), torch.randn(1, 30, 16, 24), torch.randn(2, 64, 64)
    weight = torch.randn(60, 1, 3, 3)

    def run() -> list[torch.Tensor]:
        return [made(x), *depthwise(x, weight, None, True), window_attention(qkv, bias, 8, 4, 1.0)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        three = run()
    finally:
        torch.set_num_threads(before)
    if isa != 'reference':
        assert all(torch.equal(a, b) for a, b in zip(one, three))


def test_operators_pass_opcheck(isa):
    around = Around(Norm(torch.rand(8), torch.rand(8), 1e-5), factors=True, gate=True)
    made = KernelPointwise(layer_with_zeros(8, 6, 0.5, linear=False), Epilogue(), around)
    x, scale = torch.randn(2, 8, 3, 5), torch.rand(2, 8)
    arguments = (x, made.packed, made.bias, None, None, scale, 'none', 'none', 6, True, 1e-5, False)
    torch.library.opcheck(torch.ops.classpruning.nm_pointwise.default, arguments)
    linear = KernelPointwise(layer_with_zeros(8, 6, 0.5, linear=True), Epilogue())
    arguments = (x.movedim(1, -1), linear.packed, linear.bias, None, None, None, 'none', 'none', 6, False, -1.0, True)
    torch.library.opcheck(torch.ops.classpruning.nm_pointwise.default, (*arguments, linear.lists))
    torch.library.opcheck(torch.ops.classpruning.nm_pointwise.default, arguments)
    torch.library.opcheck(torch.ops.classpruning.depthwise.default, (x, torch.randn(8, 1, 3, 3), None, True))
    attention = (torch.randn(1, 30, 8, 8), torch.randn(2, 16, 16), 4, 2, 0.5)
    torch.library.opcheck(torch.ops.classpruning.window_attention.default, attention)


def test_wrong_sizes_are_refused(isa):
    made = KernelPointwise(layer_with_zeros(8, 6, 0.5, linear=False), Epilogue())
    with pytest.raises((ValueError, RuntimeError)):
        made(torch.randn(1, 9, 3, 3))
    x = torch.randn(1, 8, 3, 3)
    with pytest.raises(ValueError, match='scale must be'):
        nm_pointwise(x, made.packed, None, None, None, torch.rand(1, 7), 'none', 'none', 6, False, -1.0, False)
    with pytest.raises(ValueError, match='do not fit'):
        window_attention(torch.randn(1, 30, 8, 12), torch.randn(2, 64, 64), 8, 0, 1.0)
    with pytest.raises(ValueError, match='do not fit'):
        depthwise(torch.randn(1, 3, 4, 4), torch.randn(3, 1, 3, 3), None, True)


@pytest.mark.parametrize(
    ('qkv', 'bias', 'window', 'shift'),
    [
        ((1, 30, 8), (2, 16, 16), 4, 0),
        ((1, 30, 8, 8), (2, 16), 4, 0),
        ((1, 30, 8, 8), (0, 16, 16), 4, 0),
        ((1, 30, 8, 8), (2, 0, 0), 0, 0),
        ((1, 30, 8, 8), (2, 16, 16), -4, 0),
        ((1, 30, 8, 8), (2, 16, 16), 4, 4),
        ((1, 30, 8, 8), (2, 16, 16), 4, -1),
        ((1, 31, 8, 8), (2, 16, 16), 4, 0),
        ((1, 24, 8, 8), (2, 4, 4), 2, 0),
    ],
)
def test_wrong_windows_are_refused(isa, qkv, bias, window, shift):
    with pytest.raises(ValueError, match='window_attention'):
        window_attention(torch.randn(qkv), torch.randn(bias), window, shift, 1.0)


@pytest.mark.parametrize(
    'wrong',
    [{'channels': 0}, {'height': 0}, {'width': -3}, {'batch': -1}, {'activation': 5}, {'activation': 3}],
)
def test_a_depthwise_call_of_wrong_sizes_does_not_run(monkeypatch, wrong):
    """Sizes are checked in C, too: a call that came so far would read and write anywhere."""
    monkeypatch.delenv(native.ISA_VARIABLE, raising=False)
    if native.available() is None:
        pytest.skip('the kernels are not compiled')
    x, y, weight = torch.rand(1, 2, 4, 4), torch.full((1, 2, 4, 4), 7.0), torch.rand(2, 9)
    sizes = {'batch': 1, 'channels': 2, 'height': 4, 'width': 4, 'gate': 0, 'activation': 0} | wrong
    pointers = {'x': x.data_ptr(), 'y': y.data_ptr(), 'weight': weight.data_ptr()}
    call = DepthwiseCall(**pointers, **sizes, isa=native.ISA_CODES[native.available()], threads=1)
    with pytest.raises(RuntimeError, match='do not fit each other'):
        run_native('cp_run_depthwise', call)
    assert (y == 7).all()


@pytest.mark.parametrize(
    'wrong',
    [
        {'heads': 0},
        {'heads': 3},
        {'window': 0},
        {'window': 3},
        {'window': 12},
        {'shift': 4},
        {'shift': -1},
        {'height': 6},
    ],
)
def test_an_attention_call_of_wrong_sizes_does_not_run(monkeypatch, wrong):
    monkeypatch.delenv(native.ISA_VARIABLE, raising=False)
    if native.available() is None:
        pytest.skip('the kernels are not compiled')
    x, y, bias = torch.rand(1, 24, 8, 8), torch.full((1, 8, 8, 8), 7.0), torch.rand(2, 16, 16)
    sizes = {'batch': 1, 'channels': 8, 'heads': 2, 'height': 8, 'width': 8, 'window': 4, 'shift': 0} | wrong
    pointers = {'x': x.data_ptr(), 'y': y.data_ptr(), 'bias': bias.data_ptr()}
    call = AttentionCall(**pointers, **sizes, scale=1.0, isa=native.ISA_CODES[native.available()], threads=1)
    with pytest.raises(RuntimeError, match='do not fit each other'):
        run_native('cp_run_attention', call)
    assert (y == 7).all()


def test_prepared_calls_give_the_same_for_any_input_of_a_shape():
    """What a layer remembers of a call holds for other inputs, copies of the layer, threads and layouts."""
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 1)
    made = KernelPointwise(layer, Epilogue('relu', order='before'), Around(factors=True))
    cases = []
    for size in ((5, 7), (9, 3)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x, residual = (torch.randn(2, c, *size).contiguous(memory_format=layout) for c in (16, 24))
            factors = torch.rand(2, 16, 1, 1)
            cases.append((x, residual, factors))
            cases.append((x, torch.randn(1, 24, 1, 1), factors))  # does not fit as it is
            cases.append((x, residual, torch.rand(1, 16, 1, 1)))
            cases.append((torch.randn(2, 16, size[0], 20)[..., : size[1]], residual, factors))  # not dense in memory
    wanted = [F.relu(layer(x * factors) + residual) for x, residual, factors in cases]
    for _ in range(2):
        for net in (made, deepcopy(made), pickle.loads(pickle.dumps(made)), made.float()):
            for case, y in zip(cases, wanted):
                torch.testing.assert_close(net(*case), y, rtol=1e-4, atol=1e-5)
                found = net(*(torch.zeros_like(t) for t in case))
                torch.testing.assert_close(found, F.relu(layer.bias)[None, :, None, None].expand_as(y))
