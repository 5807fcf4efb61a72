"""What a classifier could know: the routings are what they claim."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import classpruning, dense, write_pictures

from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.routing.router import Router
from tools import routing_by_distance

ROUTER = Router(torch.nn.Identity(), torch.zeros(()))  # its predictions are given


def test_who_knows_more_gains_more():
    rng = np.random.default_rng(0)

    def picture() -> routing_by_distance.Tiles:
        distances = np.sort(rng.random((20, 3)), axis=1)[:, ::-1]
        errors = 1 + distances + 0.2 * rng.standard_normal((20, 3))
        errors /= errors[:, -2].sum()
        return routing_by_distance.Tiles(errors, distances, distances + rng.random((20, 3)), np.ones(20))

    found = routing_by_distance.gains([picture() for _ in range(20)], ROUTER, np.array([0.3, 0.6, 1.0]), 0.6)
    assert found['oracle'] > found['distances'] > found['classifier'] > 0


def test_a_network_is_measured(tmp_path, monkeypatch, capsys):
    net = classpruning('DnCNN')
    write_checkpoint(tmp_path / 'net.pth', {'params': net.state_dict()}, net.options)
    write_checkpoint(tmp_path / 'dense.pth', {'params': dense('DnCNN').state_dict()}, net.options['base'])
    pictures = write_pictures(tmp_path / 'gt', count=2, height=104, width=112)
    arguments = ['--gt', str(pictures), '--degrade', 'noise25-25', '--json', str(tmp_path / 'out' / 'net.json')]

    monkeypatch.setattr('sys.argv', ['x', str(tmp_path / 'net.pth'), *arguments])
    monkeypatch.setattr(routing_by_distance, 'BUDGETS', (0.7, 0.8))
    routing_by_distance.main()
    report = json.loads((tmp_path / 'out' / 'net.json').read_text())
    assert report['pictures'] == 2
    assert [row['budget'] for row in report['rows']] == [0.7, 0.8]
    assert all(row['oracle'] >= 0 for row in report['rows'])

    monkeypatch.setattr('sys.argv', ['x', str(tmp_path / 'dense.pth'), *arguments])
    with pytest.raises(SystemExit):
        routing_by_distance.main()
    assert 'dense.pth: there is nothing to choose' in capsys.readouterr().err
