"""Restoring arrays: tiles, routing, budgets, channels, depths, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.inference.receptive_field import receptive_field_radius
from basicsr_classpruning.inference.restorer import Restorer
from basicsr_classpruning.inference.workers import Workers
from basicsr_classpruning.sizes import probe


def pruned_net(upscale=2, channels=3, blocks=2, seed=0):
    """A small real ClassPruning network whose candidates differ visibly."""
    torch.manual_seed(seed)
    if upscale == 1:
        base = {'type': 'DnCNN', 'num_in_ch': channels, 'num_out_ch': channels, 'num_feat': 16, 'num_conv': 4}
    else:
        base = {
            'type': 'MSRResNet', 'num_in_ch': channels, 'num_out_ch': channels, 'num_feat': 16, 'num_block': blocks,
            'upscale': upscale,
        }  # fmt: skip
    net = ClassPruning(base=base, candidates=['1:4', '2:4', '4:4']).eval()
    for parameter in net.base.parameters():
        parameter.data.mul_(1.5)
    net.rank_by_magnitude()
    return net


def photo(height=150, width=130, channels=3, dtype=np.uint8, seed=0):
    top = 1.0 if dtype == np.float32 else float(np.iinfo(dtype).max)
    y, x = np.meshgrid(range(height), range(width), indexing='ij')
    waves = 0.5 + 0.4 * np.sin(x[..., None] * y[..., None] / 900 + np.arange(channels))
    noise = np.random.default_rng(seed).normal(0, 0.03, (height, width, channels))
    return ((waves + noise).clip(0, 1) * top).astype(dtype)


@pytest.fixture(scope='module')
def net():
    return pruned_net()


def whole(net, picture, candidate):
    x = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float()
    with torch.no_grad():
        return net.restore_with(x, candidate)[0].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize('candidate', ['1:4', '2:4', '4:4'])
@pytest.mark.parametrize('backend', ['dense', 'cpu'])
def test_tiled_equals_untiled_where_the_overlap_covers_the_receptive_field(net, candidate, backend):
    picture = photo(dtype=np.float32)
    radius = receptive_field_radius(net.dense, limit=15)
    assert radius is not None
    restorer = Restorer(net, tile=56, overlap=2 * radius + 1, candidate=candidate, backend=backend, device='cpu')
    tiled, stats = restorer.restore(picture)
    assert stats.tiles > 9
    np.testing.assert_allclose(tiled, whole(net, picture, candidate), atol=1e-4)


def test_each_tile_runs_once_where_its_size_is_known(net, monkeypatch):
    restorer = Restorer(net, tile=56, overlap=8, candidate='2:4', backend='cpu', device='cpu', threads=1)
    engine, ran = restorer.engines[restorer.pinned], []
    module = engine._module
    monkeypatch.setattr(engine, '_module', lambda x: ran.append(x.shape) or module(x))
    for picture in (photo(96, 96), photo(80, 96)):
        ran.clear()
        _, stats = restorer.restore(picture)
        assert stats.tiles == 4
        assert len(ran) == 5  # before tiles of a new size run, the kernels choose
        restorer.restore(picture)
        assert len(ran) == 9


def test_a_small_overlap_differs_but_leaves_no_step(net):
    """The largest jump between neighbouring pixels at a seam is like the one of the untiled result."""
    picture = photo(96, 96, dtype=np.float32)
    restorer = Restorer(net, tile=56, overlap=8, candidate='4:4', backend='dense', device='cpu')
    tiled, _ = restorer.restore(picture)
    difference = tiled - whole(net, picture, '4:4')
    steps = np.abs(np.diff(difference, axis=1)).max()
    assert steps < 0.02
    hard, _ = Restorer(net, tile=56, overlap=0, candidate='4:4', backend='dense', device='cpu').restore(picture)
    assert np.abs(np.diff(hard - whole(net, picture, '4:4'), axis=1)).max() > 2 * steps


@pytest.mark.parametrize('convs', [1, 3])
@pytest.mark.parametrize('stride', [1, 2])
def test_it_is_the_radius_of_the_receptive_field(convs, stride):
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(convs)]
    if stride == 2:
        layers = [nn.PixelUnshuffle(2), nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2), *layers]
    net = nn.Sequential(*layers)
    network = DenseNetwork(net, probe(net, [3]), {}).dense
    assert network.sizes.multiple == stride
    radius = receptive_field_radius(network, limit=12)
    assert radius == {(1, 1): 1, (3, 1): 3, (1, 2): 4, (3, 2): 6}[convs, stride]
    assert receptive_field_radius(network, limit=convs - 1) is None


@pytest.mark.parametrize('size', [(1, 1), (1, 70), (3, 5), (97, 1)])
def test_any_size(net, size):
    restored, stats = Restorer(net, tile=48, overlap=8, backend='dense', device='cpu').restore(photo(*size))
    assert restored.shape == (2 * size[0], 2 * size[1], 3)
    assert restored.dtype == np.uint8
    assert stats.pixels == size[0] * size[1]


class MirrorNet(nn.Module):
    """Takes multiples of four only and mirrors its borders, so it needs more than three pixels."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 7, padding=3, padding_mode='reflect')

    def forward(self, x):
        if x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError('multiples of 4')
        return self.body(x)


