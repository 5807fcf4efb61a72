"""The kernels in patches compute what each candidate's layer would have computed there, and touch nothing else."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import classpruning
from torch import nn

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.inference.patched import CELL, NOTHING, PatchedNetwork
from basicsr_classpruning.kernels import native, ops
from basicsr_classpruning.kernels.jobs import JobList, dilated
from basicsr_classpruning.kernels.layers import Epilogue
from basicsr_classpruning.kernels.patches import PatchedConv2d, weight_array

LIBRARY = native.load()
ISAS = [isa for isa in ('avx2', 'avx512', 'wide') if LIBRARY is not None and LIBRARY.supports(isa)]
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
def test_nothing_else_is_read_or_written(isa, winograd, monkeypatch):
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
    jobs = JobList(cells, 1)
    y = torch.full((1, 20, 36, 48), 7.0)
    weights = weight_array([one.packed for one in net.weights], [one.bias for one in net.weights])
    ops.conv2d_in_jobs(poisoned, y, jobs.by_weight, weights, 4)
    scale = wanted.abs().max()
    assert (y - wanted).abs()[:, :, pixels].max() <= TOLERANCE * scale
    known = torch.from_numpy(np.kron(dilated(cells != NOTHING, 1), np.ones((4, 4), bool)))
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
