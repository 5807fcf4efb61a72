"""The networks that the repository ships: whole, loadable, and what the index says they are."""

from __future__ import annotations

import hashlib
import json

import cv2
import numpy as np
import pytest
import torch
from tiny import REPOSITORY

from basicsr_classpruning import load
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.benchmark.metrics import compare
from basicsr_classpruning.data.degradations import Degradation, as_uint8, picture_rng
from basicsr_classpruning.data.demo import make_demo_data
from basicsr_classpruning.inference import Restorer
from basicsr_classpruning.inference.restoration import RestoreStats

ZOO = REPOSITORY / 'zoo'
ENTRIES = json.loads((ZOO / 'index.json').read_text(encoding='utf-8'))
MOST_BYTES = 25e6


def test_lists_every_file():
    listed = {name for entry in ENTRIES for name in (entry['model'], entry['dense']) if name}
    assert listed == {path.name for path in ZOO.glob('*.pth')}
    assert sum(path.stat().st_size for path in ZOO.iterdir()) < MOST_BYTES


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['model'])
def test_is_what_the_index_says(entry):
    for name, checksum in entry['sha256'].items():
        assert hashlib.sha256((ZOO / name).read_bytes()).hexdigest() == checksum
    dense = load(ZOO / entry['dense'])
    assert dense.scale == entry['scale']
    if entry['model'] is None:  # too large for the repository, and made in minutes by `prune`
        return
    net = load(ZOO / entry['model'])
    assert isinstance(net, ClassPruning)
    assert list(net.candidates) == entry['candidates']
    assert net.scale == dense.scale == entry['scale'] == Degradation.parse(entry['degrade']).scale
    costs = net.reference_macs.costs
    assert costs[0] < entry['recommended_budget'] < costs[-1]
    x = torch.rand(1, 3, 24, 24)
    assert net(x).shape == dense(x).shape


def test_a_trained_network_is_worth_its_budget_on_a_photograph(tmp_path):
    """What random weights cannot show: PSNR rises with the budget, all of it is spent, and routing beats one candidate
    for everything at more MACs."""
    truth = cv2.imread(str(make_demo_data(tmp_path).test / 'rocket.png'))[..., ::-1]
    truth = np.ascontiguousarray(truth[: len(truth) // 2 * 2, : truth.shape[1] // 2 * 2])
    degraded = as_uint8(Degradation.parse('bicubic2').degrade(truth, picture_rng('rocket', 0)))
    net = load(ZOO / 'edsr_x2_32_photographs.pth')

    def quality(**options) -> tuple[float, RestoreStats]:
        restored, stats = Restorer(net, threads=1, device='cpu', **options).restore(degraded)
        return compare(restored, truth, 2).psnr_y, stats

    found = {budget: quality(budget=budget, patch=16) for budget in (0.15, 0.25, 0.4, 0.7)}
    psnr = [each for each, _ in found.values()]
    assert psnr == sorted(psnr)
    for budget, (_, stats) in found.items():
        assert stats.enough or 0.98 * budget <= stats.spent <= budget
    one, stats = quality(candidate='4:16')
    assert stats.average_macs > 0.25 * stats.macs_dense
    assert found[0.25][0] > one
    assert found[0.4][0] > quality(candidate='16:16')[0] - 0.1
