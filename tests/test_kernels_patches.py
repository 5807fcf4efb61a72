"""The kernels in patches compute what each candidate's layer would have computed there, and touch nothing else."""

from __future__ import annotations

import copy
import ctypes

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import classpruning, int8_network
from torch import nn

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.inference.patched import CELL, NOTHING, PatchedNetwork
from basicsr_classpruning.inference.restorer import Restorer
from basicsr_classpruning.kernels import int8_native, native, ops
from basicsr_classpruning.kernels.gathering import GatheredConv2d
from basicsr_classpruning.kernels.int8_layers import Range
from basicsr_classpruning.kernels.int8_ops import int8_quantize
from basicsr_classpruning.kernels.int8_patches import PatchedInt8Conv2d
from basicsr_classpruning.kernels.jobs import JobList, dilated, weight_array
from basicsr_classpruning.kernels.layers import Epilogue
from basicsr_classpruning.kernels.patches import PatchedConv2d, PatchedNet
from basicsr_classpruning.kernels.tracing import trace
from basicsr_classpruning.sparsity.int8 import Int8Conv2d, int8_layers, largest_scale

LIBRARY = native.load()
ISAS = [isa for isa in ('avx2', 'avx512', 'wide') if LIBRARY is not None and LIBRARY.supports(isa)]
INT8_ISAS = [isa for isa in ('avx2', 'avxvnni', 'avx512vnni') if int8_native.supports(isa)]
pytestmark = pytest.mark.skipif(not ISAS, reason='the kernels are not compiled here')
TOLERANCE = 1e-4  # of the output's scale
LADDER = ['0:4', '1:4', '2:4', '4:4']


def patched(layers: list[nn.Conv2d], epilogue: Epilogue, ways: list[bool]) -> PatchedConv2d:
    """A layer whose weights run by Winograd's algorithm where ``ways`` say so and it can."""
    made = PatchedConv2d(layers, epilogue)
    for one, winograd in zip(made.weights, ways):
        if winograd and one.winograd is not None:
            one.packed = one.winograd
        one.winograd = None
    return made


def layer(generator: torch.Generator, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    made = nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation)
    weight = torch.randn(made.weight.shape, generator=generator)
    made.weight.data = weight * (torch.rand(weight.shape, generator=generator) < 0.5)
    made.bias.data = torch.randn(outputs, generator=generator)
    return made.requires_grad_(False)


