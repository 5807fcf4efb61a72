"""The kernels of 8-bit integers compute what ``sparsity/int8.py`` computes, bit for bit, on every instruction set."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from basicsr_classpruning import kernels
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.kernels import int8_native, native
from basicsr_classpruning.kernels.int8_layers import Int8KernelConv2d, Int8KernelLayer, Quantize, int8_layer
from basicsr_classpruning.kernels.int8_ops import int8_quantize
from basicsr_classpruning.kernels.layers import Epilogue
from basicsr_classpruning.sparsity.int8 import Int8Conv2d, Int8Linear, largest_scale

ISAS = [isa for isa in ('avx2', 'avxvnni', 'avx512vnni') if int8_native.supports(isa)] + ['reference']
EXAMPLES = settings(deadline=None, max_examples=40, derandomize=True)


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv(int8_native.ISA_VARIABLE, request.param)
    return request.param


def quantized(layer: nn.Conv2d | nn.Linear, scale: float = 0.02, zero: int = 120) -> Int8Conv2d | Int8Linear:
    """A layer of integers, its weights' scales by their largest."""
    layer.requires_grad_(False)
    largest = layer.weight.abs().flatten(1).amax(1).clamp(min=1e-6)
    kind = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv2d
    return kind.from_float(layer, largest / 127, scale, zero)  # type: ignore[attr-defined]


