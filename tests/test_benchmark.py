"""``classpruning benchmark``: rows, reference curves, files, engines."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr, calculate_ssim
from tiny import classpruning

from basicsr_classpruning import load
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.forms import as_routed
from basicsr_classpruning.benchmark.models import TiledImage, make_model
from basicsr_classpruning.benchmark.pairs import Pairs
from basicsr_classpruning.benchmark.patches import PatchedModel
from basicsr_classpruning.benchmark.rivals import RIVALS
from basicsr_classpruning.benchmark.run import Benchmark, Settings
from basicsr_classpruning.cli import parse
from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.images.picture import Encoding, Picture
from basicsr_classpruning.images.reading import read_picture
from basicsr_classpruning.images.writing import write_picture
from basicsr_classpruning.inference.prices import Prices
from basicsr_classpruning.inference.restorer import Restorer
from basicsr_classpruning.safe_files import save_file

BASE = {'type': 'MSRResNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}
GREY = {'type': 'DnCNN', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 8, 'num_conv': 4}
KEYS = {
    'model', 'kind', 'candidate', 'budget', 'psnr', 'psnr_y', 'ssim', 'macs', 'macs_dense', 'saved', 'seconds',
    'pixels', 'params', 'class_share', 'backend', 'threads', 'pictures', 'patch', 'budget_in', 'enough', 'equal',
}  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two networks, a dense checkpoint and three pictures, part smooth and part rough."""
    root = tmp_path_factory.mktemp('benchmark')
    rng = np.random.default_rng(0)
    for i in range(3):
        noise = rng.random((120, 130, 3))
        blurred = cv2.GaussianBlur(noise, (0, 0), 3)
        blurred[:, 60:] = cv2.GaussianBlur(noise, (0, 0), 1)[:, 60:]
        pixels = (np.clip(blurred * 3 - 1, 0, 1) * 255).astype(np.uint8)
        (root / 'gt').mkdir(exist_ok=True)
        write_picture(root / f'gt/{i}.png', Picture(pixels, None, Encoding('PNG')))
    for name, base in (('sr', BASE), ('grey', GREY)):
        torch.manual_seed(0)
        net = ClassPruning(base=base, candidates=['1:4', '2:4', '4:4'])
        net.rank_by_magnitude()
        save_file({'params': net.state_dict(), 'network_g': net.options}, root / f'{name}.pth')
    save_file({'params': load(root / 'sr.pth').dense.net.state_dict(), 'network_g': BASE}, root / 'dense.pth')
    return root


def call(folder, *argv, models=('sr.pth',)):
    paths = [str(folder / name) for name in models]
    fixed = ['--gt', str(folder / 'gt'), '--backend', 'dense', '--threads', '1', '--overlap', '4']
    args = parse(['benchmark', '--models', *paths, *fixed, *map(str, argv)])
    return args.func(args)


def rows_of(folder, tmp_path, *argv, **kwargs):
    assert call(folder, *argv, '--json', tmp_path / 'x.json', **kwargs) == 0
    return json.loads((tmp_path / 'x.json').read_text())['rows']


def test_rows_of_networks_candidates_and_budgets(folder, tmp_path, capsys):
    options = ('--degrade', 'bicubic2', '--tile', 24, '--budgets', 0.7, 0.85, '--candidates', '2:4')
    rows = rows_of(folder, tmp_path, *options, models=('sr.pth', 'dense.pth'))
    assert [(row['model'], row['kind'], row['candidate'], row['budget']) for row in rows] == [
        ('sr', 'candidate', '2:4', None),
        *(('sr', kind, None, budget) for budget in (0.7, 0.85) for kind in ('budget', 'oracle', 'random')),
        ('dense', 'dense', None, None),
    ]
    for row in rows:
        assert set(row) == KEYS
        assert row['saved'] == pytest.approx(1 - row['macs'] / row['macs_dense'])
        assert row['pixels'] == 3 * 120 * 130
        assert row['seconds'] > 0
        assert row['threads'] == 1
        if row['budget']:
            spent = row['macs'] / row['macs_dense']
            assert spent <= row['budget'] * (1 + 1e-9)
            assert row['enough'] or spent == pytest.approx(row['budget'], rel=0.02)  # of few tiles
            assert row['kind'] == 'oracle' or not row['enough']
            assert sum(row['class_share'].values()) == pytest.approx(1)
    by_kind = {(row['kind'], row['budget']): row for row in rows}
    for budget in (0.7, 0.85):
        assert by_kind['oracle', budget]['psnr'] >= by_kind['budget', budget]['psnr'] - 0.001
        assert by_kind['oracle', budget]['psnr'] > by_kind['random', budget]['psnr'] - 1e-4
        assert by_kind['random', budget]['class_share'] == by_kind['budget', budget]['class_share']
    dense = rows[-1]
    net = load(folder / 'sr.pth')
    assert dense['params'] == sum(parameter.numel() for parameter in net.dense.net.parameters())
    pruned = net.subnetwork('2:4').net.parameters()
    assert rows[0]['params'] == sum(int(p.count_nonzero()) if p.dim() > 1 else p.numel() for p in pruned)
    stored = [parameter for name, parameter in net.named_parameters() if '.weights.' not in name]
    own = sum(int(parameter.count_nonzero()) for name, parameter in net.named_parameters() if '.weights.' in name)
    assert rows[1]['params'] == sum(parameter.numel() for parameter in stored) + own
    assert dense['saved'] == 0
    assert dense['class_share'] == {}
    output = capsys.readouterr().out
    assert 'budget 0.85' in output
    assert 'average MACs' in output


