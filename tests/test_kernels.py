"""The compiled kernels compute what PyTorch computes, whatever the sizes, the pattern and the memory layout."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import in_threads
from torch import nn

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.kernels import native, ops
from basicsr_classpruning.kernels.blocks import KernelPointwise
from basicsr_classpruning.kernels.choice import Choices
from basicsr_classpruning.kernels.layers import Epilogue, KernelConv2d
from basicsr_classpruning.sparsity.masks import magnitude_rank, mask_of
from basicsr_classpruning.sparsity.pattern import Pattern

LIBRARY = native.load()
ISAS = [isa for isa in ('avx2', 'avx512', 'wide') if LIBRARY is not None and LIBRARY.supports(isa)] + ['reference']
TOLERANCE = 1e-5  # of the output's scale
WINOGRAD_TOLERANCE = 1e-4

settings.register_profile('kernels', deadline=None, max_examples=40, derandomize=True)
settings.load_profile('kernels')


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv(native.ISA_VARIABLE, request.param)
    return request.param


class Build:
    """Makes kernel layers that run on one algorithm, whatever is faster."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm

    def __call__(self, layer: nn.Conv2d, epilogue: Epilogue) -> KernelConv2d:
        made = KernelConv2d(layer, epilogue)
        if self.algorithm == 'winograd':
            if made.winograd is None:
                pytest.skip('not a layer for Winograd, or the reference runs')
            made.packed = made.winograd
        made.winograd = None
        return made

    def assert_close(self, found: torch.Tensor, wanted: torch.Tensor) -> None:
        assert_close(found, wanted, WINOGRAD_TOLERANCE if self.algorithm == 'winograd' else TOLERANCE)


@pytest.fixture(params=['direct', 'winograd'])
def build(request, isa):
    return Build(request.param)


def random_sparse(shape: tuple[int, ...], pattern: Pattern, generator: torch.Generator) -> torch.Tensor:
    """A weight whose zeros follow the pattern exactly, drawn group by group."""
    weight = torch.randn(shape, generator=generator)
    out_channels, in_channels = shape[:2]
    taps = weight.reshape(out_channels, in_channels, -1)
    for o in range(0, out_channels, pattern.block):
        for group in range(0, in_channels, pattern.m):
            for tap in range(taps.shape[2]):
                dropped = group + torch.randperm(pattern.m, generator=generator)[pattern.n :]
                taps[o : o + pattern.block, dropped, tap] = 0
    return taps.reshape(shape)


def assert_close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape
    scale = wanted.abs().max().item() if wanted.numel() else 1.0
    worst = (found - wanted).abs().max().item() if wanted.numel() else 0.0
    assert worst <= tolerance * max(scale, 1e-3), f'{worst} of {scale}'


@st.composite
def patterns(draw) -> Pattern:
    m = draw(st.sampled_from([1, 2, 3, 4, 8, 16, 32]))
    return Pattern(draw(st.integers(1, m)), m, draw(st.sampled_from([1, 2, 4, 8])))


@st.composite
def convolutions(draw) -> tuple[nn.Conv2d, torch.Tensor]:
    pattern = draw(patterns())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    kernel = (draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 2, 3, 5])))
    layer = nn.Conv2d(
        pattern.m * draw(st.integers(1, 3)),
        pattern.block * draw(st.integers(1, 3)) + draw(st.integers(0, 3)) * (pattern.block == 1),
        kernel,
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        bias=draw(st.booleans()),
    )
    layer.weight.data = random_sparse(tuple(layer.weight.shape), pattern, generator)
    if layer.bias is not None:
        layer.bias.data.normal_(generator=generator)
    smallest = [(k - 1) * d + 1 for k, d in zip(kernel, layer.dilation)]
    height, width = (least + draw(st.integers(0, 40)) for least in smallest)
    x = torch.randn((draw(st.integers(1, 2)), layer.in_channels, height, width), generator=generator)
    return layer.requires_grad_(False), x


@pytest.mark.parametrize('isa_name', ISAS)
@given(case=convolutions())
def test_convolution_equals_torch(isa_name, case):
    layer, x = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.ISA_VARIABLE, isa_name)
        assert_close(Build('direct')(layer, Epilogue())(x), layer(x))


