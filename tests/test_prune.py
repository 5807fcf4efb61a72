"""``classpruning prune``: with data and without, both kinds of weights, the classifier, wrong calls."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from tiny import classpruning, dense, prune, write_pictures
from torch.nn import functional

from basicsr_classpruning import load
from basicsr_classpruning.cli import main
from basicsr_classpruning.data.degradations import BicubicDownscaling, GaussianNoise
from basicsr_classpruning.data.pictures import Pictures
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.pruning.classifier import ErrorMaps, fit_classifier, set_price
from basicsr_classpruning.pruning.crops import cut_crops
from basicsr_classpruning.pruning.degradation import detect_degradation

SPARSE = ['1:4', '2:4']


def losses(text: str) -> dict[str, list[float]]:
    """The numbers behind each candidate of the printed table."""
    lines = [re.split(r'\s{2,}', line.strip()) for line in text.splitlines()]
    return {line[0]: [float(cell) for cell in line[2:]] for line in lines if line[0] in ('dense', *SPARSE)}


@pytest.mark.usefixtures('little_work')
def test_files_that_are_no_pictures_are_skipped_and_damaged_ones_named(prunable, tmp_path, capsys):
    folder = tmp_path / 'pictures'
    shutil.copytree(prunable / 'pictures', folder)
    for name in ('._x.png', 'Thumbs.db', '.DS_Store'):
        (folder / name).write_bytes(b'\0\5\x16\7 no picture')
    calibration = ('--calibration', str(folder), '--degrade', 'noise25-25')
    assert prune(prunable, tmp_path / 'x.pth', *calibration) == 0
    assert f'{folder}: 3 files that are no pictures skipped (' in capsys.readouterr().err
    name = next(path.name for path in folder.iterdir() if path.suffix == '.png' and path.name[0] != '.')
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    assert prune(prunable, tmp_path / 'y.pth', *calibration) == 1
    printed = capsys.readouterr()
    assert name in printed.err
    assert printed.err.count('\n') == 1
    assert not (tmp_path / 'y.pth').exists()


@pytest.mark.usefixtures('little_work')
def test_calibrated_candidates_are_near_the_dense_network_and_both_kinds_of_weights_are_compared(
    prunable, tmp_path, capsys
):
    calibration = ('--calibration', str(prunable / 'pictures'), '--degrade', 'noise25-25')
    printed = {}
    for weights in ('own', 'shared'):
        report = ('--json', str(tmp_path / f'{weights}.json'))
        assert prune(prunable, tmp_path / f'{weights}.pth', *calibration, '--weights', weights, *report) == 0
        printed[weights] = capsys.readouterr().out
    assert prune(prunable, tmp_path / 'magnitude.pth') == 0

    # Each run measures what the other one gives, on the same crops.
    own, shared = losses(printed['own']), losses(printed['shared'])
    assert [*own] == [*shared] == ['dense', *SPARSE]
    for name in own:
        half = len(own[name]) // 2
        assert own[name] == shared[name][half:] + shared[name][:half]
    for weights, other in (('own', 'shared'), ('shared', 'own')):
        size = (tmp_path / f'{weights}.pth').stat().st_size
        kind = json.loads((tmp_path / f'{weights}.json').read_text())['weights'][0]
        assert (kind['kind'], kind['file_bytes']) == (weights, size)
        columns = re.search(r'^file +([\d.]+) MB +([\d.]+) MB', printed[weights], re.M)
        assert columns
        assert [float(value) for value in columns.groups()] == pytest.approx(
            [(tmp_path / f'{name}.pth').stat().st_size / 1e6 for name in (weights, other)], abs=0.006
        )

    torch.manual_seed(1)
    x = torch.rand(2, 3, 40, 48)
    reference = dense('DnCNN')(x)
    nets = {name: load(tmp_path / f'{name}.pth') for name in ('own', 'shared', 'magnitude')}
    for candidate in SPARSE:
        error = {
            name: float((net.restore_with(x, candidate) - reference).detach().square().mean())
            for name, net in nets.items()
        }
        assert error['own'] < error['shared'] < error['magnitude']
    for net in nets.values():
        assert torch.equal(net.restore_with(x, '4:4'), reference)


@pytest.mark.usefixtures('little_work')
def test_where_pruning_takes_long_the_other_kind_of_weights_is_left_out(prunable, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('basicsr_classpruning.pruning.prune._PATIENCE', 0.0)
    calibration = ('--calibration', str(prunable / 'pictures'), '--degrade', 'noise25-25')
    assert prune(prunable, tmp_path / 'x.pth', *calibration) == 0
    printed = capsys.readouterr().out
    assert 'own' in printed
    assert 'shared' not in printed
    assert load(tmp_path / 'x.pth').options['weights'] == 'own'


def test_without_data_masks_go_by_magnitude(prunable, tmp_path, capsys):
    assert prune(prunable, tmp_path / 'x.pth') == 0
    out = capsys.readouterr().out
    assert 'with --calibration DIR the candidates lose far less' in out
    assert re.search(r'shared weights: [\d.]+ MB; own weights: [\d.]+ MB', out)
    expected = classpruning('DnCNN')
    expected.load_params(dense('DnCNN').state_dict())
    x = torch.rand(1, 3, 16, 16)
    for candidate in ('1:4', '2:4', '4:4'):
        assert torch.equal(load(tmp_path / 'x.pth').restore_with(x, candidate), expected.restore_with(x, candidate))


@pytest.mark.usefixtures('little_work')
def test_a_pruned_network_is_pruned_anew_from_its_dense_weights(prunable, tmp_path):
    calibration = ('--calibration', str(prunable / 'pictures'), '--degrade', 'noise25-25', '--candidates', '2:4', '4:4')
    assert prune(prunable, tmp_path / 'once.pth', *calibration) == 0
    assert main(['prune', str(tmp_path / 'once.pth'), '--out', str(tmp_path / 'twice.pth'), *calibration]) == 0
    once, twice = (load(tmp_path / name).state_dict() for name in ('once.pth', 'twice.pth'))
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_the_classifier_learns_which_images_are_hard():
    net = classpruning('DnCNN')
    generator = torch.Generator().manual_seed(0)
    strength = torch.rand(64, generator=generator)
    images = 0.5 + 0.2 * strength[:, None, None, None] * torch.randn(64, 3, 32, 32, generator=generator)
    excess = strength.square()[:, None, None, None] * torch.tensor([0.02, 0.005, 0.0])[:, None, None]
    fit_classifier(net.router, ErrorMaps(images, excess.expand(-1, -1, 4, 4) + 0.001), steps=150, seed=0)
    net.eval()
    errors = net.predicted_errors(images)
    hard, easy = strength > 0.7, strength < 0.3
    assert errors[hard, 0].min() > errors[easy, 0].max()
    set_price(net, images, 0.6)
    costs = net.costs()[net.classify(images)]
    assert costs.mean() <= 0.6
    assert costs[hard].mean() > costs[easy].mean()


def test_crops_are_as_large_as_most_pictures_allow(tmp_path):
    write_pictures(tmp_path / 'small', count=3, height=40, width=48)
    write_pictures(tmp_path / 'small', count=1, height=20, width=48)  # takes the place of one of the three
    crops = cut_crops(
        Pictures(str(tmp_path / 'small')), BicubicDownscaling(2), scale=2, count=5, side=96, seed=0, step=8
    )
    assert crops.lq.shape == (5, 3, 16, 16)
    assert crops.gt is not None
    assert crops.gt.shape == (5, 3, 32, 32)
    more = cut_crops(Pictures(str(tmp_path / 'small')), None, scale=1, count=5, side=96, seed=0, everywhere=True)
    assert more.lq.shape == (5 * 96**2 // 40**2 + 1, 3, 40, 40)
    with pytest.raises(UsageError, match='64 pixels on both sides are wanted'):
        cut_crops(Pictures(str(tmp_path / 'small')), None, scale=1, count=5, side=96, seed=0, step=64)


def test_what_a_network_undoes_is_found_out(tmp_path):
    pictures = Pictures(str(write_pictures(tmp_path / 'smooth', count=1, height=104, width=112)))

    def blur(x):
        for _ in range(4):
            x = functional.avg_pool2d(functional.pad(x, (2, 2, 2, 2), 'replicate'), 5, 1)
        return x

    assert detect_degradation(blur, pictures, 1) == GaussianNoise(0, 50)
    assert detect_degradation(lambda x: x, pictures, 1) is None
    assert detect_degradation(lambda x: x, pictures, 4) == BicubicDownscaling(4)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--skip', '.'), 'no layer of DnCNN can be pruned to'),
        (('--candidates', 'foo'), "--candidates 'foo' is not allowed; N:M with 1 <= N <= M <= 32"),
        (('--candidates', '2:4', '1:4'), "--candidates ['2:4', '1:4'] is not allowed; sparsest first and each once"),
        (('--candidates', '4:4'), '--candidates 4:4: none of them is sparse'),
        (('--block', '0'), '--block 0 of pattern 1:4: must be at least 1'),
        (('--skip', '('), "--skip '(' is no regular expression"),
        (('--seed', '-1'), '--seed -1: allowed are 0 and more'),
        (('--degrade', 'noise0-50'), '--degrade: needs --calibration'),
        (('--calibration', '{folder}/absent'), 'absent: no such folder'),
        (('--calibration', '{folder}/pictures', '--degrade', 'rain'), "degradation 'rain' is not"),
        (('--calibration', '{folder}/pictures', '--degrade', 'bicubic2'), 'the network has 1'),
        (('--out', '{folder}'), 'a file in an existing folder is wanted'),
        (('--out', '{folder}/absent/x.pth'), 'a file in an existing folder is wanted'),
        (('--out', '{folder}/x.safetensors'), 'a ClassPruning checkpoint is a .pth file'),
        (('--out', '{folder}/dense.pth'), 'the result would replace it'),
    ],
)
def test_wrong_calls_are_one_line_and_write_nothing(prunable, tmp_path, capsys, arguments, message):
    before = {path: path.read_bytes() for path in prunable.iterdir() if path.is_file()}
    assert prune(prunable, tmp_path / 'x.pth', *(part.format(folder=prunable) for part in arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('classpruning: error: ')
    assert message in lines[0]
    assert {path: path.read_bytes() for path in prunable.iterdir() if path.is_file()} == before
    assert not list(tmp_path.iterdir())