def test_rows_of_patches(folder, tmp_path, capsys):
    """What is counted and restored is what the restorer does with the same candidates."""
    net = classpruning('EDSR', candidates=['0:4', '1:4', '2:4', '4:4'])
    save_file({'params': net.state_dict(), 'network_g': net.options}, tmp_path / 'bypass.pth')
    options = ('--degrade', f'bicubic{net.scale}', '--tile', 48, '--patch', 16, '--budgets', 0.5, 0.7)
    rows = rows_of(folder, tmp_path, *options, models=(tmp_path / 'bypass.pth',))
    assert [row['kind'] for row in rows] == 2 * ['budget', 'oracle', 'random']
    for row in rows:
        assert set(row) == KEYS
        assert row['patch'] == 16
        spent = row['macs'] / row['macs_dense']
        if row['kind'] != 'random':
            assert spent <= row['budget'] * (1 + 1e-9)
            assert row['enough'] or spent >= 0.9 * row['budget']
    by_kind = {(row['kind'], row['budget']): row for row in rows}
    for budget in (0.5, 0.7):
        assert by_kind['oracle', budget]['psnr'] >= by_kind['budget', budget]['psnr'] - 0.002
        assert by_kind['random', budget]['class_share'] == by_kind['budget', budget]['class_share']
    assert 'budget 0.5, 16 px' in capsys.readouterr().out


@pytest.mark.parametrize('patch', [(), ('--patch', 16)])
def test_budgets_in_time_are_met_in_the_prices_that_were_measured(folder, tmp_path, monkeypatch, patch):
    prices = Prices(np.array([0.05, 0.3, 0.6, 0.9]), np.array([False, True, True, True]), 0.01, 1.0, 'time')
    monkeypatch.setattr('basicsr_classpruning.inference.restorer.kept_or_measured', lambda conditions, measure: prices)
    net = classpruning('EDSR', candidates=['0:4', '1:4', '2:4', '4:4'])
    save_file({'params': net.state_dict(), 'network_g': net.options}, tmp_path / 'bypass.pth')
    options = ('--degrade', f'bicubic{net.scale}', '--tile', 48, *patch, '--budgets', 0.5, '--budget-in', 'time')
    rows = rows_of(folder, tmp_path, *options, models=(tmp_path / 'bypass.pth',))
    assert [row['budget_in'] for row in rows] == 3 * ['time']
    for row in rows[:2]:
        cost = dict(zip(net.candidates, prices.of_patches if patch else prices.of_tiles))
        spent = sum(share * cost[name] for name, share in row['class_share'].items())
        assert spent <= 0.5  # rings and halos come on top
        assert row['enough'] or patch or spent > 0.45


def test_networks_that_cannot_be_patched_are_one_line(folder, tmp_path):
    net = classpruning('RCAN')
    save_file({'params': net.state_dict(), 'network_g': net.options}, tmp_path / 'whole.pth')
    with pytest.raises(UsageError, match=r'patch 16: .* may see more of the image'):
        call(folder, '--degrade', 'bicubic2', '--patch', 16, '--budgets', 0.7, models=(tmp_path / 'whole.pth',))
    with pytest.raises(UsageError, match='multiples of 8 up to the tile'):
        call(folder, '--degrade', 'bicubic2', '--patch', 20, '--budgets', 0.7)