def test_networks_with_wishes_about_sizes():
    net = MirrorNet().eval()
    restorer = Restorer(DenseNetwork(net, probe(net, [3]), {}), overlap=16, device='cpu')
    assert (restorer.info.sizes.multiple, restorer.info.sizes.padded(1), restorer.margin) == (4, 4, 4)
    for size in ((1, 1), (2, 9), (101, 66)):
        picture = photo(*size, dtype=np.float32)
        restored, _ = Restorer(net, tile=48, overlap=16, device='cpu').restore(picture)
        assert restored.shape == picture.shape
    padded = np.pad(picture, ((0, 3), (0, 2), (0, 0)), mode='reflect')
    with torch.no_grad():
        wanted = net(torch.from_numpy(padded.transpose(2, 0, 1))[None])[0].numpy().transpose(1, 2, 0)[:101, :66]
    np.testing.assert_allclose(restored, wanted, atol=1e-5)


@pytest.mark.parametrize('budget', [0.45, 0.6, 0.8])
def test_budget_is_met_over_a_picture(net, budget):
    picture = photo(212, 200)
    restored, stats = Restorer(net, tile=24, overlap=4, budget=budget, backend='dense', device='cpu').restore(picture)
    assert stats.average_macs / stats.macs_dense == pytest.approx(budget, rel=0.01)
    assert stats.saved == pytest.approx(1 - budget, abs=0.01)
    assert sum(stats.class_share.values()) == pytest.approx(1)
    assert stats.class_map.size == stats.tiles > 80
    assert restored.shape == (424, 400, 3)


def test_stats_count_what_ran(net):
    """Average MACs from the class map and the network's own count, classifier included."""
    picture = photo(200, 200)
    _, stats = Restorer(net, tile=48, overlap=8, budget=0.6, backend='dense', device='cpu').restore(picture)
    side = 48
    macs = net.macs(side, side)
    wanted = np.mean([macs.candidates[k] + macs.classifier for k in stats.class_map.ravel()])
    assert stats.average_macs == pytest.approx(wanted, rel=0.002)
    assert stats.macs_dense == pytest.approx(macs.dense, rel=1e-6)
    _, pinned = Restorer(net, tile=48, overlap=8, candidate='2:4', backend='dense', device='cpu').restore(picture)
    assert pinned.average_macs == pytest.approx(macs.candidates[1])  # the classifier was not asked
    assert pinned.class_share == {'1:4': 0, '2:4': 1, '4:4': 0}


def test_routed_tiles_are_restored_by_their_candidates(net):
    """Inside a tile, away from its overlaps, the picture equals the chosen candidate's."""
    picture = photo(180, 180, dtype=np.float32)
    restorer = Restorer(net, tile=56, overlap=12, budget=0.7, backend='dense', device='cpu')
    restoration = restorer.start(picture)
    assert len(np.unique(restoration.classes)) > 1
    result = np.concatenate(list(restoration.bands()))
    grid = restoration.parts
    for number, k in enumerate(restoration.classes):
        row, col = divmod(number, len(grid.cols.starts))
        top, left = grid.rows.starts[row], grid.cols.starts[col]
        tile = whole(net, grid.cut(picture, number), int(k))
        inside = slice(32, -32)
        found = result[2 * top : 2 * top + len(tile), 2 * left : 2 * left + tile.shape[1]]
        np.testing.assert_allclose(found[inside, inside], tile[inside, inside], atol=1e-5)


def test_the_classifier_decides_without_a_budget_and_the_networks_own_budget_counts():
    net = pruned_net()
    picture = photo(200, 200)
    free, _ = Restorer(net, tile=48, backend='dense', device='cpu').restore(picture)
    net.budget = 0.6
    _, stats = Restorer(net, tile=24, overlap=4, backend='dense', device='cpu').restore(picture)
    assert 1 - stats.saved == pytest.approx(0.6, rel=0.015)
    assert free.shape == (400, 400, 3)


