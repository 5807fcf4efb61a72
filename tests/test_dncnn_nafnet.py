"""DnCNN and NAFNet: public parameter names, agreement with other implementations, any picture size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from tiny import SHARED

from basicsr_classpruning.archs.dncnn_arch import DnCNN
from basicsr_classpruning.archs.nafnet_arch import LayerNorm2d, NAFNet
from basicsr_classpruning.errors import UsageError

SMALL = {'width': 8, 'middle_blk_num': 1, 'enc_blk_nums': [1, 2], 'dec_blk_nums': [2, 1]}


def randomise(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Replaces every parameter, so that scales which start at zero matter too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def test_both_are_registered_and_build_with_their_defaults():
    assert isinstance(ARCH_REGISTRY.get('DnCNN')(), DnCNN)
    assert isinstance(ARCH_REGISTRY.get('NAFNet')(), NAFNet)


def test_dncnn_has_the_names_of_the_published_checkpoints():
    names = list(DnCNN(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=4).state_dict())
    assert names == [f'model.{i}.{kind}' for i in (0, 2, 4, 6) for kind in ('weight', 'bias')]


def test_dncnn_subtracts_what_its_chain_of_convolutions_predicts():
    net = randomise(DnCNN(num_feat=6, num_conv=3))
    x = torch.rand(2, 1, 9, 7)
    weights = net.state_dict()
    noise = x
    for i in (0, 2, 4):
        noise = F.conv2d(
            noise if i == 0 else noise.relu(), weights[f'model.{i}.weight'], weights[f'model.{i}.bias'], 1, 1
        )
    with torch.no_grad():
        torch.testing.assert_close(net(x), x - noise)


def test_dncnn_gradients_reach_the_first_layer():
    torch.manual_seed(0)
    net = DnCNN()
    x = torch.rand(2, 1, 24, 24)
    (net(x + 0.1 * torch.randn_like(x)) - x).abs().mean().backward()
    gradients = [net.model[i].weight.grad.norm().item() for i in (0, 32)]
    assert gradients[0] > 1e-4 * gradients[1]


@pytest.mark.parametrize('options', [{'num_in_ch': 3, 'num_out_ch': 1}, {'num_conv': 1}])
def test_dncnn_refuses_impossible_options(options):
    with pytest.raises(UsageError, match='num_'):
        DnCNN(**options)


@pytest.mark.skipif(not (SHARED / 'checkpoints').is_dir(), reason='the published DnCNN checkpoint is not at hand')
def test_a_published_dncnn_checkpoint_removes_noise():
    from skimage import data

    net = DnCNN()
    net.load_state_dict(torch.load(SHARED / 'checkpoints/dncnn_gray_sigma25.pth', weights_only=True))
    clean = torch.from_numpy(data.camera()[None, None, 100:300, 100:300] / 255).float()
    noisy = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        restored = net(noisy)
    psnr = [-10 * (picture - clean).square().mean().log10().item() for picture in (noisy, restored)]
    assert psnr[0] < 20.5
    assert psnr[1] > 28.5


@pytest.mark.parametrize('size', [(32, 32), (21, 34), (3, 1)])
def test_nafnet_agrees_with_spandrels(size):
    spandrel = pytest.importorskip('spandrel')
    net = randomise(NAFNet(**SMALL))
    descriptor = spandrel.ModelLoader().load_from_state_dict(net.state_dict())
    assert descriptor.architecture.id == 'NAFNet'
    other = descriptor.model.eval()
    assert set(other.state_dict()) == set(net.state_dict())
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected = other(x)
        assert expected.shape == x.shape
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_nafnet_has_the_official_parameter_names():
    block = [f'conv{i}.{kind}' for i in range(1, 6) for kind in ('weight', 'bias')]
    block += [f'{part}.{kind}' for part in ('sca.1', 'norm1', 'norm2') for kind in ('weight', 'bias')]
    block += ['beta', 'gamma']
    expected = {f'{name}.{kind}' for name in ('intro', 'ending', 'downs.0') for kind in ('weight', 'bias')}
    expected |= {'ups.0.0.weight'}
    expected |= {f'{name}.{inner}' for name in ('encoders.0.0', 'middle_blks.0', 'decoders.0.0') for inner in block}
    assert set(NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1]).state_dict()) == expected


def test_nafnet_default_is_the_published_width_32_network():
    # The paper states 17.1 M parameters for its GoPro network of width 32.
    assert sum(p.numel() for p in NAFNet().parameters()) == pytest.approx(17.1e6, rel=5e-3)


def test_nafnet_is_the_same_in_channels_last_and_trains_in_it():
    net = randomise(NAFNet(**SMALL))
    x = torch.rand(2, 3, 20, 12)
    with torch.no_grad():
        expected = net(x)
    net.to(memory_format=torch.channels_last)
    output = net(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    output.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_layer_norm_follows_its_definition():
    norm = randomise(LayerNorm2d(5))
    x = torch.randn(2, 5, 3, 4, dtype=torch.float32)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    weight, bias = (p.view(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    torch.testing.assert_close(norm(x), (x - mean) / (variance + 1e-6).sqrt() * weight + bias)


def test_nafnet_refuses_unequal_levels():
    with pytest.raises(UsageError, match='enc_blk_nums and dec_blk_nums'):
        NAFNet(enc_blk_nums=[1, 1], dec_blk_nums=[1])