def test_figures_equal_basicsrs_on_what_the_restorer_gives(folder, tmp_path):
    rows = rows_of(folder, tmp_path, '--degrade', 'bicubic2', '--candidates', '1:4')
    restorer = Restorer(load(folder / 'sr.pth'), overlap=4, candidate='1:4', backend='dense', device='cpu')
    pairs = Pairs(str(folder / 'gt'), None, Degradation.parse('bicubic2'))
    psnr, psnr_y, ssim = [], [], []
    for index in range(3):
        pair = pairs.pair(index, 3, 2)
        restored, _ = restorer.restore(pair.degraded)
        ours = np.rint(restored.clip(0, 1) * 255).astype(np.uint8)[..., ::-1]
        theirs = pair.truth[..., ::-1]
        psnr.append(calculate_psnr(ours, theirs, 2))
        psnr_y.append(calculate_psnr(ours, theirs, 2, test_y_channel=True))
        ssim.append(calculate_ssim(ours, theirs, 2))
    assert rows[0]['psnr'] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert rows[0]['psnr_y'] == pytest.approx(np.mean(psnr_y), abs=1e-4)
    assert rows[0]['ssim'] == pytest.approx(np.mean(ssim), abs=1e-5)


def test_without_choice_all_candidates_and_the_classifiers_own(folder, tmp_path):
    rows = rows_of(folder, tmp_path, '--degrade', 'bicubic2')
    assert [row['candidate'] or row['kind'] for row in rows] == ['1:4', '2:4', '4:4', 'routed']
    assert rows[0]['macs'] < rows[1]['macs'] < rows[2]['macs'] == rows[2]['macs_dense']


