"""The curves that a training leaves for TensorBoard."""

from __future__ import annotations

import json

import pytest
from tiny import training_options, write_yaml

from basicsr_classpruning.cli import main


@pytest.fixture(scope='module')
def run(tmp_path_factory, pictures):
    """A finished training of nine iterations, three a stage, validated at the end."""
    folder = tmp_path_factory.mktemp('run')
    options = training_options(
        pictures,
        distill_opt={'type': 'DistillationLoss'},
        budget_opt={'type': 'ComputeBudgetLoss', 'target': 0.6},
        class_opt={'type': 'ClassificationLoss'},
    )
    options['datasets']['val'] = {**options['datasets']['train'], 'name': 'seen'}
    options['logger']['use_tb_logger'] = True
    options['val'] = {
        'val_freq': 9,
        'budgets': [0.7],
        'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(['train', '-opt', write_yaml(folder / 'x.yml', options)]) == 0
    return folder


@pytest.fixture(scope='module')
def curves(run):
    """The points (iteration, value) of each curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / 'tb_logger/tiny'))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def test_every_loss_in_the_stages_that_have_it(curves):
    steps = {tag: [step for step, _ in points] for tag, points in curves.items()}
    for name in ('l_pix', 'l_distill'):
        assert steps[f'losses/{name}'] == [1, 2, 3, 7, 8, 9]
    for name in ('l_difficulty', 'l_budget', 'l_class'):
        assert steps[f'losses/{name}'] == [4, 5, 6, 7, 8, 9]


def test_stage_shares_and_average_macs(curves):
    assert [value for _, value in curves['train/stage']] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    shares = [curves[f'train/share/{name}'] for name in ('1:4', '2:4', '4:4')]
    for points in zip(*shares):
        assert sum(value for _, value in points) == pytest.approx(1)
    macs = [value for _, value in curves['train/average_macs']]
    assert len(macs) == 6
    assert all(0.2 < value < 1.1 for value in macs)


def test_validations(curves, run):
    lines = (run / 'experiments/tiny/metrics.jsonl').read_text().splitlines()
    report = json.loads(lines[0])
    for row in report['rows']:
        for key, value in {**row['metrics'], 'average_macs': row['macs'], 'saved': row['saved']}.items():
            assert curves[f'metrics/seen/{row["name"]}/{key}'][0] == (9, pytest.approx(value, rel=1e-5))
    assert [row['name'] for row in report['rows']] == ['routed', 'budget 0.7', '1:4', '2:4', '4:4']
