"""Restoring patch by patch: which candidate a patch gets, what is counted, what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import classpruning

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.inference.patched import CELL, NOTHING, PatchedNetwork
from basicsr_classpruning.inference.restorer import Restorer
from basicsr_classpruning.inference.shared_budget import Survey, route_together

LADDER = ['0:4', '1:4', '2:4', '4:4']


@pytest.fixture(scope='module')
def net():
    return classpruning('EDSR', candidates=LADDER)


def photo(height, width, seed=0):
    """Smooth on the left, noise on the right."""
    rng = np.random.default_rng(seed)
    strength = np.linspace(0, 0.3, width)[None, :, None]
    return (0.5 + strength * rng.standard_normal((height, width, 3))).clip(0, 1).astype(np.float32)


def restorer(net, **options):
    return Restorer(net, **{'tile': 64, 'overlap': 16, 'patch': 16, 'device': 'cpu', 'threads': 2, **options})


@pytest.mark.parametrize('budget', [0.3, 0.5, 0.8])
def test_the_budget_is_met_with_rings_and_halos(net, budget):
    picture = photo(200, 170)
    _, stats = restorer(net, tile=104, budget=budget).restore(picture)
    assert stats.average_macs / stats.macs_dense <= budget * (1 + 1e-9)
    assert stats.average_macs / stats.macs_dense == pytest.approx(budget, rel=0.05)
    assert stats.class_map.shape == (13, 11)
    assert sum(stats.class_share.values()) == pytest.approx(1)


def test_what_is_counted_is_what_ran(net, monkeypatch):
    ran = []
    call = PatchedNetwork.__call__
    monkeypatch.setattr(PatchedNetwork, '__call__', lambda self, x, cells: ran.append(cells) or call(self, x, cells))
    picture = photo(96, 80)
    _, stats = restorer(net, budget=0.5).restore(picture)
    macs, pixels = net.reference_macs, net.reference_macs.size[1] * net.reference_macs.size[2]
    costs = np.array([*macs.candidates, 0]) / pixels  # the last one is for NOTHING
    tiles = restorer(net).start(picture)._grid
    covered = len(tiles) * tiles.tile_size[0] * tiles.tile_size[1]
    computed = sum(costs[cells].sum() for cells in ran) * CELL**2
    everywhere = covered * (macs.classifier + macs.candidates[0]) / pixels
    assert stats.average_macs * stats.tiles == pytest.approx(computed + everywhere)
    assert stats.macs_dense * stats.tiles == pytest.approx(macs.dense / pixels * 96 * 80)


def test_a_picture_of_one_candidate_is_that_candidates(net):
    picture = photo(56, 72)
    one = restorer(net, tile=96)
    patches = len(one.start(picture).classes)
    for index in (0, 3):
        found = np.concatenate(list(one.start(picture, np.full(patches, index)).bands()))
        with torch.no_grad():
            wanted = net.restore_with(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None], index)[0]
        np.testing.assert_allclose(found, wanted.numpy().transpose(1, 2, 0), atol=1e-5)


def test_tiles_do_not_show(net):
    """A patch takes the same candidate in all tiles that hold it; with a wide halo the result is the whole image's."""
    picture = photo(120, 104)
    whole, _ = restorer(net, tile=160, budget=0.5).restore(picture)
    untiled = restorer(net, tile=160, budget=0.5).start(picture)
    tiled = restorer(net, tile=96, overlap=40).start(picture, untiled.classes)
    assert len(tiled._grid) > 1
    np.testing.assert_allclose(np.concatenate(list(tiled.bands())), whole, atol=1e-4)


def test_what_runs_nothing_is_the_bypass_and_its_neighbours_are_the_network(net):
    picture = photo(96, 96)
    results = [restorer(net, budget=0.4, threads=threads).restore(picture)[0] for threads in (1, 3)]
    assert np.array_equal(*results)
    restored, _ = restorer(net, budget=0.4, tile=96).restore(picture)
    x = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]
    bypass = net.restore_with(x, '0:4')[0].numpy().transpose(1, 2, 0)
    restoration = restorer(net, budget=0.4, tile=96).start(picture)
    cells, running = restoration._cells, restoration._running
    side = CELL * net.scale
    pixels = [np.repeat(np.repeat(each, side, 0), side, 1) for each in (cells, running)]
    bypassed = pixels[0] == 0
    assert (bypassed & (pixels[1] != NOTHING)).any()  # rings
    np.testing.assert_allclose(restored[bypassed], bypass[bypassed], atol=1e-5)
    base = restoration._patched(x, running)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(restored[~bypassed], base[~bypassed], atol=1e-5)


@pytest.mark.parametrize('patch', [0, 4, 20, 72])
def test_impossible_patches_are_one_line(net, patch):
    with pytest.raises(UsageError, match=f'patch {patch}: allowed are multiples of 8 up to the tile'):
        restorer(net, patch=patch)


def test_networks_and_classifiers_without_parts_say_so():
    with pytest.raises(UsageError, match=r'patch 16: .*may see more of the image'):
        restorer(classpruning('RCAN'))
    with pytest.raises(UsageError, match='does not tell parts of 8 pixels apart'):
        restorer(classpruning('EDSR', classifier={'type': 'EdgeDifficulty'}))


@pytest.mark.parametrize('patch', [16, None])
def test_images_that_share_a_budget(net, patch):
    means = restorer(net, patch=patch, budget=0.5)
    pictures = [photo(96, 96), np.full((64, 64, 3), 0.5, np.float32), photo(64, 160, 1)]
    surveys = [means.start(picture).survey() for picture in pictures]
    routings = means.route_together(surveys)
    found = []
    for picture, routing in zip(pictures, routings):
        restoration = means.start(picture, routing=routing)
        restored = np.concatenate(list(restoration.bands()))
        stats = restoration.stats()
        np.testing.assert_array_equal(stats.class_map.ravel(), routing.classes)
        assert stats.enough == routing.enough
        assert stats.seconds > routing.seconds > 0
        same = np.concatenate(list(means.start(picture, routing.classes).bands()))
        np.testing.assert_array_equal(restored, same)
        found.append((stats.spent, stats.tiles if patch is None else stats.pixels))
    spent, sizes = np.array(found).T
    assert spent @ sizes / sizes.sum() <= 0.5 * (1 + 1e-9)
    assert spent @ sizes / sizes.sum() > 0.4


def test_what_is_routed_already_is_not_classified_again(net, monkeypatch):
    means = restorer(net, budget=0.5)
    (routing,) = means.route_together([means.start(photo(64, 64)).survey()])
    monkeypatch.setattr(type(net.router), 'error_map', None)
    assert list(means.start(photo(64, 64), routing=routing).bands())


def test_an_image_that_gains_nothing_leaves_the_budget_to_the_others(net):
    prices = restorer(net, patch=None).prices
    cheapest = int(prices.of_tiles.argmin())
    gains_nothing = np.full((50, len(LADDER)), 1 / 50)
    gains = np.outer(np.full(50, 1 / 50), 1 / (1 + 10 * prices.of_tiles))
    first, second = route_together([Survey(gains_nothing, 1, None), Survey(gains, 1, None)], prices, 0.5)
    assert (first.classes == cheapest).all()
    assert first.enough
    spent = (prices.of_tiles[first.classes].mean() + prices.of_tiles[second.classes].mean()) / 2
    assert 0.49 < spent <= 0.5


def test_without_a_budget_there_is_nothing_to_share(net):
    with pytest.raises(UsageError, match='budget'):
        restorer(net).route_together([])
