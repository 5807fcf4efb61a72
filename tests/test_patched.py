"""Several candidates on one image, layer by layer: against whole images, and against a choice pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import classpruning, dense
from torch import nn

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.forms import as_routed
from basicsr_classpruning.inference.patched import CELL, NOTHING, NotPatchable, PatchedNetwork
from basicsr_classpruning.models.stages import Batch, Sandwich

LADDER = ['0:4', '1:4', '2:4', '4:4']


@pytest.mark.parametrize('name', ['EDSR', 'MSRResNet', 'SRVGGNetCompact', 'DnCNN'])
@pytest.mark.parametrize('candidate', [1, 2, 3])
def test_one_candidate_everywhere_is_that_candidate(name, candidate):
    net = classpruning(name, candidates=LADDER)
    x = torch.rand(1, 3, 3 * CELL, 2 * CELL)
    found = PatchedNetwork(net.routed())(x, np.full((3, 2), candidate))
    torch.testing.assert_close(found, net.restore_with(x, candidate), atol=1e-5, rtol=1e-5)


def test_every_cell_takes_its_own_weights_and_its_neighbours_features():
    net = classpruning('DnCNN', candidates=LADDER, weights='own')
    for layer in net.base.modules():
        if hasattr(layer, 'reset_candidates'):
            layer.reset_candidates()
    routed = net.routed()
    cells = np.random.default_rng(0).integers(-1, 4, (4, 5))
    cells = PatchedNetwork(routed).with_ring(cells)
    x = torch.rand(1, 3, 4 * CELL, 5 * CELL)
    chosen = torch.from_numpy(np.repeat(np.repeat(cells, CELL, 0), CELL, 1))
    features = x
    models = {k: routed.subnetworks[k].net.model for k in (1, 2, 3)}
    for number, layer in enumerate(models[3]):
        if not isinstance(layer, nn.Conv2d):
            features = layer(features)
            continue
        answers = {k: model[number](features) for k, model in models.items()}
        features = torch.zeros_like(answers[1])
        for k, answer in answers.items():
            features = torch.where(chosen == k, answer, features)
    found = PatchedNetwork(routed)(x, cells)
    torch.testing.assert_close(found, x - features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', ['EDSR', 'MSRResNet', 'SRVGGNetCompact', 'DnCNN'])
@pytest.mark.parametrize('weights', ['own', 'shared'])
def test_training_mixes_candidates_as_they_run(name, weights):
    net = classpruning(name, candidates=LADDER, weights=weights)
    for layer in net.base.modules():
        if hasattr(layer, 'reset_candidates'):
            layer.reset_candidates()
    patched = PatchedNetwork(net.routed())
    wanted = np.random.default_rng(0).integers(0, 4, (8, 5)) * (np.arange(8) < 4)[:, None]
    cells = patched.with_ring(wanted)
    assert (cells == NOTHING).any()
    x = torch.rand(2, 3, 8 * CELL, 5 * CELL)
    places = torch.from_numpy(cells).repeat_interleave(CELL, 0).repeat_interleave(CELL, 1).expand(2, -1, -1)
    found = net.train()(x, places)
    restored = (places[:, None] != NOTHING).repeat_interleave(net.scale, 2).repeat_interleave(net.scale, 3)
    torch.testing.assert_close(found * restored, patched(x, cells) * restored, atol=1e-5, rtol=1e-5)
    found.mean().backward()
    used = {net.ladder.sparse.index(net.ladder.candidates[k]) for k in np.unique(cells) if k != NOTHING}
    slots = [layer.biases for layer in net.base.modules() if hasattr(layer, 'reset_candidates')]
    for biases in slots:
        assert all(bool(bias.grad.any()) == (slot in used) for slot, bias in enumerate(biases))
    assert net.selection.mixture is None


@pytest.mark.parametrize('name', ['EDSR', 'DnCNN'])
def test_training_deals_patches_and_rings_as_they_run(name):
    net = classpruning(name, candidates=LADDER)
    stage = Sandwich({'sparse_batch': None, 'patch': 8})
    torch.manual_seed(0)
    dealt = stage.deal(net, Batch(torch.rand(2, 3, 36, 44), iteration=2, rank=0, world_size=1))
    assert stage.deal(net, Batch(torch.rand(2, 3, 36, 44), iteration=3, rank=0, world_size=1)).used is None
    patched = PatchedNetwork(net.routed())
    assert dealt.used.shape == (2, 1, 36 * net.scale, 44 * net.scale)
    for running, used in zip(dealt.candidates[:, ::CELL, ::CELL], dealt.used[:, 0, :: net.scale, :: net.scale]):
        used = used[::CELL, ::CELL].numpy()
        assert (used[::2, ::2][:4, :5] == used[1::2, 1::2]).all()  # whole patches
        assert (patched.with_ring(np.where(used, running, 0)) == running.numpy()).all()
        assert 0 < used.mean() < 1


@pytest.mark.parametrize(('name', 'width'), [('EDSR', 1), ('DnCNN', 2)])
def test_the_ring_is_the_densest_neighbour_around_what_runs(name, width):
    patched = PatchedNetwork(classpruning(name, candidates=LADDER).routed())
    cells = np.zeros((7, 8), int)
    cells[2, 4], cells[2, 6] = 3, 1
    wanted = np.full((7, 8), NOTHING)
    wanted[2 - width : 3 + width, 6 - width : 7 + width] = 1
    wanted[2 - width : 3 + width, 4 - width : 5 + width] = 3
    wanted[2, 6] = 1
    assert (patched.with_ring(cells) == wanted).all()
    assert (patched.with_ring(np.zeros((2, 2), int)) == NOTHING).all()


def test_far_from_what_runs_nothing_changes():
    """What a bypassed neighbourhood holds has no influence, and a whole ring makes the rest nearly right."""
    net = classpruning('EDSR', candidates=LADDER)
    patched = PatchedNetwork(net.routed())
    cells = np.zeros((8, 8), int)
    cells[2:6, 2:6] = 3
    x = torch.rand(1, 3, 8 * CELL, 8 * CELL)
    other = x.clone()
    other[..., : CELL - 2] = 0
    inside = slice(2 * 2 * CELL, 2 * 6 * CELL)
    one, two = (patched(image, patched.with_ring(cells))[..., inside, inside] for image in (x, other))
    assert torch.equal(one, two)
    whole = net.restore_with(x, '4:4')[..., inside, inside]
    assert (one - whole).square().mean() < 0.1 * (
        net.restore_with(x, '1:4')[..., inside, inside] - whole
    ).square().mean()


@pytest.mark.parametrize('name', ['RCAN', 'SwinIR', 'NAFNet'])
def test_networks_that_see_more_say_so(name):
    with pytest.raises(NotPatchable, match=r'see more of the image|cannot be traced'):
        PatchedNetwork(classpruning(name).routed())


def test_convolutions_that_change_the_size_are_refused():
    base = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 2, 2), nn.PixelShuffle(2))
    net = ClassPruning({'type': 'Strided'}, ['2:4', '4:4'], base_net=base)
    with pytest.raises(NotPatchable, match='1 is a convolution that changes the size'):
        PatchedNetwork(net.routed())


def test_a_dense_network_has_nothing_to_choose():
    routed = as_routed(dense('EDSR'))
    x = torch.rand(1, 3, CELL, CELL)
    torch.testing.assert_close(PatchedNetwork(routed)(x, np.zeros((1, 1), int)), routed.dense.restore(x))