@st.composite
def winograd_convolutions(draw) -> tuple[nn.Conv2d, torch.Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    channels = st.one_of(st.integers(1, 70), st.sampled_from([16, 32, 48, 64]))
    layer = nn.Conv2d(draw(channels), draw(channels), 3, padding=padding, bias=draw(st.booleans()))
    layer.weight.data.normal_(generator=generator)
    block, kept = draw(st.sampled_from([4, 8, 16, 32, 64])), draw(st.sampled_from([0, 0.25, 0.5, 1]))
    for outputs in layer.weight.data.split(block):  # whole kernels, which are skipped
        outputs[:, torch.rand(layer.in_channels, generator=generator) >= kept] = 0
    if layer.bias is not None:
        layer.bias.data.normal_(generator=generator)
    sizes = [draw(st.integers(max(1, 3 - 2 * pad), 70)) for pad in padding]
    x = torch.randn((draw(st.integers(1, 2)), layer.in_channels, *sizes), generator=generator)
    return layer.requires_grad_(False), x


@pytest.mark.parametrize('isa_name', [isa for isa in ISAS if isa != 'reference'])
def test_winograd_drops_kernels_that_a_block_shares(isa_name, monkeypatch):
    monkeypatch.setenv(native.ISA_VARIABLE, isa_name)
    dense = nn.Conv2d(64, 64, 3, padding=1).requires_grad_(False)
    words = KernelConv2d(dense, Epilogue()).winograd.numel()
    for block, kept in ((64, 0.25), (32, 0.25), (16, 0.25), (1, 1)):
        layer = copy.deepcopy(dense)
        pattern = Pattern(4, 16, block, share_taps=True)
        layer.weight *= mask_of(magnitude_rank(layer.weight, pattern), pattern)
        found = KernelConv2d(layer, Epilogue()).winograd.numel() / words
        assert found == pytest.approx(kept, abs=0.01), block


@pytest.mark.parametrize('isa_name', [isa for isa in ISAS if isa != 'reference'])
@given(case=winograd_convolutions())
def test_winograd_equals_torch(isa_name, case):
    layer, x = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.ISA_VARIABLE, isa_name)
        winograd = Build('winograd')
        winograd.assert_close(winograd(layer, Epilogue())(x), layer(x))


@pytest.mark.parametrize('isa_name', ISAS)
@given(pattern=patterns(), groups=st.integers(1, 4), out=st.integers(1, 5), tokens=st.integers(1, 300))
def test_linear_equals_torch(isa_name, pattern, groups, out, tokens):
    generator = torch.Generator().manual_seed(tokens)
    layer = nn.Linear(pattern.m * groups, pattern.block * out).requires_grad_(False)
    layer.weight.data = random_sparse(tuple(layer.weight.shape), pattern, generator)
    layer.bias.data.normal_(generator=generator)
    x = torch.randn((1, tokens, layer.in_features), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.ISA_VARIABLE, isa_name)
        assert_close(KernelPointwise(layer, Epilogue())(x), layer(x))


def conv(in_channels: int, out_channels: int, kernel: int = 3, pattern: Pattern | None = None, **options) -> nn.Conv2d:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(in_channels, out_channels, kernel, **options).requires_grad_(False)
    layer.weight.data = random_sparse(tuple(layer.weight.shape), pattern or Pattern(2, 4), generator)
    return layer


EPILOGUES = [
    (Epilogue(), lambda y, r: y),
    (Epilogue('relu'), lambda y, r: F.relu(y)),
    (Epilogue('leaky_relu', torch.tensor([0.2])), lambda y, r: F.leaky_relu(y, 0.2)),
    (Epilogue('prelu', torch.linspace(-0.5, 1.5, 12)), lambda y, r: F.prelu(y, torch.linspace(-0.5, 1.5, 12))),
    (Epilogue('gelu'), lambda y, r: F.gelu(y)),
    (Epilogue('relu', order='before'), lambda y, r: F.relu(y + r)),
    (Epilogue('gelu', order='after'), lambda y, r: F.gelu(y) + r),
    (Epilogue('none', order='after', scale=torch.tensor([-0.3])), lambda y, r: -0.3 * y + r),
    (
        Epilogue('relu', scale=torch.linspace(-1, 1, 12)),
        lambda y, r: F.relu(y * torch.linspace(-1, 1, 12)[:, None, None]),
    ),
]


