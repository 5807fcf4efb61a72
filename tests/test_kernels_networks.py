"""Accelerated networks equal the networks they were made of; what is fused is what may be fused."""

from __future__ import annotations

import copy
import re
import threading

import pytest
import torch
import torch.nn.functional as F
from tiny import in_threads
from torch import nn

from basicsr_classpruning import kernels
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.kernels import native
from basicsr_classpruning.kernels.layers import KernelLayer
from basicsr_classpruning.sparsity.pattern import Pattern

TOLERANCE = 1e-4  # of the output's scale: what Winograd's algorithm may differ by


def sparse(net: nn.Module, pattern: Pattern) -> dict[str, Pattern]:
    """Gives every layer that the pattern fits random zeros, and every parameter a value that matters."""
    generator = torch.Generator().manual_seed(0)
    pruned = {}
    for parameter in net.parameters():
        if parameter.dim() == 1 or parameter.shape[0] == 1:
            parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape, generator=generator)
    for name, layer in net.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or layer.weight.shape[1] % pattern.m:
            continue
        weight = layer.weight.data
        groups = torch.rand((weight.shape[0], weight.shape[1] // pattern.m, pattern.m), generator=generator)
        mask = (groups.argsort(2).argsort(2) < pattern.n).reshape(weight.shape[:2])
        layer.weight.data = weight * mask.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
        pruned[name] = pattern
    return pruned


def basicsr_networks():
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.archs.rcan_arch import RCAN
    from basicsr.archs.ridnet_arch import RIDNet
    from basicsr.archs.rrdbnet_arch import RRDBNet
    from basicsr.archs.srresnet_arch import MSRResNet
    from basicsr.archs.srvgg_arch import SRVGGNetCompact
    from basicsr.archs.swinir_arch import SwinIR

    from basicsr_classpruning.archs.dncnn_arch import DnCNN
    from basicsr_classpruning.archs.nafnet_arch import NAFNet

    return {
        'EDSR': lambda: EDSR(3, 3, num_feat=16, num_block=2, upscale=2, res_scale=0.1),
        'MSRResNet': lambda: MSRResNet(num_feat=16, num_block=2),
        'SRVGG prelu': lambda: SRVGGNetCompact(num_feat=16, num_conv=3),
        'SRVGG relu': lambda: SRVGGNetCompact(num_feat=16, num_conv=3, act_type='relu'),
        'DnCNN': lambda: DnCNN(3, 3, num_feat=16, num_conv=4),
        'NAFNet': lambda: NAFNet(width=16, enc_blk_nums=(1, 1), dec_blk_nums=(1, 1)),
        'RCAN': lambda: RCAN(3, 3, num_feat=16, num_group=1, num_block=2, squeeze_factor=4, upscale=2),
        'RRDBNet': lambda: RRDBNet(3, 3, num_feat=16, num_block=1, num_grow_ch=16),
        'RIDNet': lambda: RIDNet(3, 16, 3, num_block=1),
        'SwinIR': lambda: SwinIR(
            img_size=16, window_size=8, embed_dim=16, depths=(2,), num_heads=(2,), upscale=2, upsampler='pixelshuffle'
        ),
    }


@pytest.fixture(params=['compiled', 'reference'])
def path(request, monkeypatch):
    if request.param == 'reference':
        monkeypatch.setenv(native.ISA_VARIABLE, 'reference')
    elif native.available() is None:
        pytest.skip('the kernels are not compiled, or the processor has no AVX2')
    return request.param


@pytest.mark.parametrize('name', basicsr_networks())
@torch.no_grad()
def test_an_accelerated_network_equals_its_original(name, path):
    torch.manual_seed(0)
    net = basicsr_networks()[name]().eval()
    pruned = sparse(net, Pattern(4, 16))
    before = copy.deepcopy(net.state_dict())
    x = torch.rand(2, 3, 16, 16) if name == 'SwinIR' else torch.rand(2, 3, 20, 28)
    wanted = net(x)
    accelerated = kernels.accelerate(net, pruned)
    kept = x.clone()
    found = accelerated(x)
    assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(net(x), wanted)
    made = sum(isinstance(module, KernelLayer) for module in accelerated.modules())
    assert made >= len(pruned)


def fused(net: nn.Module, **pruned: Pattern) -> dict[str, tuple[str, ...]]:
    return {layer.name: layer.fused for layer in kernels.plan(net, pruned)}


def test_what_is_fused_in_edsr_and_msrresnet():
    edsr, msrresnet = (basicsr_networks()[name]() for name in ('EDSR', 'MSRResNet'))
    found = fused(edsr)
    assert found['body.0.conv1'] == ('relu',)
    assert found['body.0.conv2'] == ('scale', 'residual')
    assert found['conv_after_body'] == ('residual',)
    found = fused(msrresnet)
    assert found['upconv1'] == ('leaky_relu', 'pixel_shuffle')
    assert found['conv_last'] == ('residual',)


class Shuffles(nn.Module):
    """Pixel shuffles, each followed by something else."""

    def __init__(self) -> None:
        super().__init__()
        self.up2, self.up3, self.up5 = (nn.Conv2d(4, 4 * r**2, 3, padding=1) for r in (2, 3, 5))
        self.kept, self.shuffle = nn.Conv2d(4, 16, 1), nn.PixelShuffle(2)
        self.prelu = nn.PReLU(4)

    def forward(self, x):
        a = F.leaky_relu(self.shuffle(F.gelu(self.up2(x))) + F.interpolate(x, scale_factor=2))
        b = F.relu(F.pixel_shuffle(self.up3(x), 3) * 0.5)
        c = F.pixel_shuffle(self.up5(x), 5)
        d = self.prelu(self.shuffle(self.up2(x)))  # another slope for each channel of the shuffled picture
        before = self.kept(x)
        return a, b, c, d, self.shuffle(before), F.leaky_relu(self.shuffle(self.up2(x)), 0.3), before


@torch.no_grad()
def test_pixel_shuffles_and_what_follows_them(path):
    torch.manual_seed(3)
    net, x = Shuffles().eval(), torch.randn(2, 4, 7, 18)
    net.prelu.weight.data = torch.linspace(-0.5, 1.5, 4)
    for found, wanted in zip(kernels.accelerate(net, {})(x), net(x), strict=True):
        assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


def test_plan_says_why_a_layer_stays_with_torch():
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'),
        nn.Conv2d(4, 4, 1, stride=8),
        nn.Conv2d(4, 4, 1).double(),
        nn.Conv2d(4, 4, 1),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
    )
    plans = kernels.plan(net, {'6': Pattern(2, 4)})
    assert [plan.name for plan in plans] == [str(i) for i in range(8)]
    reasons = ['4 groups', 'ConvTranspose2d', 'reflect', r'stride \(8, 8\)', 'float64']
    for plan, reason in zip(plans, reasons):
        assert plan.engine == 'torch'
        assert plan.why
        assert re.search(reason, plan.why)
    assert [plan.engine == 'torch' for plan in plans[5:]] == [False, False, True]
    assert plans[7].why == 'a dense linear layer'


class Reused(nn.Module):
    """Everything that a careless fusion would break."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)
        self.gain = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.row = nn.Parameter(torch.randn(8, 1))

    def forward(self, x):
        y = self.a(x)
        z = self.relu(y)  # changes y too
        z = self.b(z) + y
        w = self.c(z)
        v = w * self.gain + w  # w is read twice: nothing may be fused into c
        w = self.a(v) * self.row  # a again, and a factor that is not one for each channel
        u = self.relu(self.b(w) - v) + F.leaky_relu(self.b(v), 0.3)
        u += self.c(u).mul_(2)
        return z - self.c(u), F.gelu(self.a(u) / 3 + z), self.a(x) * self.b(x)


@torch.no_grad()
def test_values_used_elsewhere_and_in_place_activations(path):
    torch.manual_seed(1)
    net, x = Reused().eval(), torch.randn(1, 8, 8, 8)
    accelerated = kernels.accelerate(net, {})
    assert isinstance(accelerated, torch.fx.GraphModule)
    for found, wanted in zip(accelerated(x), net(x)):
        assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.PReLU(4), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        first = self.conv(x)
        half = first[:, :2]
        half.relu_()  # a view: first changes too
        return self.body(first)


class Branches(ChangesItsInput):
    def forward(self, x):
        return self.body(self.conv(x)) if x.mean() > 0 else x


@pytest.mark.parametrize('make', [ChangesItsInput, Branches])
@torch.no_grad()
def test_networks_that_cannot_be_traced_have_their_layers_replaced(make, path):
    torch.manual_seed(2)
    net, x = make().eval(), torch.rand(1, 4, 9, 9)
    accelerated = kernels.accelerate(net, {})
    assert type(accelerated) is make
    assert sum(isinstance(module, KernelLayer) for module in accelerated.modules()) == 3
    assert isinstance(accelerated.body[1], nn.Identity)
    assert (accelerated(x) - net(x)).abs().max() <= 1e-6


@torch.no_grad()
def test_eight_threads_restore_the_same(path):
    net = basicsr_networks()['EDSR']().eval()
    accelerated = kernels.accelerate(net, sparse(net, Pattern(8, 16)))
    inputs = [torch.rand(1, 3, 16 + i, 20) for i in range(8)]
    wanted = [accelerated(x) for x in inputs]

    @torch.no_grad()  # of the thread that runs it
    def work(i: int) -> list[torch.Tensor]:
        return [accelerated(inputs[i]) for _ in range(3)]

    found = in_threads(8, work)
    assert all(torch.equal(output, wanted[i]) for i, outputs in enumerate(found) for output in outputs)


def test_the_fastest_engine_is_chosen_once_for_each_shape():
    calls: list[str] = []

    def quick(x):
        calls.append('quick')
        return x

    def slow(x):
        calls.append('slow')
        threading.Event().wait(0.02)
        return x

    fastest = kernels.Fastest({'slow': slow, 'quick': quick})
    x = torch.zeros(1, 3, 8, 8)
    assert fastest.choose(x) == 'quick'
    measured = len(calls)
    fastest(x)
    assert calls[measured:] == ['quick']
    fastest(torch.zeros(1, 3, 4, 8))
    assert 'slow' in calls[measured + 1 :]


def test_the_instruction_set_can_be_forced(monkeypatch):
    monkeypatch.setenv(native.ISA_VARIABLE, 'reference')
    assert kernels.available() is None
    assert 'reference' in kernels.describe()
    monkeypatch.setenv(native.ISA_VARIABLE, 'sse')
    with pytest.raises(UsageError, match='must be avx2, avx512 or reference'):
        kernels.available()


def test_the_reference_path_says_once_that_it_runs(monkeypatch, caplog):
    monkeypatch.setenv(native.ISA_VARIABLE, 'reference')
    native._say_once.cache_clear()
    for _ in range(3):
        kernels.accelerate(nn.Sequential(nn.Conv2d(4, 4, 3)), {})
    assert sum('reference path' in record.message for record in caplog.records) == 1


def test_without_the_library_the_reference_path_runs(monkeypatch, tmp_path):
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(tmp_path / 'missing.so'))
    native.load.cache_clear()
    try:
        assert native.load() is None
        assert kernels.available() is None
        net, x = nn.Sequential(nn.Conv2d(4, 4, 3)), torch.rand(1, 4, 8, 8)
        assert torch.allclose(kernels.accelerate(net, {})(x), net(x))
        monkeypatch.setenv(native.ISA_VARIABLE, 'avx2')
        with pytest.raises(UsageError, match='not installed'):
            kernels.available()
    finally:
        native.load.cache_clear()


def test_compile_sees_the_operators(path):
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    accelerated, x = kernels.accelerate(net, {}), torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        compiled = torch.compile(accelerated, backend='eager', fullgraph=True)
        assert torch.allclose(compiled(x), net(x), atol=1e-6)