def test_threads_and_batches_give_the_same_bytes(net):
    """MSRResNet's bilinear interpolation rounds differently in two threads of torch: it must not be given them."""
    picture = photo(130, 120)
    results = set()
    for threads, batch in ((1, None), (2, None), (1, 4), (3, 5)):
        restorer = Restorer(
            net, tile=32, overlap=8, budget=0.6, backend='dense', threads=threads, batch=batch, device='cpu'
        )
        results.add(restorer.restore(picture)[0].tobytes())
    assert len(results) == 1


def test_workers_run_on_one_thread_of_torch_whatever_is_set_outside():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        workers = Workers(2)
        assert list(workers.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_torch_keeps_its_threads(net):
    before = torch.get_num_threads()
    Restorer(net, threads=2, candidate='1:4', backend='dense', device='cpu').restore(photo(20, 20))
    assert torch.get_num_threads() == before


def test_several_pictures_at_once(net):
    restorer = Restorer(net, tile=32, overlap=8, budget=0.6, backend='dense', threads=2, device='cpu')
    pictures = [photo(50 + i, 40, seed=i) for i in range(6)]
    alone = [restorer.restore(picture)[0] for picture in pictures]
    with ThreadPoolExecutor(3) as pool:
        together = [restored for restored, _ in pool.map(restorer.restore, pictures)]
    for first, second in zip(alone, together):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_integers_are_rounded_floats(net, dtype):
    picture = photo(60, 60, dtype=dtype)
    top = float(np.iinfo(dtype).max)
    restorer = Restorer(net, tile=96, candidate='4:4', backend='dense', device='cpu')
    wanted, _ = restorer.restore(picture.astype(np.float32) / np.float32(top))
    found, _ = restorer.restore(picture)
    assert found.dtype == dtype
    assert np.abs(found / top - wanted.clip(0, 1)).max() <= 0.5 / top + 1e-6


def test_grey_picture_in_a_colour_network(net):
    grey = photo(40, 40, 1)
    restorer = Restorer(net, candidate='2:4', backend='dense', device='cpu')
    found, _ = restorer.restore(grey)
    colour, _ = restorer.restore(np.repeat(grey, 3, axis=2).astype(np.float32) / 255)
    assert found.shape == (80, 80, 1)
    np.testing.assert_allclose(found / 255, colour.mean(axis=2, keepdims=True).clip(0, 1), atol=0.5 / 255 + 1e-6)
    flat, _ = restorer.restore(grey[..., 0])
    np.testing.assert_array_equal(flat, found[..., 0])


def test_colour_picture_in_a_grey_network():
    net = pruned_net(upscale=1, channels=1)
    colour = photo(100, 90, 3)
    restorer = Restorer(net, tile=48, candidate='2:4', backend='dense', device='cpu')
    found, stats = restorer.restore(colour)
    for channel in range(3):
        single, one = restorer.restore(colour[..., channel : channel + 1])
        np.testing.assert_array_equal(found[..., channel], single[..., 0])
    assert stats.average_macs == pytest.approx(3 * one.average_macs)
    routed, stats = Restorer(net, tile=24, overlap=4, budget=0.6, backend='dense', device='cpu').restore(colour)
    assert routed.shape == colour.shape
    assert 1 - stats.saved == pytest.approx(0.6, abs=0.05)


def test_plain_modules_are_dense_networks():
    picture = photo(70, 70)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))
    restored, stats = Restorer(module, tile=48, device='cpu').restore(picture)
    assert restored.shape == (140, 140, 3)
    assert stats.saved == 0
    assert stats.class_share == {}
    for options in ({'budget': 0.5}, {'candidate': '2:4'}):
        with pytest.raises(UsageError, match='the network is dense'):
            Restorer(module, device='cpu', **options)


def test_wrong_calls(net):
    for options, message in (
        ({'budget': 0.5, 'candidate': '2:4'}, 'only one'),
        ({'candidate': '3:4'}, '1:4, 2:4, 4:4'),
        ({'budget': 0.01}, 'budget 0.01 cannot be met: allowed is'),
        ({'budget': 1.5}, 'budget 1.5 cannot be met'),
        ({'tile': 8}, 'tile 8'),
        ({'batch': 0}, 'batch 0'),
        ({'backend': 'gpu'}, 'auto, dense, cpu'),
        ({'device': 'abacus'}, 'abacus'),
    ):
        with pytest.raises(UsageError, match=message):
            Restorer(net, **{'device': 'cpu', **options})
    with pytest.raises(UserError, match='4 channels'):
        Restorer(net, device='cpu').restore(np.zeros((9, 9, 4), np.uint8))


def test_values_that_are_no_numbers_are_refused():
    net = pruned_net()
    net.base.conv_last.bias.data[0] = float('nan')
    net.forget_subnetworks()
    with pytest.raises(UserError, match='NaN'):
        Restorer(net, candidate='4:4', backend='dense', device='cpu').restore(photo(20, 20))