@pytest.mark.parametrize(('epilogue', 'expected'), EPILOGUES, ids=[f'{e.fused}' for e, _ in EPILOGUES])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['planes', 'channels_last'])
@pytest.mark.parametrize('kernel', [1, 3])
def test_epilogues(build, epilogue, expected, layout, kernel):
    layer = conv(16, 12, kernel, padding=kernel // 2)
    x = (10 * torch.randn(2, 16, 11, 21)).contiguous(memory_format=layout)
    residual = torch.randn(2, 12, 11, 21) if epilogue.order != 'none' else None
    build.assert_close(build(layer, epilogue)(x, residual), expected(layer(x), residual))


@pytest.mark.parametrize('factor', [2, 3, 4])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['planes', 'channels_last'])
@pytest.mark.parametrize('kernel', [1, 3])
def test_pixel_shuffle(build, factor, layout, kernel):
    channels = 2 * factor**2
    slope = torch.linspace(-0.5, 1.5, channels)
    layer = conv(16, channels, kernel, Pattern(2, 4, 2), padding=kernel // 2)
    for size in ((11, 21), (1, 1), (13, 33)):
        x = torch.randn(2, 16, *size).contiguous(memory_format=layout)
        shuffled = F.pixel_shuffle(F.prelu(layer(x), slope), factor)
        build.assert_close(build(layer, Epilogue('prelu', slope, shuffle=factor))(x), shuffled)
        residual = torch.randn_like(shuffled)
        after = build(layer, Epilogue('prelu', slope, 'after', shuffle=factor))
        build.assert_close(after(x, residual), shuffled + residual)
        build.assert_close(after(x, residual[:1, :, :1, :1]), shuffled + residual[:1, :, :1, :1])


def test_a_shuffle_that_does_not_fit_is_named(build):
    layer, x = build(conv(16, 6, padding=1), Epilogue(shuffle=2)), torch.zeros(1, 16, 9, 9)
    with pytest.raises(ValueError, match='6 channels cannot be shuffled by 2'):
        layer(x)
    layer = build(conv(16, 8, padding=1), Epilogue('relu', order='before', shuffle=2))
    with pytest.raises(ValueError, match='after a pixel shuffle'):
        layer(x, torch.zeros(1, 2, 18, 18))


@pytest.mark.parametrize('activation', ['relu', 'prelu', 'gelu'])
def test_linear_epilogues(isa, activation):
    layer = nn.Linear(16, 10).requires_grad_(False)
    layer.weight.data = random_sparse((10, 16), Pattern(1, 4), torch.Generator().manual_seed(1))
    slope = torch.linspace(0, 1, 10) if activation == 'prelu' else None
    x, residual = torch.randn(3, 7, 16), torch.randn(3, 7, 10)
    y = layer(x)
    activated = {'relu': F.relu(y), 'gelu': F.gelu(y), 'prelu': torch.where(y < 0, y * torch.linspace(0, 1, 10), y)}
    assert_close(
        KernelPointwise(layer, Epilogue(activation, slope, 'after'))(x, residual), activated[activation] + residual
    )


def test_gelu_over_its_range(isa):
    identity = nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False)
    identity.weight.data.fill_(1.0)
    x = torch.linspace(-12, 12, 20001).reshape(1, 1, 1, -1)
    assert (KernelConv2d(identity, Epilogue('gelu'))(x) - F.gelu(x)).abs().max() < 2e-6


def test_nan_and_infinity_go_through_as_in_torch(isa):
    identity = nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False)
    identity.weight.data.fill_(1.0)
    x = torch.tensor([float('nan'), float('inf'), -float('inf'), -1.0, 0.0, 2.0]).reshape(1, 1, 2, 3)
    y = KernelConv2d(identity, Epilogue('relu'))(x)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.nan_to_num(), F.relu(x).nan_to_num())


