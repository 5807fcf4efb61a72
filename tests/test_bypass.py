"""The bypass: BasicSR's bicubic, or the best linear filter; a candidate like the others everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from basicsr.utils.matlab_functions import imresize
from tiny import classpruning, network_g
from torch import nn

from basicsr_classpruning import kernels
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.routing.bypass import LinearFilter

LADDER = ['0:4', '1:4', '2:4', '4:4']


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('size', [(9, 14), (3, 5), (31, 4)])
def test_it_enlarges_as_basicsr_does(scale, size):
    image = np.random.default_rng(0).random((*size, 3))
    wanted = imresize(image, scale).transpose(2, 0, 1)
    found = LinearFilter(scale)(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=5e-6)


def test_at_scale_1_it_is_the_input():
    x = torch.rand(2, 3, 7, 1)
    assert torch.equal(LinearFilter(1)(x), x)


def test_the_least_squares_filter_is_found_and_taken_only_where_it_is_better():
    generator = torch.Generator().manual_seed(0)
    true = LinearFilter(2)
    true.weight.add_(0.05 * torch.randn(true.weight.shape, generator=generator))
    x = 0.4 + 0.2 * torch.rand(4, 3, 20, 24, generator=generator)
    fitted = LinearFilter(2)
    fitted.fit(x, true(x))
    torch.testing.assert_close(fitted.weight, true.weight, atol=1e-3, rtol=0)
    bicubic = LinearFilter(2)
    bicubic.fit(x, LinearFilter(2)(x))
    assert torch.equal(bicubic.weight, LinearFilter(2).weight)


@pytest.mark.parametrize('name', ['EDSR', 'DnCNN', 'SwinIR'])
def test_it_is_a_candidate_like_the_others(name):
    net = classpruning(name, candidates=LADDER)
    x = torch.rand(4, 3, 16, 16)
    classes = torch.tensor([0, 3, 1, 0])
    restored = net(x, classes)
    bypass = LinearFilter(net.scale)
    assert torch.equal(restored[classes == 0], bypass(x[classes == 0]))
    assert torch.equal(restored[1:2], net.restore_with(x[1:2], '4:4'))
    assert torch.equal(net.train()(x, classes)[classes == 0], bypass(x[classes == 0]))
    plain = classpruning(name, candidates=LADDER[1:])
    macs, size = net.reference_macs, net.reference_macs.size
    assert macs.candidates[1:] == plain.reference_macs.candidates
    assert macs.candidates[0] == 3 * 25 * net.scale**2 * size[1] * size[2]
    assert all(layer.candidates[0] == 0 for layer in macs.layers)


def test_its_filter_is_stored_with_the_network():
    net = classpruning('EDSR', candidates=LADDER)
    net.others['0:4'].weight.mul_(0.5)
    twin = ClassPruning(**{key: value for key, value in net.options.items() if key != 'type'})
    twin.load_params(net.state_dict())
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(twin.eval().restore_with(x, '0:4'), net.restore_with(x, '0:4'))


def test_a_network_without_one_starts_from_one_that_has_it_and_the_other_way_round():
    pruned, plain = (classpruning('EDSR', seed=k, candidates=LADDER[k:]) for k in (0, 1))
    x = torch.rand(1, 3, 8, 8)
    for source, target in ((pruned, classpruning('EDSR', seed=2, candidates=LADDER[1:])),
                           (plain, classpruning('EDSR', seed=2, candidates=LADDER))):  # fmt: skip
        before = target.predicted_errors(x)
        target.start_from(source.state_dict())
        for candidate in LADDER[1:]:
            assert torch.equal(target.restore_with(x, candidate), source.restore_with(x, candidate))
        assert torch.equal(target.predicted_errors(x), before)


@pytest.mark.parametrize(
    ('candidates', 'message'),
    [
        (['0:4', '0:4', '4:4'], 'each once'),
        (['1:4', '0:4', '4:4'], 'sparsest first'),
        (['0:4', '2:8', '8:8'], 'the same M'),
        (['0:4'], 'at least one N:M with N above 0'),
    ],
)
def test_impossible_ladders_are_one_line(candidates, message):
    options = {key: value for key, value in network_g('EDSR', candidates=candidates).items() if key != 'type'}
    with pytest.raises(UsageError, match=message):
        ClassPruning(**options)


def test_a_network_of_other_channels_has_none():
    base = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1))
    with pytest.raises(UsageError, match='0:4: this network has no bypass: 3 channels become 1'):
        ClassPruning({'type': 'ToGrey'}, LADDER, base_net=base)


@pytest.mark.parametrize('scale', [1, 2, 3])
def test_as_layers_it_is_the_same(scale):
    filtered, x = LinearFilter(scale), torch.rand(2, 3, 9, 6)
    torch.testing.assert_close(filtered.as_layers()(x), filtered(x))
    torch.testing.assert_close(kernels.accelerate(filtered.as_layers(), {})(x), filtered(x), atol=1e-5, rtol=0)
