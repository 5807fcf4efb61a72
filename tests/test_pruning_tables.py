"""docs/pruning.md agrees with the result files, and its figures are what they claim."""

from __future__ import annotations

import json
import sys

import pytest
from tiny import REPOSITORY

sys.path.insert(0, str(REPOSITORY / 'tools'))
import pruning_tables


def test_the_page_agrees_with_the_results():
    text = pruning_tables.PAGE.read_text(encoding='utf-8')
    assert pruning_tables.render(text) == text


def test_results_name_no_path_of_a_machine():
    for path in pruning_tables.RESULTS.glob('*.json'):
        command = json.loads(path.read_text(encoding='utf-8'))['command']
        assert not any(part.startswith(('/', '~', '..')) for part in command.split())


def row(kind, psnr, macs, candidate=None, budget=None):
    return {'kind': kind, 'candidate': candidate, 'budget': budget, 'psnr': psnr, 'macs': macs, 'macs_dense': 100,
            'saved': 1 - macs / 100}  # fmt: skip


@pytest.fixture
def results(tmp_path, monkeypatch):
    rows = [
        row('candidate', 28.0, 25, '4:16'), row('candidate', 29.0, 51, '8:16'), row('candidate', 30.0, 100, '16:16'),
        row('budget', 28.9, 50, budget=0.5), row('random', 28.8, 50, budget=0.5), row('oracle', 29.1, 50, budget=0.5),
    ]  # fmt: skip
    (tmp_path / 'net_BSD100.json').write_text(json.dumps({'rows': rows}))
    plain = [row('candidate', 20.0, 25, '4:16'), row('candidate', 25.0, 51, '8:16')]
    (tmp_path / 'net_magnitude_BSD100.json').write_text(json.dumps({'rows': plain}))
    monkeypatch.setattr(pruning_tables, 'RESULTS', tmp_path)
    monkeypatch.setattr(pruning_tables, 'NETWORKS', (pruning_tables.Network('net', 'net', 'net', '', 'psnr'),))


@pytest.mark.usefixtures('results')
def test_losses_are_below_the_dense_candidate():
    lines = pruning_tables.losses().splitlines()
    assert lines[2] == '| net | BSD100 | 4:16 | 25.0% | 28.000 | 2.000 | 10.000 | 20.0% |'
    assert lines[3] == '| net | BSD100 | 8:16 | 51.0% | 29.000 | 1.000 | 5.000 | 20.0% |'


@pytest.mark.usefixtures('results')
def test_the_best_fixed_candidate_is_within_the_budget():
    line = pruning_tables.routed().splitlines()[2]
    assert line == '| net | BSD100 | 0.5 | 50.0% | 28.900 | 28.000 (4:16) | +0.900 | 28.800 | +0.100 | 29.100 |'