@pytest.mark.parametrize('epilogue', [e for e, _ in EPILOGUES[1:5]], ids=lambda e: e.activation)
def test_a_residual_of_another_shape_is_broadcast(build, epilogue):
    activate = next(expected for e, expected in EPILOGUES if e is epilogue)
    layer = conv(16, 12, padding=1)
    x, residual = torch.randn(2, 16, 9, 9), torch.randn(1, 12, 1, 1)
    before, after = (build(layer, replace(epilogue, order=order)) for order in ('before', 'after'))
    build.assert_close(before(x, residual), activate(layer(x) + residual, None))
    build.assert_close(after(x, residual), activate(layer(x), None) + residual)


def test_a_residual_of_another_shape_is_broadcast_behind_a_linear_layer(isa):
    layer = nn.Linear(16, 10).requires_grad_(False)
    made = KernelPointwise(layer, Epilogue('leaky_relu', torch.tensor([0.2]), 'before'))
    x, residual = torch.randn(3, 7, 16), torch.randn(3, 1, 10)
    assert_close(made(x, residual), F.leaky_relu(layer(x) + residual, 0.2))


@pytest.mark.parametrize(
    'view',
    [
        lambda x: x[:, :, 1:-2, 3:-4],
        lambda x: x[:, :, ::2, ::3],
        lambda x: x.transpose(2, 3),
        lambda x: x.flip(1)[1:],
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:],
        lambda x: x[..., :1],
        lambda x: x[:, :, :1, :],
    ],
)
@pytest.mark.parametrize('kernel', [1, 3])
def test_any_strides(build, view, kernel):
    layer = conv(16, 6, kernel, padding=kernel // 2)
    x = view(torch.randn(2, 16, 20, 22))
    build.assert_close(build(layer, Epilogue())(x), layer(x))


def test_misaligned_input(build):
    layer = conv(16, 6, padding=1)
    for offset in range(1, 4):
        x = torch.randn(16 * 9 * 10 + offset)[offset:].reshape(1, 16, 9, 10)
        build.assert_close(build(layer, Epilogue())(x), layer(x))


@pytest.mark.parametrize('shape', [(0, 16, 8, 8), (1, 16, 0, 0)])
def test_empty_input(build, shape):
    layer = conv(16, 6, 3, padding=1)
    y = build(layer, Epilogue('relu', order='after'))(torch.zeros(shape), torch.zeros(shape[0], 6, *shape[2:]))
    assert y.shape == (shape[0], 6, *shape[2:])
    linear = nn.Linear(16, 4).requires_grad_(False)
    assert KernelPointwise(linear, Epilogue())(torch.zeros(0, 3, 16)).shape == (0, 3, 4)


def test_inputs_that_do_not_fit_are_named(build):
    layer = build(conv(16, 6), Epilogue())
    with pytest.raises(ValueError, match=r'must be \(B, 16, H, W\)'):
        layer(torch.zeros(1, 8, 9, 9))
    with pytest.raises(ValueError, match='must be float32'):
        layer(torch.zeros(1, 16, 9, 9, dtype=torch.float64))
    with pytest.raises(ValueError, match='smaller than the kernel'):
        layer(torch.zeros(1, 16, 1, 1))


def test_a_weight_packed_for_other_sizes_is_refused():
    if LIBRARY is None:
        pytest.skip('the kernels are not compiled')
    small, large = KernelConv2d(conv(8, 4), Epilogue()), KernelConv2d(conv(16, 4), Epilogue())
    small.geometry = large.geometry
    with pytest.raises(RuntimeError, match='does not belong'):
        small(torch.zeros(1, 16, 9, 9))


@pytest.mark.parametrize('in_channels', [1, 3, 5, 7])
def test_a_buffer_of_an_odd_number_of_half_vectors(isa, in_channels):
    layer = nn.Conv2d(in_channels, 4, (2, 3), padding=1).requires_grad_(False)  # four channels share one copy
    x = torch.randn(1, in_channels, 20, 20)
    assert_close(KernelConv2d(layer, Epilogue())(x), layer(x))


def test_both_algorithms_are_chosen_by_what_they_cost(monkeypatch):
    if LIBRARY is None:
        pytest.skip('the kernels are not compiled')
    monkeypatch.setattr(ops, '_algorithms', Choices(margin=1.1))
    dense, empty = (conv(64, 64, padding=1) for _ in range(2))
    dense.weight.data.normal_()
    empty.weight.data.zero_()
    x = torch.randn(2, 64, 48, 48)
    for layer, algorithm in ((dense, 'winograd'), (empty, 'direct')):
        made = KernelConv2d(layer, Epilogue())
        found = made(x)
        assert torch.equal(found, Build(algorithm)(layer, Epilogue())(x))


def test_operators_pass_opcheck(isa):
    layer = KernelConv2d(conv(8, 6, padding=1), Epilogue('leaky_relu', torch.tensor([0.1]), 'after'))
    x, residual = torch.randn(1, 8, 6, 7), torch.randn(1, 6, 6, 7)
    arguments = (x, layer.packed, layer.bias, layer.slope, residual, 'leaky_relu', 'after', layer.geometry)
    torch.library.opcheck(torch.ops.classpruning.nm_conv2d.default, arguments)
    torch.library.opcheck(torch.ops.classpruning.nm_conv2d.default, (*arguments, 1, layer.winograd))
    shuffled = KernelConv2d(conv(8, 8, padding=1), Epilogue(shuffle=2))
    arguments = (x, shuffled.packed, shuffled.bias, None, None, 'none', 'none', shuffled.geometry, 2)
    torch.library.opcheck(torch.ops.classpruning.nm_conv2d.default, arguments)


def test_eight_threads_at_once(build):
    layer = build(conv(16, 12, padding=1), Epilogue('relu'))
    inputs = [torch.randn(1, 16, 20 + i, 30) for i in range(8)]
    wanted = [layer(x) for x in inputs]
    found = in_threads(8, lambda i: [layer(inputs[i]) for _ in range(20)])
    assert all(torch.equal(output, wanted[i]) for i, outputs in enumerate(found) for output in outputs)


def test_the_number_of_threads_does_not_change_the_result(build, isa):
    layer, x = build(conv(16, 12, padding=1), Epilogue()), torch.randn(2, 16, 50, 70)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(layer(x))
    finally:
        torch.set_num_threads(before)
    if isa != 'reference':
        assert torch.equal(results[0], results[1])
    build.assert_close(results[0], results[2])


def test_without_an_openmp_runtime():
    if LIBRARY is None:
        pytest.skip('the kernels are not compiled')
    layer, x = KernelConv2d(conv(16, 12, padding=1), Epilogue()), torch.randn(2, 16, 50, 70)
    wanted = layer(x)
    before = torch.get_num_threads()
    LIBRARY.library.cp_use_parallel(None)
    try:
        torch.set_num_threads(3)
        assert torch.equal(layer(x), wanted)
    finally:
        torch.set_num_threads(before)
        LIBRARY.library.cp_use_parallel(native._openmp_parallel())


@pytest.mark.parametrize('algorithm', native.ALGORITHMS)
def test_the_environment_settles_the_algorithm(monkeypatch, algorithm):
    layer = nn.Conv2d(32, 32, 3, padding=1)
    made, x = KernelConv2d(layer, Epilogue()), torch.randn(1, 32, 40, 40)
    if made.winograd is None:
        pytest.skip('the reference runs')
    monkeypatch.setattr(ops._algorithms, 'choose', lambda case, ways: pytest.fail('nothing is measured'))
    monkeypatch.setenv(native.ALGORITHM_VARIABLE, algorithm)
    with torch.no_grad():
        found, wanted = made(x), Build(algorithm)(layer, Epilogue())(x)
    assert torch.equal(found, wanted)
    monkeypatch.setenv(native.ALGORITHM_VARIABLE, 'magic')
    with pytest.raises(UsageError, match='CLASSPRUNING_ALGORITHM=magic: must be winograd or direct'):
        made(x)