def integers(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """Turns all layers of a network without groups into those of integers, by the ranges that an input gives."""
    seen: dict[nn.Module, tuple[float, float]] = {}

    def see(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        low, high = seen.get(layer, (0.0, 0.0))
        seen[layer] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    layers = [m for m in net.modules() if type(m) in (nn.Conv2d, nn.Linear) and getattr(m, 'groups', 1) == 1]
    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    net(x)
    for hook in hooks:
        hook.remove()
    for layer, (low, high) in seen.items():
        scale = max(high - low, 1e-6) / 255
        quantized(layer, scale, round(-low / scale))  # type: ignore[arg-type]
    return net


def drop_units(weight: torch.Tensor, unit: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """A weight, some of whose units of neighbouring input channels are zeros."""
    out_channels, in_channels, *taps = weight.shape
    kept = torch.rand((out_channels, -(-in_channels // unit), *taps), generator=generator) >= share
    return weight * kept.repeat_interleave(unit, 1)[:, :in_channels]


@st.composite
def convolutions(draw) -> tuple[nn.Conv2d, torch.Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    kernel = (draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 2, 3, 5])))
    layer = nn.Conv2d(
        draw(st.one_of(st.integers(1, 20), st.sampled_from([64, 150]))),
        draw(st.integers(1, 14)),
        kernel,
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        bias=draw(st.booleans()),
    )
    unit, share = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([0, 0.5, 0.75, 1.0]))
    layer.weight.data = drop_units(layer.weight.data.normal_(generator=generator), unit, share, generator)
    if layer.bias is not None:
        layer.bias.data.normal_(generator=generator)
    smallest = [(k - 1) * d + 1 for k, d in zip(kernel, layer.dilation, strict=True)]
    height, width = (least + draw(st.integers(0, 40)) for least in smallest)
    x = torch.randn((draw(st.integers(1, 2)), layer.in_channels, height, width), generator=generator)
    return quantized(layer, 0.02, draw(st.integers(0, 255))), x  # type: ignore[return-value]


@pytest.mark.parametrize('isa_name', ISAS)
@given(case=convolutions())
@EXAMPLES
def test_convolution_equals_the_layer(isa_name, case):
    layer, x = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(int8_native.ISA_VARIABLE, isa_name)
        assert torch.equal(int8_layer(layer, Epilogue())(x), layer(x))


@pytest.mark.parametrize('isa_name', ISAS)
@given(features=st.integers(1, 40), out=st.integers(1, 9), tokens=st.integers(1, 300), seed=st.integers(0, 2**16))
@EXAMPLES
def test_linear_equals_the_layer(isa_name, features, out, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features, out)
    layer.weight.data = drop_units(layer.weight.data.normal_(generator=generator), 4, 0.5, generator)
    quantized(layer)
    x = torch.randn((1, tokens, features), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(int8_native.ISA_VARIABLE, isa_name)
        assert torch.equal(int8_layer(layer, Epilogue())(x), layer(x))


SLOPES = torch.linspace(-0.5, 1.5, 12)
EPILOGUES = [
    (Epilogue(), lambda y, r: y),
    (Epilogue('relu'), lambda y, r: F.relu(y)),
    (Epilogue('leaky_relu', torch.tensor([0.2])), lambda y, r: F.leaky_relu(y, 0.2)),
    (Epilogue('prelu', SLOPES), lambda y, r: F.prelu(y, SLOPES)),
    (Epilogue('relu', order='before'), lambda y, r: F.relu(y + r)),
    (Epilogue('prelu', SLOPES, order='after'), lambda y, r: F.prelu(y, SLOPES) + r),
    (Epilogue('none', order='after', scale=torch.tensor([-0.3])), lambda y, r: y * -0.3 + r),
    (Epilogue('relu', scale=SLOPES), lambda y, r: F.relu(y * SLOPES[:, None, None])),
]


@pytest.mark.parametrize(('epilogue', 'expected'), EPILOGUES, ids=[f'{e.fused}' for e, _ in EPILOGUES])
@pytest.mark.parametrize('kernel', [1, 3])
def test_epilogues_make_floats_and_integers(isa, epilogue, expected, kernel):
    torch.manual_seed(0)
    layer = quantized(nn.Conv2d(16, 12, kernel, padding=kernel // 2))
    x = torch.randn(2, 16, 11, 21)
    residual = torch.randn(2, 12, 11, 21) if epilogue.order != 'none' else None
    wanted = expected(layer(x), residual)
    made = int8_layer(layer, epilogue)
    assert torch.equal(made(x, residual), wanted)
    reader = quantized(nn.Conv2d(12, 4, 1), 0.011, 77)
    assert isinstance(made, Int8KernelConv2d)
    made.makes = int8_layer(reader, Epilogue()).range
    levels = int8_quantize(wanted, made.makes.numbers)
    y, q = made(x, residual)
    assert torch.equal(y, wanted)
    assert torch.equal(q, levels)
    made.makes_floats = False
    assert torch.equal(made(x, residual), levels)


@pytest.mark.parametrize('factor', [2, 3, 4])
def test_pixel_shuffle(isa, factor):
    torch.manual_seed(0)
    channels = 2 * factor**2
    layer = quantized(nn.Conv2d(10, channels, 3, padding=1))
    for size in ((11, 21), (1, 1), (13, 33)):
        x = torch.randn(2, 10, *size)
        shuffled = F.pixel_shuffle(F.relu(layer(x)), factor)
        assert torch.equal(int8_layer(layer, Epilogue('relu', shuffle=factor))(x), shuffled)
        residual = torch.randn_like(shuffled)
        made = int8_layer(layer, Epilogue('relu', None, 'after', shuffle=factor))
        assert torch.equal(made(x, residual), shuffled + residual)
        assert torch.equal(made(x, residual[:1, :, :1, :1]), shuffled + residual[:1, :, :1, :1])


@pytest.mark.parametrize('factor', [2, 3, 4])
@pytest.mark.parametrize('channels', [1, 4, 6])
@pytest.mark.parametrize('residual_too', [False, True])
def test_pixel_shuffle_into_integers(isa, factor, channels, residual_too):
    torch.manual_seed(0)
    layer = quantized(nn.Conv2d(10, channels * factor**2, 3, padding=1))
    slope = torch.linspace(-0.5, 1.5, channels * factor**2)
    made = int8_layer(layer, Epilogue('prelu', slope, 'after' if residual_too else 'none', shuffle=factor))
    assert isinstance(made, Int8KernelConv2d)
    made.makes = int8_layer(quantized(nn.Conv2d(channels, 4, 1), 0.011, 77), Epilogue()).range
    for size in ((11, 32), (1, 1), (13, 33), (25, 16)):
        x = torch.randn(2, 10, *size)
        wanted = F.pixel_shuffle(F.prelu(layer(x), slope), factor)
        residual = torch.randn_like(wanted) if residual_too else None
        wanted = wanted if residual is None else wanted + residual
        levels = int8_quantize(wanted, made.makes.numbers)
        made.makes_floats = True
        y, q = made(x, residual)
        assert torch.equal(y, wanted)
        assert torch.equal(q, levels)
        made.makes_floats = False
        assert torch.equal(made(x, residual), levels)


@pytest.mark.parametrize('order', ['before', 'after'])
def test_linear_epilogues(isa, order):
    torch.manual_seed(0)
    layer, slope = quantized(nn.Linear(16, 12)), SLOPES
    x, residual = torch.randn(3, 7, 16), torch.randn(3, 7, 12)
    y = layer(x) + (residual if order == 'before' else 0)
    wanted = torch.where(y > 0, y, y * slope) + (residual if order == 'after' else 0)
    assert torch.equal(int8_layer(layer, Epilogue('prelu', slope, order))(x, residual), wanted)


def extreme(signs: torch.Tensor, in_channels: int) -> Int8Conv2d:
    """Weights of ±127, inputs that become 0 or 255."""
    layer = nn.Conv2d(in_channels, 4, 3, padding=1, bias=False)
    layer.weight.data = 127.0 * signs.expand_as(layer.weight).contiguous()
    layer.requires_grad_(False)
    return Int8Conv2d.from_float(layer, torch.ones(4), 1.0, 0)


@pytest.mark.parametrize('signs', [[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
def test_sums_of_16_bits_do_not_saturate(isa, signs):
    layer = extreme(torch.tensor(signs).reshape(1, 4, 1, 1).repeat(1, 8, 1, 1), 32)
    x = torch.full((1, 32, 9, 17), 300.0)
    assert torch.equal(int8_layer(layer, Epilogue())(x), layer(x))
    assert 2 * 127 * 255 > 2**15  # what one instruction would have to hold in 16 bits


def test_pairs_at_the_bound_of_16_bits(isa):
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 8, 1, bias=False).requires_grad_(False)
    # pairs of magnitudes that sum to 127, 128 and 129, alone and as what two steps may add
    layer.weight.data = torch.tensor([1.0, 126, 64, 64, 127, 1, 65, 64, 64, 0, 64, 0, 65, 0, 63, 1]).repeat(8, 4)
    layer.weight.data = (layer.weight * torch.tensor([1.0, -1.0]).repeat(4)[:, None])[:, :, None, None]
    Int8Conv2d.from_float(layer, torch.ones(8), 1.0, 0)
    x = torch.full((1, 64, 5, 9), 255.0)
    assert torch.equal(int8_layer(layer, Epilogue())(x), layer(x))


def test_sums_beyond_the_integers_of_float32(isa):
    layer = extreme(torch.ones(1, 1, 1, 1), 200)
    layer.weight.data[:, ::3] = -126.0
    layer.weight.data[1] = 127.0
    x = torch.full((1, 200, 6, 19), 300.0)
    x[..., ::2, ::3] = 3.0
    y = layer(x)
    assert y.abs().max() > 2**24
    assert torch.equal(int8_layer(layer, Epilogue())(x), y)


def test_quantize_rounds_half_to_even_and_clamps(isa):
    x = torch.tensor([-1e30, -3.5, -0.5, 0.5, 1.5, 2.5, 250.5, 251.5, 1e30, float('inf'), -float('inf'), float('nan')])
    q = int8_quantize(x.reshape(1, 2, 2, 3), [1.0, 3.0])
    assert q.shape == (1, 1, 2, 3, 4)
    levels = q.movedim(-1, 2).flatten(1, 2)[0]
    assert levels[:2].flatten().tolist() == [0, 0, 3, 3, 5, 5, 253, 255, 255, 255, 0, 0]
    assert (levels[2:] == 3).all()


@pytest.mark.parametrize(
    'view',
    [
        lambda x: x[:, :, 1:-2, 3:-4],
        lambda x: x[:, :, ::2, ::3],
        lambda x: x.transpose(2, 3),
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, 1:],
        lambda x: x[..., :1],
    ],
)
def test_any_strides(isa, view):
    torch.manual_seed(0)
    x = view(torch.randn(2, 17, 20, 22))
    layer = quantized(nn.Conv2d(x.shape[1], 6, 3, padding=1))
    assert torch.equal(int8_layer(layer, Epilogue())(x), layer(x.contiguous()))


def test_calls_that_were_prepared_give_the_same_bits(isa):
    torch.manual_seed(0)
    layer = quantized(nn.Conv2d(12, 8, 3, padding=1))
    made = int8_layer(layer, Epilogue('relu', order='before'))
    assert isinstance(made, Int8KernelConv2d)
    made.makes = int8_layer(quantized(nn.Conv2d(8, 4, 1), 0.011, 77), Epilogue()).range
    for size in ((9, 20), (5, 7), (9, 20)):
        for _ in range(3):
            x, residual = torch.randn(2, 12, *size), torch.randn(2, 8, *size)
            q = int8_quantize(x, made.range.numbers)
            wanted = F.relu(layer(x) + residual)
            for added in (residual, residual.transpose(2, 3).contiguous().transpose(2, 3)):
                y, levels = made(q, added)
                assert torch.equal(y, wanted)
                assert torch.equal(levels, int8_quantize(wanted, made.makes.numbers))
            y, _ = made(q, residual[:, :, :1])
            assert torch.equal(y, F.relu(layer(x) + residual[:, :, :1]))
            assert torch.equal(made(q)[0], F.relu(layer(x)))
    assert len(made._prepared) == (0 if isa == 'reference' else 4)
    assert not copy.deepcopy(made)._prepared
    other = quantized(nn.Conv2d(12, 8, 3, padding=1, bias=False))
    replacing = int8_layer(other, Epilogue())
    made.packed, made.scale, made.bias = replacing.packed, replacing.scale, None
    y, _ = made(int8_quantize(x, made.range.numbers), residual)
    assert torch.equal(y, F.relu(other(x) + residual))
    with pytest.raises(ValueError, match='residual must be'):
        made(int8_quantize(x, made.range.numbers), residual.double())


def test_threads_change_nothing(isa):
    torch.manual_seed(0)
    layer = int8_layer(quantized(nn.Conv2d(30, 12, 3, padding=1)), Epilogue('relu'))
    x, before = torch.randn(2, 30, 50, 70), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_empty_input(isa):
    made = int8_layer(quantized(nn.Conv2d(16, 6, 3, padding=1)), Epilogue('relu'))
    for shape in ((0, 16, 8, 8), (1, 16, 0, 0)):
        assert made(torch.zeros(shape)).shape == (shape[0], 6, *shape[2:])
    assert int8_layer(quantized(nn.Linear(16, 4)), Epilogue())(torch.zeros(0, 3, 16)).shape == (0, 3, 4)


def test_what_does_not_fit_is_named(isa):
    made = int8_layer(quantized(nn.Conv2d(16, 6, 3)), Epilogue())
    with pytest.raises(ValueError, match=r'must be \(B, 16, H, W\) float32'):
        made(torch.zeros(1, 8, 9, 9))
    with pytest.raises(ValueError, match=r'must be \(B, 4, H, W, 4\) uint8'):
        made(torch.zeros(1, 3, 9, 9, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match='smaller than the kernel'):
        made(torch.zeros(1, 16, 1, 1))
    with pytest.raises(ValueError, match='cannot be shuffled by 2'):
        int8_layer(quantized(nn.Conv2d(16, 6, 3)), Epilogue(shuffle=2))(torch.zeros(1, 16, 9, 9))


def test_a_weight_packed_for_other_sizes_is_refused():
    if int8_native.available() is None:
        pytest.skip('the kernels are not compiled')
    small, large = (int8_layer(quantized(nn.Conv2d(c, 4, 3)), Epilogue()) for c in (8, 16))
    small.geometry = large.geometry
    with pytest.raises(RuntimeError, match='does not belong'):
        small(torch.zeros(1, 16, 9, 9))


def test_the_instruction_set_follows_that_of_the_other_kernels(monkeypatch):
    monkeypatch.delenv(int8_native.ISA_VARIABLE, raising=False)
    monkeypatch.setenv(native.ISA_VARIABLE, 'reference')
    assert int8_native.available() is None
    if 'avx2' in ISAS:
        monkeypatch.setenv(native.ISA_VARIABLE, 'avx2')
        assert int8_native.available() == 'avx2'
    monkeypatch.setenv(int8_native.ISA_VARIABLE, 'neon')
    with pytest.raises(UsageError, match='CLASSPRUNING_INT8_ISA=neon'):
        int8_native.available()


def test_operators_pass_opcheck(isa):
    made = int8_layer(quantized(nn.Conv2d(8, 6, 3, padding=1)), Epilogue('leaky_relu', torch.tensor([0.1]), 'after'))
    x, residual = torch.randn(1, 8, 6, 7), torch.randn(1, 6, 6, 7)
    layer = (made.packed, made.scale, made.bias, made.factor, made.slope)
    arguments = (x, *layer, residual, 'leaky_relu', 'after', made.geometry, made.range.numbers)
    operators = torch.ops.classpruning
    for rest in ((), (1, 3, [3.0, 5.0]), (1, 2, [3.0, 5.0])):
        torch.library.opcheck(operators.int8_conv2d.default, (*arguments, *rest))
    q = int8_quantize(x, made.range.numbers)
    torch.library.opcheck(operators.int8_conv2d.default, (q, *arguments[1:]))
    torch.library.opcheck(operators.int8_quantize.default, (x, [3.0, 5.0]))
    made = int8_layer(quantized(nn.Linear(8, 5)), Epilogue())
    layer = (made.packed, made.scale, made.bias, made.factor, made.slope)
    arguments = (torch.randn(2, 3, 8), *layer, None, 'none', 'none', 5, made.range.numbers)
    torch.library.opcheck(operators.int8_linear.default, arguments)


# --- networks -------------------------------------------------------------------------------------------------------


def networks():
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.archs.rcan_arch import RCAN
    from basicsr.archs.rrdbnet_arch import RRDBNet
    from basicsr.archs.srresnet_arch import MSRResNet
    from basicsr.archs.srvgg_arch import SRVGGNetCompact
    from basicsr.archs.swinir_arch import SwinIR

    from basicsr_classpruning.archs.dncnn_arch import DnCNN

    return {
        'EDSR': lambda: EDSR(3, 3, num_feat=16, num_block=2, upscale=2, res_scale=0.1),
        'MSRResNet': lambda: MSRResNet(num_feat=16, num_block=2),
        'SRVGG': lambda: SRVGGNetCompact(num_feat=16, num_conv=3),
        'DnCNN': lambda: DnCNN(3, 3, num_feat=16, num_conv=4),
        'RCAN': lambda: RCAN(3, 3, num_feat=16, num_group=1, num_block=2, squeeze_factor=4, upscale=2),
        'RRDBNet': lambda: RRDBNet(3, 3, num_feat=16, num_block=1, num_grow_ch=16),
        'SwinIR': lambda: SwinIR(  # cannot be traced: each layer quantises its own input
            img_size=16, window_size=8, embed_dim=16, depths=(2,), num_heads=(2,), upscale=2, upsampler='pixelshuffle'
        ),
    }


@pytest.mark.parametrize('name', networks())
@torch.no_grad()
def test_an_accelerated_network_gives_the_same_bits(name, isa):
    torch.manual_seed(0)
    net = networks()[name]().eval()
    x = torch.rand(2, 3, 16, 16) if name == 'SwinIR' else torch.rand(2, 3, 20, 28)
    integers(net, x)
    accelerated = kernels.accelerate(net, {})
    for _ in range(2):  # the second time with the calls of the first
        assert torch.equal(accelerated(x), net(x))
    layers = sum(isinstance(m, (Int8Conv2d, Int8Linear)) for m in net.modules())
    assert sum(isinstance(m, Int8KernelLayer) for m in accelerated.modules()) >= layers


class Trunk(nn.Module):
    """A residual trunk that two layers of unlike ranges read, and a float layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.float_layer = nn.ConvTranspose2d(8, 8, 1)

    def forward(self, x):
        trunk = F.relu(self.first(x))
        inner = F.relu(self.a(trunk))
        return self.c(inner) + trunk + self.b(trunk), self.float_layer(trunk), F.gelu(self.c(inner))


@torch.no_grad()
def test_integers_stay_between_layers_that_read_nothing_else(isa):
    torch.manual_seed(0)
    net, x = Trunk().eval(), torch.rand(1, 8, 10, 18)
    integers(net, x)
    net.b.input_scale *= 1.5
    accelerated = kernels.accelerate(net, {})
    for found, wanted in zip(accelerated(x), net(x), strict=True):
        assert torch.equal(found, wanted)
    layers = dict(accelerated.named_modules())
    assert layers['kernel_layers.a'].makes is not None  # type: ignore[union-attr]
    assert not layers['kernel_layers.a'].makes_floats  # type: ignore[union-attr]
    assert layers['kernel_layers.first'].makes_floats  # type: ignore[union-attr]
    assert layers['kernel_layers.c'].makes is None  # type: ignore[union-attr]
    assert sum(isinstance(m, Quantize) for m in layers.values()) == 2  # the network's input, and b's range
    assert sum(node.target is operator.getitem for node in accelerated.graph.nodes) == 2  # type: ignore[union-attr]


class Residuals(nn.Module):
    """Residuals that are read once, twice, late, by a layer of floats, and given out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(8))
        self.float_layer = nn.ConvTranspose2d(8, 8, 1)

    def forward(self, x):
        a, b, c, d, e, f, g, h = self.layers
        first = a(x)
        second = first + b(first)
        third = second + c(second)
        fourth = third + d(third)
        fifth = fourth + e(fourth)
        sixth = fifth + f(fifth)
        seventh = sixth + g(sixth)
        return h(seventh + first), self.float_layer(fourth), fifth, third + x


@torch.no_grad()
def test_only_residuals_that_nothing_else_reads_are_overwritten(isa):
    torch.manual_seed(0)
    net, x = Residuals().eval(), torch.rand(1, 8, 10, 18)
    integers(net, x)
    accelerated = kernels.accelerate(net, {})
    for _ in range(3):
        for found, wanted in zip(accelerated(x), net(x), strict=True):
            assert torch.equal(found, wanted)
    layers = dict(accelerated.named_modules())
    overwriting = [i for i in range(8) if layers[f'kernel_layers.layers.{i}'].may_overwrite]  # type: ignore[union-attr]
    assert overwriting == [2, 6]


def test_plan_names_the_engine(isa):
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    quantized(net[0])
    quantized(net[2])
    plans = kernels.plan(net.eval(), {})
    assert [plan.engine for plan in plans[:2]] == [f'int8-{isa}'] * 2
    assert not plans[2].engine.startswith('int8')
    assert [plan.fused for plan in plans[:2]] == [(), ('relu',)]


@pytest.mark.parametrize('epilogue', [Epilogue('leaky_relu', torch.tensor([0.2]), 'before'),
                                      Epilogue('prelu', torch.rand(8), 'before')])  # fmt: skip
def test_a_residual_before_an_activation_with_a_slope(isa, epilogue):
    """One that is broadcast, to a convolution, and one of the output's shape, to a linear layer."""
    convolution, linear = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8)
    layers = (
        (
            Int8Conv2d.from_float(convolution, largest_scale(convolution.weight), 1 / 255, 0),
            (2, 8, 12, 12),
            (1, 8, 1, 1),
        ),
        (Int8Linear.from_float(linear, largest_scale(linear.weight), 1 / 255, 0), (2, 8), (2, 8)),
    )
    for layer, shape, added in layers:
        x, residual = torch.rand(shape), torch.rand(added)
        with torch.no_grad():
            wanted = F.prelu(layer(x) + residual, epilogue.slope)
            assert torch.equal(int8_layer(layer, epilogue)(x, residual), wanted)
