"""The benchmark tables: their options files agree with the plan, and what stands in them is what it claims."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network
from tiny import NETWORKS, REPOSITORY

from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.config import load_options
from basicsr_classpruning.untrusted.files import load_file
from tools.benchmark_tables import container, instances, permutation
from tools.benchmark_tables.options import options_file, text

ROWS = [(table, row) for table in instances.TABLES for row in table.rows]
IDS = [f'{table.name}-{row.name}' for table, row in ROWS]


@pytest.mark.parametrize(('table', 'row'), ROWS, ids=IDS)
def test_options_file_is_what_the_plan_says_and_is_valid(table, row):
    path = REPOSITORY / options_file(table, row)
    assert path.read_text(encoding='utf-8') == text(table, row)
    load_options(str(path))


@pytest.mark.parametrize('table', instances.TABLES, ids=lambda table: table.name)
def test_all_networks_are_trained_for_the_same_steps(table):
    def steps(row):
        before = steps(table.row(row.start)) if row.start else 0
        return before + sum(training.steps for training in row.trainings) + row.fit

    assert {steps(row) for row in table.rows if row.name != 'start'} == {table.first.steps + table.further.steps}


@pytest.mark.parametrize('share_taps', [False, True])
def test_permuted_channels_change_nothing_but_which_of_them_share_a_block(share_taps):
    torch.manual_seed(0)
    net = build_network({**NETWORKS['EDSR'], 'num_feat': 32})
    before = {key: torch.randn_like(value) * 0.1 for key, value in net.state_dict().items()}
    after = permutation.permuted(before, 16, share_taps)
    image = torch.rand(1, 3, 12, 9)
    outputs = []
    for state in (before, after):
        net.load_state_dict(state)
        with torch.no_grad():
            outputs.append(net(image))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert not torch.equal(before['body.0.conv1.weight'], after['body.0.conv1.weight'])


def test_alike_channels_come_to_share_a_block():
    generator = torch.Generator().manual_seed(1)
    kinds = torch.eye(4)[torch.randperm(16, generator=generator) % 4]
    order = permutation.order_by_likeness(kinds + 0.01 * torch.rand(16, 4, generator=generator), 4)
    assert sorted(order.tolist()) == list(range(16))
    for block in kinds[order].view(4, 4, 4):
        assert torch.equal(block, block[:1].expand_as(block))


def test_a_container_of_widths_meets_budgets(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(container, '_CROPS', 4)
    monkeypatch.setattr(container, '_STEPS', 3)
    paths = []
    for width in (8, 16):
        paths.append(tmp_path / f'width{width}' / 'models' / 'net.pth')
        paths[-1].parent.mkdir(parents=True)
        base = {**NETWORKS['EDSR'], 'num_feat': width}
        write_checkpoint(paths[-1], {'params': build_network(dict(base)).state_dict()}, base)
    entrant = container.fit(paths, 'bicubic2', str(pictures))
    rows = container.measure(entrant, 'bicubic2', str(pictures), (0.1, 0.7, 1.0))
    budgets = [row for row in rows if row.kind == 'budget']
    assert [row.budget for row in budgets] == [0.7, 1.0]
    assert budgets[0].macs < budgets[1].macs
    assert budgets[0].params > sum(load_file(path)['params']['conv_first.weight'].numel() for path in paths)
    assert set(budgets[0].class_share) == {'width8', 'width16'}
