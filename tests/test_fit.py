"""``classpruning fit``: the classifier learns other pictures, the candidates stay."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from calibrated import build
from tiny import NETWORKS, dense, write_pictures

from basicsr_classpruning import load
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.cli import main
from basicsr_classpruning.pruning import classifier
from basicsr_classpruning.pruning.crops import Crops


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp('fit')
    write_pictures(root / 'pictures', height=104, width=112)
    net = build('DnCNN')
    write_checkpoint(root / 'net.pth', {'params': net.state_dict()}, net.options)
    return root


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """As always, on few crops and with few steps."""
    for name, value in (('_ERROR_CROPS', (12, 12)), ('_FIT_STEPS', 60), ('_HELD_OUT', 6)):
        monkeypatch.setattr(f'basicsr_classpruning.pruning.prune.{name}', value)


def fit(files, out, *argv, checkpoint: str = 'net.pth') -> int:
    calibration = ('--calibration', str(files / 'pictures'), '--degrade', 'noise0-50')
    return main(['fit', str(files / checkpoint), '--out', str(out), *calibration, *argv])


def test_only_the_classifier_and_the_price_change(files, tmp_path, capsys):
    assert fit(files, tmp_path / 'fitted.pth', '--json', str(tmp_path / 'x.json')) == 0
    before, after = (load(path).state_dict() for path in (files / 'net.pth', tmp_path / 'fitted.pth'))
    changed = {key.split('.')[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {'classifier', 'log_price'}
    header, *rows = capsys.readouterr().out.splitlines()[1:-1]
    assert header.split() == ['budget', 'before', 'after', 'oracle']
    report = json.loads((tmp_path / 'x.json').read_text())
    found = [[one['budget'], one['before'], one['after'], one['oracle']] for one in report['routed']]
    printed = [[float(cell) for cell in row.split()] for row in rows if row.strip('- ')]
    assert np.allclose(printed, found, atol=6e-4)
    assert all(one['oracle'] >= one['before'] - 0.02 for one in report['routed'])


def test_the_same_seed_gives_the_same_file_and_the_fit_changes_what_is_chosen(files, tmp_path):
    for name in ('a', 'b'):
        assert fit(files, tmp_path / f'{name}.pth', '--seed', '3', '--json', str(tmp_path / f'{name}.json')) == 0
    assert (tmp_path / 'a.pth').read_bytes() == (tmp_path / 'b.pth').read_bytes()
    routed = json.loads((tmp_path / 'a.json').read_text())['routed']
    assert any(one['after'] != one['before'] for one in routed)  # with random weights denser is not better


def test_a_classifier_that_was_better_stays(files, tmp_path, capsys, monkeypatch):
    assert fit(files, tmp_path / 'fitted.pth') == 0
    assert f'{tmp_path}/fitted.pth: classifier fitted, ' in capsys.readouterr().out

    untrained = load(files / 'net.pth').classifier.state_dict()

    def spoil(router, *others):
        router.classifier.load_state_dict(untrained)

    monkeypatch.setattr('basicsr_classpruning.pruning.prune.fit_classifier', spoil)
    calibration = (
        '--calibration',
        str(files / 'pictures'),
        '--degrade',
        'noise0-50',
        '--json',
        str(tmp_path / 'x.json'),
    )
    assert main(['fit', str(tmp_path / 'fitted.pth'), '--out', str(tmp_path / 'again.pth'), *calibration]) == 0
    assert f'{tmp_path}/again.pth: classifier as it was, since the fitted one lost more, ' in capsys.readouterr().out
    report = json.loads((tmp_path / 'x.json').read_text())
    assert report['kept']
    assert all(one['after'] == one['before'] for one in report['routed'])
    before, after = (load(tmp_path / name).classifier.state_dict() for name in ('fitted.pth', 'again.pth'))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_slow_network_is_measured_on_fewer_crops(monkeypatch):
    crops = Crops(torch.rand(10, 1, 16, 16), None)
    network = build('DnCNN').eval().routed()
    monkeypatch.setattr(classifier, 'LEAST_CROPS', 4)
    fewer, all_of_them = (classifier.measure_errors(network, crops, 2, patience=seconds) for seconds in (0, 1000))
    assert len(fewer.lq) == len(fewer.errors) == 4
    torch.testing.assert_close(fewer.errors, all_of_them.errors[:4])
    assert len(all_of_them.lq) == 10


def test_a_device_that_is_not_there_is_refused(files, tmp_path, capsys):
    out = tmp_path / 'out.pth'
    assert fit(files, out, '--calibration', str(files / 'pictures'), '--degrade', 'noise0-50', '--device', 'tpu7') == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("classpruning: error: --device 'tpu7': ")
    assert not out.exists()


def test_what_has_no_classifier_to_fit_is_refused(files, tmp_path, capsys):
    write_checkpoint(tmp_path / 'dense.pth', {'params': dense('DnCNN').state_dict()}, NETWORKS['DnCNN'])
    for name, options in (
        ('single', {'candidates': ['2:4']}),
        ('edge', {'candidates': ['2:4', '4:4'], 'classifier': {'type': 'EdgeDifficulty'}}),
    ):
        net = ClassPruning(NETWORKS['DnCNN'], **options)
        write_checkpoint(tmp_path / f'{name}.pth', {'params': net.state_dict()}, net.options)
    for name, message in (
        ('dense', 'a dense network has no classifier; prune it first'),
        ('single', 'one candidate, 2:4: there is nothing to choose'),
        ('edge', 'its classifier, EdgeDifficulty, learns nothing; prune with calibration pictures'),
    ):
        out = tmp_path / 'out.pth'
        assert fit(tmp_path, out, '--calibration', str(files / 'pictures'), checkpoint=f'{name}.pth') == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == f'classpruning: error: {tmp_path / name}.pth: {message}'
        assert not out.exists()


def test_a_bypass_is_added_and_the_other_candidates_stay(files, tmp_path, capsys):
    assert fit(files, tmp_path / 'more.pth', '--bypass', '--json', str(tmp_path / 'x.json')) == 0
    before, after = load(files / 'net.pth'), load(tmp_path / 'more.pth')
    assert after.candidates == ('0:4', *before.candidates)
    x = torch.rand(1, before.num_in_ch, 24, 16)
    for candidate in before.candidates:
        assert torch.equal(after.restore_with(x, candidate), before.restore_with(x, candidate))
    assert after.options['classifier'] == {'type': 'BandClassifier'}
    report = json.loads((tmp_path / 'x.json').read_text())
    assert all(one['oracle'] >= one['before'] - 0.02 for one in report['routed'])
    again = fit(
        tmp_path, tmp_path / 'twice.pth', '--bypass', '--calibration', str(files / 'pictures'), checkpoint='more.pth'
    )
    assert again == 2
    assert '0:4 is in its ladder already' in capsys.readouterr().err
