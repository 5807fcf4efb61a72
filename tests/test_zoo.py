"""The networks that the repository ships: whole, loadable, and what the index says they are."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from tiny import REPOSITORY

from basicsr_classpruning import load
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.data.degradations import Degradation

ZOO = REPOSITORY / 'zoo'
ENTRIES = json.loads((ZOO / 'index.json').read_text(encoding='utf-8'))
MOST_BYTES = 25e6


def test_lists_every_file():
    listed = {name for entry in ENTRIES for name in (entry['model'], entry['dense'])}
    assert listed == {path.name for path in ZOO.glob('*.pth')}
    assert sum(path.stat().st_size for path in ZOO.iterdir()) < MOST_BYTES


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['model'])
def test_is_what_the_index_says(entry):
    for name, checksum in entry['sha256'].items():
        assert hashlib.sha256((ZOO / name).read_bytes()).hexdigest() == checksum
    net, dense = load(ZOO / entry['model']), load(ZOO / entry['dense'])
    assert isinstance(net, ClassPruning)
    assert list(net.candidates) == entry['candidates']
    assert net.scale == dense.scale == entry['scale'] == Degradation.parse(entry['degrade']).scale
    costs = net.reference_macs.costs
    assert costs[0] < entry['recommended_budget'] < costs[-1]
    x = torch.rand(1, 3, 24, 24)
    assert net(x).shape == dense(x).shape