def test_pictures_that_are_restored_exactly_are_counted_beside_the_mean_of_the_others(folder, tmp_path, capsys):
    bypass = ClassPruning(base={**GREY, 'num_in_ch': 3, 'num_out_ch': 3}, candidates=['0:4', '4:4'])
    save_file({'params': bypass.state_dict(), 'network_g': bypass.options}, tmp_path / 'bypass.pth')
    (tmp_path / 'lq').mkdir()
    for index in range(3):
        pixels = read_picture(folder / f'gt/{index}.png').pixels
        if index:
            pixels = pixels // 2
        write_picture(tmp_path / f'lq/{index}.png', Picture(pixels, None, Encoding('PNG')))
    outputs = ('--csv', tmp_path / 'x.csv', '--markdown', tmp_path / 'x.md', '--plot', tmp_path / 'x.png')
    options = ('--lq', tmp_path / 'lq', '--candidates', '0:4', *outputs)
    (row,) = rows_of(folder, tmp_path, *options, models=(tmp_path / 'bypass.pth',))
    assert row['equal'] == {'psnr': 1, 'psnr_y': 1}
    wrong = [read_picture(folder / f'gt/{index}.png').pixels for index in (1, 2)]
    assert row['psnr'] == pytest.approx(np.mean([calculate_psnr(each, each // 2, 1) for each in wrong]))
    assert f'{row["psnr"]:.3f}, 1 equal' in capsys.readouterr().out
    assert f'{row["psnr"]:.3f}, 1 equal' in (tmp_path / 'x.md').read_text()
    with open(tmp_path / 'x.csv') as file:
        assert next(csv.DictReader(file))['equal'] == 'psnr=1 psnr_y=1'


def test_folders_of_degraded_pictures_and_the_other_files(folder, tmp_path):
    pairs = Pairs(str(folder / 'gt'), None, Degradation.parse('bicubic2'))
    (tmp_path / 'lq').mkdir()
    for index in range(3):
        pair = pairs.pair(index, 3, 2)
        pixels = np.rint(pair.degraded * 255).astype(np.uint8)
        write_picture(tmp_path / f'lq/{pair.name}.bmp', Picture(pixels, None, Encoding('BMP')))
    outputs = ('--csv', tmp_path / 'x.csv', '--markdown', tmp_path / 'x.md', '--plot', tmp_path / 'x.png')
    rows = rows_of(folder, tmp_path, '--lq', tmp_path / 'lq', '--budgets', 0.7, '--tile', 24, *outputs)
    again = rows_of(folder, tmp_path, '--degrade', 'bicubic2', '--budgets', 0.7, '--tile', 24)
    assert [row['psnr'] for row in rows] == [row['psnr'] for row in again]
    with open(tmp_path / 'x.csv') as file:
        table = list(csv.DictReader(file))
    assert [float(line['psnr']) for line in table] == [row['psnr'] for row in rows]
    lines = (tmp_path / 'x.md').read_text().splitlines()
    assert len({line.count('|') for line in lines}) == 1
    assert len(lines) == 2 + len(rows)
    assert read_picture(tmp_path / 'x.png').pixels.shape[1] > 1000


def test_one_channel_networks_are_given_grey_pictures(folder, tmp_path):
    rows = rows_of(folder, tmp_path, '--degrade', 'noise0-50', models=('grey.pth',))
    assert all(row['psnr'] == row['psnr_y'] for row in rows)
    again = rows_of(folder, tmp_path, '--degrade', 'noise0-50', models=('grey.pth',))
    assert [row['psnr'] for row in rows] == [row['psnr'] for row in again]


def test_engines_are_run_or_named(folder, tmp_path, capsys):
    calibration = ('--engines', '--calibration', folder / 'gt')
    options = ('--degrade', 'bicubic2', '--candidates', '2:4', *calibration, '--json', tmp_path / 'x.json')
    assert call(folder, *options, models=('sr.pth', 'dense.pth')) == 0
    report = json.loads((tmp_path / 'x.json').read_text())
    rows = {row['backend']: row for row in report['rows'] if row['kind'] == 'dense'}
    assert {'dense', 'eager'} <= set(rows)
    assert set(rows) | set(report['missing_engines']) == {'dense', *RIVALS}
    error = capsys.readouterr().err
    for name in report['missing_engines']:
        assert f'missing: {name}: ' in error
    for name, row in rows.items():
        loss = 1e-3 if name == 'dense' or RIVALS[name].lossless else 0.5
        assert row['psnr'] == pytest.approx(rows['dense']['psnr'], abs=loss)
    machine = report['machine']
    assert machine['processor']
    assert isinstance(machine['instruction_sets'], list)
    assert machine['versions']['torch'] == torch.__version__


def test_tiles_errors_add_up_to_the_pictures(folder):
    """What the oracle minimises is the error of the blended picture."""
    model = make_model('sr', as_routed(load(folder / 'sr.pth')), 4, 'dense')
    pair = Pairs(str(folder / 'gt'), None, Degradation.parse('bicubic2')).pair(0, 3, 2)
    tiled = TiledImage(model, pair.degraded, 40, 4)
    outputs, seconds = tiled.measure([0, 1, 2], 2)
    assert seconds.shape == (2, 3, len(tiled.grid))
    assert np.isfinite(seconds).all()
    for k in range(3):
        blended = tiled.blend(outputs, np.full(len(tiled.grid), k))
        error = np.square(blended / 255.0 - pair.truth / 255.0).sum()
        assert tiled.squared_errors(outputs[k], pair.truth).sum() == pytest.approx(error, rel=0.01)


def test_a_pixel_in_several_tiles_counts_once(folder):
    model = make_model('sr', as_routed(load(folder / 'sr.pth')), 8, 'dense')
    tiled = TiledImage(model, np.zeros((130, 90, 3), np.uint8), 48, 8)
    height, width = (2 * side for side in tiled.grid.tile_size)
    sums = [tiled.weighted_sum(number, np.full((height, width), 3.0)) for number in range(len(tiled.grid))]
    assert len(sums) > 4
    assert sum(sums) == pytest.approx(3 * 260 * 180)


def test_only_what_is_run_in_turn_with_the_other_networks_is_timed(folder, monkeypatch):
    model = make_model('sr', as_routed(load(folder / 'sr.pth')), 4, 'dense')
    pairs = Pairs(str(folder / 'gt'), None, Degradation.parse('bicubic2'))
    settings = Settings(tile=24, overlap=4, budgets=(0.7,), backend='dense', repeats=1)
    surveyed = []
    timed = TiledImage._timed
    monkeypatch.setattr(
        TiledImage, '_timed', lambda self, run, x: (timed(self, run, x)[0], 1.0 if len(surveyed) >= 3 else 1e9)
    )
    rows = Benchmark([model], pairs, settings, lambda stage, *_: surveyed.append(stage)).run()
    (routed,) = [row for row in rows if row.kind == 'budget']
    tiles = sum(len(TiledImage(model, pairs.pair(index, 3, 2).degraded, 24, 4).grid) for index in range(len(pairs)))
    assert routed.seconds == 2 * tiles  # one for the tile, one for the classifier


def test_rows_of_patches_take_turns_and_their_medians_count(folder, monkeypatch):
    net = classpruning('EDSR', candidates=['0:4', '1:4', '2:4', '4:4'])
    model = make_model('bypass', as_routed(net), 4, 'dense')
    pairs = Pairs(str(folder / 'gt'), None, Degradation.parse(f'bicubic{net.scale}'))
    settings = Settings(tile=48, overlap=4, patch=16, budgets=(0.5, 0.7), backend='dense', repeats=3)
    restore, ran = PatchedModel.restore, []

    def timed(self, image, classes):
        ran.append(classes.tobytes())
        return replace(restore(self, image, classes), seconds=float(len(ran)))

    monkeypatch.setattr(PatchedModel, 'restore', timed)
    rows = Benchmark([model], pairs, settings, lambda *args: None).run()
    assert len(ran) == 3 * 3 * 6 + 1  # pictures, repeats and rows; the first is run before it is timed
    start = 1
    for _ in range(3):
        one, two, three = (ran[start + 6 * number : start + 6 * number + 6] for number in range(3))
        assert one == two == three
        start += 18
    # Of each picture the second of three runs counts, of the first row at place 1 + 7, 19 + 7 and 37 + 7.
    assert [row.seconds for row in rows] == [3 * number + 8 + 26 + 44 for number in range(6)]


def test_progress_and_reproducibility(folder):
    model = make_model('sr', as_routed(load(folder / 'sr.pth')), 4, 'dense')
    pairs = Pairs(str(folder / 'gt'), None, Degradation.parse('bicubic2'))
    settings = Settings(tile=24, overlap=4, budgets=(0.7,), backend='dense', repeats=1)
    told = []
    first = Benchmark([model], pairs, settings, lambda *args: told.append(args)).run()
    second = Benchmark([model], pairs, settings, lambda *args: None).run()
    assert told == [(stage, i, 3) for stage in ('surveying sr', 'restoring') for i in (1, 2, 3)]
    assert [(row.psnr, row.ssim, row.macs) for row in first] == [(row.psnr, row.ssim, row.macs) for row in second]


def test_wrong_calls(folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    for options, message in (
        (('--degrade', 'bicubic4'), 'enlarges by 4, the network by 2'),
        (('--degrade', 'noise0-50'), 'enlarges by 1, the network by 2'),
        (('--degrade', 'rain'), 'rain'),
        (('--lq', tmp_path / 'empty'), 'no pictures'),
        (('--lq', tmp_path / 'absent'), 'no such folder'),
        (('--lq', folder / 'gt'), 'is not'),
        (('--degrade', 'bicubic2', '--budgets', 0.01), 'budget 0.01 cannot be met'),
        (('--degrade', 'bicubic2', '--candidates', '3:4'), 'sr has 1:4, 2:4, 4:4'),
        (('--degrade', 'bicubic2', '--repeats', 0), '--repeats 0'),
        (('--degrade', 'bicubic2', '--tile', 3), 'tile 3'),
        (('--degrade', 'bicubic2', '--calibration', folder / 'gt'), 'add --engines'),
        (('--degrade', 'bicubic2', '--engines', '--calibration', tmp_path / 'absent'), 'absent'),
    ):
        with pytest.raises(UsageError, match=message):
            call(folder, *options)
    for options in (('--budgets', 0.6), ('--candidates', '2:4')):
        with pytest.raises(UsageError, match='none of the networks has candidates'):
            call(folder, '--degrade', 'bicubic2', *options, models=('dense.pth',))
    for name in ('json', 'csv', 'markdown', 'plot'):
        with pytest.raises(UsageError, match=f'--{name} .*: a file in an existing folder is wanted'):
            call(folder, '--degrade', 'bicubic2', f'--{name}', tmp_path / 'absent/x')
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken/x.png').write_bytes(b'no picture')
    with pytest.raises(UserError, match=r'broken/x\.png: cannot be read as a picture'):
        Pairs(str(tmp_path / 'broken'), None, Degradation.parse('bicubic2'))
    with pytest.raises(UsageError, match='twice'):
        call(folder, '--degrade', 'bicubic2', models=('sr.pth', 'sr.pth'))
    (tmp_path / 'tiny').mkdir()
    write_picture(tmp_path / 'tiny/x.png', _picture(12))
    pairs = Pairs(str(tmp_path / 'tiny'), None, Degradation.parse('bicubic2'))
    with pytest.raises(UserError, match='too small'):
        pairs.pair(0, 3, 2)


def _picture(side):
    return Picture(np.zeros((side, side, 3), np.uint8), None, Encoding('PNG'))