def expected(layers, epilogue, x, cells, residual):
    """Each candidate's answer in its cells, zero where nothing runs, then what follows the layer."""
    chosen = torch.from_numpy(np.kron(cells, np.ones((x.shape[2] // len(cells),) * 2, int)))
    y = torch.zeros(len(x), layers[0].out_channels, *x.shape[2:])
    for k, one in enumerate(layers):
        y = torch.where(chosen == k, one(x), y)
    if epilogue.scale is not None:
        y = y * epilogue.scale.reshape(-1, 1, 1)
    if epilogue.order == 'before':
        y = y + residual
    y = ops.activate(y, epilogue.activation, epilogue.slope)
    y = F.pixel_shuffle(y, epilogue.shuffle)
    return y + residual if epilogue.order == 'after' else y


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    kernel, dilation = draw(st.sampled_from([(1, 1), (3, 1), (3, 1), (3, 2), (5, 1)]))
    shuffle = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = draw(st.integers(1, 40)), draw(st.integers(1, 5)) * shuffle**2 * draw(st.integers(1, 2))
    layers = [layer(generator, inputs, outputs, kernel, dilation) for _ in range(draw(st.integers(1, 3)))]
    order = draw(st.sampled_from(['none', 'after', 'before'] if shuffle == 1 else ['none', 'after']))
    epilogue = Epilogue(draw(st.sampled_from(['none', 'relu', 'gelu'])), order=order, shuffle=shuffle)
    cells = np.array(
        draw(st.lists(st.lists(st.integers(-1, len(layers) - 1), min_size=6, max_size=6), min_size=1, max_size=7))
    )
    side = draw(st.sampled_from([2, 4, 8]))
    x = torch.randn(
        (draw(st.integers(1, 2)), inputs, side * cells.shape[0], side * cells.shape[1]), generator=generator
    )
    return layers, epilogue, cells, x, draw(st.lists(st.booleans(), min_size=3, max_size=3))


@pytest.mark.parametrize('isa', ISAS)
@settings(deadline=None, max_examples=40, derandomize=True)
@given(case=cases())
def test_each_cell_is_its_candidates_layer(isa, case):
    layers, epilogue, cells, x, ways = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.ISA_VARIABLE, isa)
        net = patched(layers, epilogue, ways)
        shape = (len(x), layers[0].out_channels // epilogue.shuffle**2, *(n * epilogue.shuffle for n in x.shape[2:]))
        residual = torch.randn(shape) if epilogue.order != 'none' else None
        wanted = expected(layers, epilogue, x, cells, residual)
        found = [net(x, JobList(cells, None), residual)]
        torch.set_num_threads(2)
        found.append(net(x, JobList(cells, None), residual))
        torch.set_num_threads(1)
    assert torch.equal(*found)
    assert (found[0] - wanted).abs().max() <= TOLERANCE * max(wanted.abs().max().item(), 1e-3)


@pytest.mark.parametrize('isa', ISAS)
@pytest.mark.parametrize('winograd', [False, True])
@pytest.mark.parametrize('parts', [1, 4])
def test_nothing_else_is_read_or_written(isa, winograd, parts, monkeypatch):
    """Where nothing runs and nobody reads, the input may be no number and the output stays as it was."""
    monkeypatch.setenv(native.ISA_VARIABLE, isa)
    layers = [layer(torch.Generator().manual_seed(k), 24, 20, 3) for k in range(2)]
    net = patched(layers, Epilogue(), [winograd] * 2)
    cells = np.full((9, 12), NOTHING)
    cells[3:5, 2:7], cells[5, 4:6] = 1, 0
    x = torch.randn(1, 24, 36, 48)
    wanted = expected(layers, Epilogue(), x, cells, None)
    pixels = torch.from_numpy(np.kron(cells != NOTHING, np.ones((4, 4), bool)))
    read = F.max_pool2d(pixels[None, None].float(), 3, 1, 1)[0, 0] > 0
    poisoned = torch.where(read, x, torch.nan)
    jobs = JobList(cells, 1, parts)
    y = torch.full((1, 20, 36, 48), 7.0)
    weights = weight_array([one.packed for one in net.weights], [one.bias for one in net.weights])
    ops.conv2d_in_jobs(poisoned, y, jobs.by_weight, weights, jobs.part_side(36))
    scale = wanted.abs().max()
    assert (y - wanted).abs()[:, :, pixels].max() <= TOLERANCE * scale
    fine = np.kron(cells != NOTHING, np.ones((parts, parts), bool))
    known = torch.from_numpy(np.kron(dilated(fine, 1), np.ones((4 // parts, 4 // parts), bool)))
    assert (y[:, :, known & ~pixels] == 0).all()
    assert (y[:, :, ~known] == 7).all()


@given(cells=st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), min_size=1, max_size=9))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_rectangles_cover_every_cell_once(cells):
    cells = np.array(cells)
    found = np.full(cells.shape, native.LEFT_OUT)
    for y, x, rows, columns, weight in JobList(cells, None).by_weight.tolist():
        assert (found[y : y + rows, x : x + columns] == native.LEFT_OUT).all()
        found[y : y + rows, x : x + columns] = weight
    assert (found == cells).all()


def test_a_square_is_one_rectangle():
    cells = np.full((6, 6), NOTHING)
    cells[1:5, 1:5] = 2
    assert [1, 1, 4, 4, 2] in JobList(cells, None).by_weight.tolist()


@pytest.mark.parametrize(
    'job', [[0, 0, 3, 1, 0], [0, -1, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 2, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, -2]]
)
def test_jobs_that_do_not_fit_are_refused(job):
    one = layer(torch.Generator().manual_seed(0), 4, 4, 3)
    net = patched([one], Epilogue(), [False])
    x, y = torch.rand(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    weights = weight_array([net.weights[0].packed], [net.weights[0].bias])
    with pytest.raises(RuntimeError, match='does not belong'):
        ops.conv2d_in_jobs(x, y, torch.tensor([job], dtype=torch.int32), weights, 4)
    assert not y.any()


def test_the_library_and_python_agree_on_a_job():
    assert ctypes.sizeof(native.Jobs) == 32
    assert len(native.JOB_FIELDS) == 5


# --- 8-bit integers -------------------------------------------------------------------------------------------------

NEXT = Range(40.0, 77)


def integer_layer(generator, inputs: int, outputs: int, kernel: int, dilation: int = 1, zero: int = 120) -> Int8Conv2d:
    made = layer(generator, inputs, outputs, kernel, dilation)
    kept = torch.rand((outputs, -(-inputs // 4), kernel, kernel), generator=generator) < 0.5
    made.weight.data *= kept.repeat_interleave(4, 1)[:, :inputs]
    return Int8Conv2d.from_float(made, largest_scale(made.weight), 0.02, zero)


def random_epilogue(draw, outputs: int, shuffle: int) -> Epilogue:
    """One that layers of integers have fused in; a slope for each channel too."""
    slopes = {'leaky_relu': torch.tensor([0.2]), 'prelu': torch.linspace(-0.5, 1.5, outputs)}
    activation = draw(st.sampled_from(['none', 'relu', 'leaky_relu', 'prelu']))
    order = draw(st.sampled_from(['none', 'after', 'before'] if shuffle == 1 else ['none', 'after']))
    factor = draw(st.sampled_from([None, torch.tensor([-0.3]), torch.linspace(-1, 2, outputs)]))
    return Epilogue(activation, slopes.get(activation), order, factor, shuffle)


@st.composite
def integer_cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    kernel, dilation = draw(st.sampled_from([(1, 1), (3, 1), (3, 1), (3, 2), (5, 1)]))
    shuffle = draw(st.sampled_from([1, 1, 2, 3, 4]))
    inputs, outputs = draw(st.sampled_from([3, 8, 21, 150])), draw(st.integers(1, 9)) * shuffle**2
    zero = draw(st.integers(0, 255))
    layers = [integer_layer(generator, inputs, outputs, kernel, dilation, zero) for _ in range(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        for one in layers:
            one.bias = None
    columns = draw(st.integers(1, 12))
    row = st.lists(st.integers(-1, len(layers) - 1), min_size=columns, max_size=columns)
    cells = np.array(draw(st.lists(row, min_size=1, max_size=8)))
    side = draw(st.sampled_from([1, 2, 4, 8]))
    shape = (draw(st.integers(1, 2)), inputs, side * cells.shape[0], side * cells.shape[1])
    return layers, random_epilogue(draw, outputs, shuffle), cells, torch.randn(shape, generator=generator)


def in_turns(net: PatchedInt8Conv2d, x, cells, residual):
    """Floats and levels: of one call, of calls that make only one of them, and of two threads."""
    side = x.shape[2] // len(cells)
    jobs = JobList(cells, None, side if side % 2 else side // 2)
    net.makes, net.makes_floats = None, True
    yield net(x, jobs, residual), None
    net.makes = NEXT
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            yield net(x, jobs, residual)
    finally:
        torch.set_num_threads(1)
    net.makes_floats = False
    yield None, net(x, jobs, residual)
    net.makes_floats = net.may_overwrite = True
    changed = None if residual is None else residual.clone()
    y, q = net(x, jobs, changed)
    assert residual is None or y.data_ptr() == changed.data_ptr()
    yield y, q


@pytest.mark.parametrize('isa', INT8_ISAS)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(case=integer_cases())
def test_each_cell_has_the_bits_of_its_candidates_layer(isa, case):
    layers, epilogue, cells, x = case
    shape = (len(x), layers[0].out_channels // epilogue.shuffle**2, *(n * epilogue.shuffle for n in x.shape[2:]))
    residual = torch.randn(shape) if epilogue.order != 'none' else None
    wanted = expected(layers, epilogue, x, cells, residual)
    gathered = GatheredConv2d(layers)(x, JobList(cells, None))
    assert torch.equal(gathered, expected(layers, Epilogue(), x, cells, None))
    levels = int8_quantize(wanted, NEXT.numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(int8_native.ISA_VARIABLE, isa)
        net = PatchedInt8Conv2d(layers, epilogue)
        for y, q in in_turns(net, x, cells, residual):
            assert y is None or torch.equal(y, wanted)
            assert q is None or torch.equal(q, levels)


@pytest.mark.parametrize('isa', INT8_ISAS)
@pytest.mark.parametrize('order', ['before', 'after'])
def test_a_residual_of_another_shape_is_added_to_integers(isa, order, monkeypatch):
    monkeypatch.setenv(int8_native.ISA_VARIABLE, isa)
    layers = [integer_layer(torch.Generator().manual_seed(k), 8, 12, 3) for k in range(2)]
    epilogue = Epilogue('prelu', torch.linspace(-0.5, 1.5, 12), order)
    net, x, residual = PatchedInt8Conv2d(layers, epilogue), torch.randn(1, 8, 12, 20), torch.randn(1, 12, 1, 1)
    cells = np.random.default_rng(0).integers(-1, 2, (3, 5))
    wanted = expected(layers, epilogue, x, cells, residual)
    assert torch.equal(net(x, JobList(cells, None), residual), wanted)
    net.makes = NEXT
    y, q = net(x, JobList(cells, None), residual)
    assert torch.equal(y, wanted)
    assert torch.equal(q, int8_quantize(wanted, NEXT.numbers))


@pytest.mark.parametrize('isa', INT8_ISAS)
@pytest.mark.parametrize('parts', [1, 2, 4])
def test_nothing_else_is_read_or_written_in_integers(isa, parts, monkeypatch):
    """As of floats: what is far from all that runs has no influence, and the residual stays there as it was."""
    monkeypatch.setenv(int8_native.ISA_VARIABLE, isa)
    layers = [integer_layer(torch.Generator().manual_seed(k), 24, 20, 3) for k in range(2)]
    net = PatchedInt8Conv2d(layers, Epilogue(order='after'))
    net.may_overwrite, net.makes = True, NEXT
    cells = np.full((9, 12), NOTHING)
    cells[3:5, 2:7], cells[5, 4:6] = 1, 0
    pixels = torch.from_numpy(np.kron(cells != NOTHING, np.ones((4, 4), bool)))
    read = F.max_pool2d(pixels[None, None].float(), 3, 1, 1)[0, 0] > 0
    x, residual = torch.randn(1, 24, 36, 48), torch.randn(1, 20, 36, 48)
    wanted = expected(layers, Epilogue(order='after'), x, cells, residual)
    fine = np.kron(cells != NOTHING, np.ones((parts, parts), bool))
    known = torch.from_numpy(np.kron(dilated(fine, 1), np.ones((4 // parts, 4 // parts), bool)))
    added = residual.masked_fill(~known, 7.0)
    y, q = net(torch.where(read, x, torch.nan), JobList(cells, 1, parts), added)
    assert torch.equal(y[..., known], wanted[..., known])
    assert torch.equal(q[:, :, known], int8_quantize(wanted, NEXT.numbers)[:, :, known])
    assert (y[..., ~known] == 7).all()


def test_layers_of_integers_that_are_alike_run_once():
    same, other = (integer_layer(torch.Generator().manual_seed(k), 8, 12, 3) for k in range(2))
    scaled = copy.deepcopy(same)
    scaled.weight_scale *= 2
    cells, x = np.array([[0, 1, 1], [-1, 0, 1]]), torch.randn(1, 8, 8, 12)
    for layers, packed in (([same, copy.deepcopy(same)], 1), ([same, other], 2), ([same, scaled], 2)):
        net = PatchedInt8Conv2d(layers, Epilogue())
        assert 1 + len(net.others) == packed
        assert torch.equal(net(x, JobList(cells, None)), expected(layers, Epilogue(), x, cells, None))


@pytest.mark.parametrize(
    'job', [[0, 0, 3, 1, 0], [0, -1, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 2, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, -2]]
)
def test_jobs_of_integers_that_do_not_fit_are_refused(job):
    net = PatchedInt8Conv2d([integer_layer(torch.Generator().manual_seed(0), 4, 4, 3)], Epilogue())
    jobs = JobList(np.zeros((2, 2), int), None)
    jobs.__dict__['together'] = torch.tensor([job], dtype=torch.int32)
    with pytest.raises(RuntimeError, match='does not belong'):
        net(torch.rand(1, 4, 8, 8), jobs)


def test_weights_of_another_instruction_set_or_size_are_refused(monkeypatch):
    layers = [integer_layer(torch.Generator().manual_seed(k), 8, 8, 3) for k in range(2)]
    x, jobs = torch.rand(1, 8, 8, 8), JobList(np.array([[0, 1], [1, 0]]), None)
    net = PatchedInt8Conv2d(layers, Epilogue())
    unlike = [integer_layer(torch.Generator().manual_seed(2), *sizes) for sizes in ((16, 8, 3), (8, 8, 5))]
    others = [PatchedInt8Conv2d([layers[0], one], Epilogue()) for one in unlike]
    for isa in INT8_ISAS:
        monkeypatch.setenv(int8_native.ISA_VARIABLE, isa)
        others.append(PatchedInt8Conv2d(layers, Epilogue()))
    refused = 0
    for other in others:
        net._weights[1] = other._weights[1]
        if other not in others[:2] and other.packed.equal(net.packed):
            continue  # of the instruction set in use
        with pytest.raises(RuntimeError, match='does not belong'):
            net(x, jobs)
        refused += 1
    assert refused == 1 + len(INT8_ISAS)
    with pytest.raises(ValueError, match='must be'):
        net(torch.zeros(1, 3, 8, 8, 4, dtype=torch.uint8), jobs)
    with pytest.raises(ValueError, match='float32'):
        net(x, jobs, torch.zeros(1, 8, 8, 8).double())


class Integers(nn.Module):
    """Layers of integers, what their epilogues may not take over, and what mixes cells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(c, 8, 3, padding=1) for c in (4, 8, 8, 8))
        self.last = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        y = F.gelu(self.first(x))
        y = y + self.second(y) / 3
        y = F.leaky_relu(self.third(y) * 0.1 + y, 0.1)
        y = F.interpolate(torch.sigmoid(self.fourth(y)), scale_factor=2, mode='nearest')
        return self.last(y)


@pytest.mark.parametrize('isa', INT8_ISAS)
@torch.no_grad()
def test_a_network_of_integers_alone_has_the_same_bits_everywhere(isa, monkeypatch):
    monkeypatch.setenv(int8_native.ISA_VARIABLE, isa)
    base = Integers().eval()
    candidates = [copy.deepcopy(base) for _ in range(3)]
    for k, net in enumerate(candidates):
        for name, one in list(net.named_children()):
            made = integer_layer(torch.Generator().manual_seed(k), one.in_channels, one.out_channels, 3)
            setattr(net, name, made)
    found = [PatchedNet(trace(base), candidates, use_kernels) for use_kernels in (True, False)]
    assert sum(isinstance(m, PatchedInt8Conv2d) for m in found[0].modules()) == 5
    cells = np.random.default_rng(0).integers(-1, 3, (6, 9)).astype(np.int32)
    y, wanted = (net(torch.randn(2, 4, 24, 36, generator=torch.Generator().manual_seed(5)), cells) for net in found)
    assert torch.equal(y, wanted)


@pytest.mark.parametrize('change', ['range', 'float', 'reference'])
@torch.no_grad()
def test_candidates_that_share_no_integers_are_gathered(change, monkeypatch):
    base = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    candidates = [copy.deepcopy(base) for _ in range(2)]
    for k, net in enumerate(candidates):
        for i in (0, 2):
            net[i] = integer_layer(torch.Generator().manual_seed(k), net[i].in_channels, net[i].out_channels, 3)
    if change == 'range':
        candidates[1][2].input_scale *= 2
    elif change == 'float':
        candidates[1][2] = copy.deepcopy(base[2])
    else:
        monkeypatch.setenv(int8_native.ISA_VARIABLE, 'reference')
    kernels, reference = (PatchedNet(trace(base), candidates, use_kernels) for use_kernels in (True, False))
    gathered = [m for m in kernels.modules() if isinstance(m, GatheredConv2d)]
    assert len(gathered) == (2 if change == 'reference' else 1)
    cells = np.array([[0, 1, -1, 1], [1, -1, 0, 0]], np.int32).repeat(2, 0)
    x = torch.randn(1, 4, 16, 16)
    runs = torch.from_numpy(np.kron(cells >= 0, np.ones((4, 4), bool)))
    torch.testing.assert_close(kernels(x, cells)[..., runs], reference(x, cells)[..., runs], rtol=1e-6, atol=1e-6)


def random_cells(seed: int, rows: int, columns: int) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(-5, 4, (rows, columns))
    return np.where(cells < 1, NOTHING, cells).repeat(3, 0).repeat(3, 1)


def assert_same_in_patches(net: ClassPruning, seed: int = 0) -> None:
    """The kernels against PyTorch, where something runs."""
    routed = net.routed()
    kernels, reference = PatchedNetwork(routed, 'cpu'), PatchedNetwork(routed, 'dense')
    cells = reference.with_ring(random_cells(seed, 5, 7))
    x = torch.rand(1, 3, CELL * cells.shape[0], CELL * cells.shape[1])
    wanted, found = reference(x, cells), kernels(x, cells)
    side = CELL * net.scale
    runs = torch.from_numpy(np.kron(cells != NOTHING, np.ones((side, side), bool)))
    assert runs.any()
    assert not runs.all()
    difference = (found - wanted)[..., runs].abs().max()
    assert difference <= TOLERANCE * wanted[..., runs].abs().max()


@pytest.mark.parametrize('name', ['EDSR', 'MSRResNet', 'SRVGGNetCompact', 'DnCNN'])
@pytest.mark.parametrize('seed', [0, 1])
def test_networks_are_the_same_on_the_kernels_and_in_pytorch(name, seed):
    assert_same_in_patches(classpruning(name, candidates=LADDER, weights='own'), seed)


class Mixed(nn.Module):
    """A depthwise convolution, a wide kernel, and features that are enlarged in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, padding=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 3, 3, padding=2, dilation=2)

    def forward(self, x):
        y = F.silu(self.depthwise(torch.relu(self.first(x)))) + 0.5
        return self.third(F.interpolate(self.second(y), scale_factor=2, mode='bilinear')) + F.interpolate(
            x, scale_factor=2
        )


def test_layers_that_the_kernels_do_not_run_are_gathered():
    net = ClassPruning({'type': 'Mixed'}, ['2:4', '4:4'], base_net=Mixed())
    routed = net.routed()
    cells = random_cells(0, 4, 5)
    cells = np.where(cells > 0, np.random.default_rng(1).integers(0, 2, cells.shape), NOTHING)
    x = torch.rand(1, 3, CELL * cells.shape[0], CELL * cells.shape[1])
    found, wanted = (PatchedNetwork(routed, backend)(x, cells) for backend in ('cpu', 'dense'))
    runs = torch.from_numpy(np.kron(cells != NOTHING, np.ones((CELL * 2, CELL * 2), bool)))
    assert (found - wanted)[..., runs].abs().max() <= TOLERANCE * wanted.abs().max()


# Of whole networks, bits can be the same only where the first layer, of floats, is exact in any order of its sums.


def exact_first_layer(net: ClassPruning) -> ClassPruning:
    first = next(m for m in net.base.modules() if isinstance(m, nn.Conv2d))
    for value in (first.weight, first.bias):
        value.data = (value.data * 16).round() / 16
    if hasattr(net.base, 'mean'):
        net.base.mean = (net.base.mean * 16).round() / 16
    net.forget_subnetworks()
    return net


def integer_network(name: str) -> ClassPruning:
    ladder = ['0:16', '4:16-int8', '8:16-int8', '16:16-int8']
    return exact_first_layer(int8_network(name, candidates=ladder, classifier={'type': 'BandClassifier'}))


def exact_image(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape) / 256


@pytest.mark.parametrize('isa', INT8_ISAS)
@pytest.mark.parametrize('name', ['EDSR', 'MSRResNet', 'SRVGGNetCompact', 'DnCNN'])
def test_networks_of_integers_have_the_same_bits_on_the_kernels_and_in_pytorch(isa, name, monkeypatch):
    monkeypatch.setenv(int8_native.ISA_VARIABLE, isa)
    monkeypatch.setenv(native.ALGORITHM_VARIABLE, 'direct')
    net = integer_network(name)
    routed = net.routed()
    kernels, reference = PatchedNetwork(routed, 'cpu'), PatchedNetwork(routed, 'dense')
    layers = int8_layers(routed.subnetworks[1].net)
    assert sum(isinstance(m, PatchedInt8Conv2d) for m in kernels._net.modules()) == len(layers) > 2
    assert not any(isinstance(m, GatheredConv2d) for m in kernels._net.modules())
    side = CELL * net.scale
    for seed in (0, 1):
        cells = reference.with_ring(random_cells(seed, 5, 7))
        x = exact_image(1, 3, CELL * cells.shape[0], CELL * cells.shape[1])
        runs = torch.from_numpy(np.kron(cells != NOTHING, np.ones((side, side), bool)))
        assert 0 < runs.float().mean() < 1
        assert torch.equal(kernels(x, cells)[..., runs], reference(x, cells)[..., runs])


def test_a_picture_in_patches_of_integers_has_the_same_bits_on_the_kernels_and_in_pytorch(monkeypatch):
    monkeypatch.setenv(native.ALGORITHM_VARIABLE, 'direct')
    net = integer_network('EDSR')
    image = exact_image(104, 88, 3).numpy()
    settings = {'patch': 16, 'tile': 64, 'overlap': 16, 'device': 'cpu', 'threads': 2}
    pictures = []
    for backend in ('cpu', 'dense'):
        restorer = Restorer(net, backend=backend, **settings)
        classes = np.random.default_rng(0).integers(0, 4, len(restorer.start(image).classes))
        pictures.append(np.concatenate([*restorer.start(image, classes).bands()]))
    assert pictures[0].shape == (208, 176, 3)
    assert np.array_equal(*pictures)
