"""Whole trainings: resuming bit for bit, damaged checkpoints, validation."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.metrics import calculate_psnr
from basicsr.utils import tensor2img
from tiny import NETWORKS, classpruning, dense, same, training_options
from training import BUDGET, CLASS, DISTILL, EXPERIMENT, model_of, run

import basicsr_classpruning
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.models.classpruning_model import ClassPruningModel
from basicsr_classpruning.models.validation import evaluate
from basicsr_classpruning.safe_files import save_file
from basicsr_classpruning.untrusted.files import load_file

# -------------------------------------------------------------------- whole runs


def long_options(pictures: Path) -> dict:
    """Nine iterations through all stages, two an epoch, with everything that keeps a state; a checkpoint at each."""
    options = training_options(pictures, ema_decay=0.9, mask_interval=2, **BUDGET, **CLASS, **DISTILL)
    options['train']['scheduler'] = {
        'type': 'CosineAnnealingRestartLR', 'periods': [5, 5], 'restart_weights': [1, 0.5], 'eta_min': 1e-6,
    }  # fmt: skip
    options['logger']['save_checkpoint_freq'] = 1
    options['val'] = {'val_freq': 4, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}}
    options['datasets']['val'] = {
        'name': 'val', 'type': 'DegradedImageDataset', 'dataroot_gt': str(pictures), 'degradation': {'type': 'bicubic'},
    }  # fmt: skip
    return options


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, pictures) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(folder, monkeypatch, long_options(pictures)) == 0
    return folder / EXPERIMENT


def assert_same_run(found: Path, wanted: Path) -> None:
    for path in (*wanted.glob('models/*.pth'), *wanted.glob('training_states/*.state')):
        assert same(load_file(found / path.relative_to(wanted)), load_file(path)), path.name


def test_a_run_leaves_its_checkpoints_log_and_figures(uninterrupted):
    for iteration in range(1, 10):
        assert (uninterrupted / f'models/net_g_{iteration}.pth').is_file()
        assert (uninterrupted / f'training_states/{iteration}.state').is_file()
    (log,) = uninterrupted.glob('train_tiny_*.log')
    assert 'l_difficulty' in log.read_text()
    records = [json.loads(line) for line in (uninterrupted / 'metrics.jsonl').read_text().splitlines()]
    assert [record['iteration'] for record in records][:2] == [4, 8]
    assert [row['name'] for row in records[0]['rows']] == ['routed', '1:4', '2:4', '4:4']
    assert not list(uninterrupted.rglob('*.tmp'))


def test_the_last_checkpoint_holds_both_sets_of_weights_and_rebuilds_the_network(uninterrupted):
    path = uninterrupted / 'models/net_g_latest.pth'
    content = load_file(path)
    assert {'params', 'params_ema', 'network_g'} <= content.keys()
    net = basicsr_classpruning.load(path)
    assert same(dict(net.state_dict()), dict(content['params_ema']))


def test_the_same_run_twice_is_the_same(tmp_path, monkeypatch, pictures, uninterrupted):
    assert run(tmp_path, monkeypatch, long_options(pictures)) == 0
    assert_same_run(tmp_path / EXPERIMENT, uninterrupted)


def interrupt_in(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    """Makes training stop in the middle of an iteration."""
    original = ClassPruningModel.optimize_parameters

    def optimize(self, current_iter: int) -> None:
        if current_iter == iteration:
            raise KeyboardInterrupt
        original(self, current_iter)

    monkeypatch.setattr(ClassPruningModel, 'optimize_parameters', optimize)


@pytest.mark.parametrize('iteration', [2, 3, 5, 8])  # an epoch is two iterations: in its middle, and at its start
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, monkeypatch, pictures, uninterrupted, iteration):
    options = long_options(pictures)
    with monkeypatch.context() as patch:
        interrupt_in(patch, iteration)
        assert run(tmp_path, patch, options) == 130
    assert run(tmp_path, monkeypatch, options, '--auto_resume') == 0
    assert_same_run(tmp_path / EXPERIMENT, uninterrupted)


@pytest.mark.parametrize('dealt', [{'split': 'turn'}, {'split': 'none', 'sparse_batch': 1}])
def test_a_run_with_a_bypass_goes_on_bit_for_bit(tmp_path, monkeypatch, pictures, dealt):
    options = long_options(pictures)
    options['train'].update(dealt, stages={'supernet': 2, 'classifier': 1, 'joint': 2})
    options['network_g'].update(candidates=['0:4', '1:4', '4:4'], weights='own')
    assert run(tmp_path / 'whole', monkeypatch, options) == 0
    for iteration in (2, 5):
        with monkeypatch.context() as patch:
            interrupt_in(patch, iteration)
            assert run(tmp_path / 'parts', patch, options, '--auto_resume') == 130
    assert run(tmp_path / 'parts', monkeypatch, options, '--auto_resume') == 0
    assert_same_run(tmp_path / 'parts' / EXPERIMENT, tmp_path / 'whole' / EXPERIMENT)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ('damage', 'names'),
    [
        (truncate, ['models/net_g_4.pth']),
        (truncate, ['training_states/4.state']),
        (flip_a_bit, ['models/net_g_4.pth', 'training_states/3.state']),
        (Path.unlink, ['models/net_g_4.pth']),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, monkeypatch, pictures, uninterrupted, damage, names):
    options = long_options(pictures)
    with monkeypatch.context() as patch:
        interrupt_in(patch, 5)
        run(tmp_path, patch, options)
    experiment = tmp_path / EXPERIMENT
    for name in names:
        damage(experiment / name)
    for log in experiment.glob('*.log'):
        log.unlink()
    assert run(tmp_path, monkeypatch, options, '--auto_resume') == 0
    assert_same_run(experiment, uninterrupted)
    (log,) = experiment.glob('*.log')
    for name in names:
        assert f'{name}: ' in log.read_text()
    assert log.read_text().count('going back to the checkpoint before it') == len(names)


def test_no_whole_checkpoint_stops_with_one_line(tmp_path, monkeypatch, pictures, capsys):
    options = training_options(pictures)
    options['logger']['save_checkpoint_freq'] = 9
    assert run(tmp_path, monkeypatch, options) == 0
    truncate(tmp_path / EXPERIMENT / 'models/net_g_9.pth')
    capsys.readouterr()
    assert run(tmp_path, monkeypatch, options, '--auto_resume') == 1
    assert 'none of 1 checkpoints is whole' in capsys.readouterr().err.splitlines()[-1]


def test_resuming_with_other_options_stops_with_one_line(tmp_path, monkeypatch, pictures, capsys):
    options = training_options(pictures)
    options['logger']['save_checkpoint_freq'] = 9
    assert run(tmp_path, monkeypatch, options) == 0
    state = tmp_path / EXPERIMENT / 'training_states/9.state'
    content = load_file(state)
    content['optimizers'][0]['param_groups'].pop()
    save_file(content, state)
    assert run(tmp_path, monkeypatch, options, '--auto_resume') == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f'{state}: belongs to a run with other options' in error


SCHEDULES = {
    'multi-step': {'type': 'MultiStepLR', 'milestones': [2, 4], 'gamma': 0.5},
    'later milestones': {'type': 'MultiStepLR', 'milestones': [2, 6, 8], 'gamma': 0.1},
    'restarts': {
        'type': 'MultiStepRestartLR', 'milestones': [2, 7], 'restarts': [0, 5], 'restart_weights': [1, 0.7],
    },
    'cosine': {'type': 'CosineAnnealingRestartLR', 'periods': [5], 'restart_weights': [1], 'eta_min': 1e-6},
    'longer cosine': {
        'type': 'CosineAnnealingRestartLR', 'periods': [5, 4], 'restart_weights': [1, 0.5], 'eta_min': 1e-6,
    },
}  # fmt: skip


def rates(log: Path) -> dict[int, str]:
    """Learning rates by iteration, as logged."""
    lines = re.findall(r'iter:\s*(\d+), lr:\(([^)]*)\)', log.read_text())
    return {int(iteration): values for iteration, values in lines}


def scheduled(pictures: Path, length: int, schedule: str, **train) -> dict:
    options = training_options(pictures, scheduler=SCHEDULES[schedule], **train)
    options['train']['stages'] = {'supernet': length}
    options['logger']['save_checkpoint_freq'] = length
    return options


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        ('multi-step', 'later milestones'),
        ('multi-step', 'restarts'),
        ('multi-step', 'longer cosine'),
        ('cosine', 'longer cosine'),
        ('cosine', 'multi-step'),
    ],
)
@pytest.mark.parametrize('train', [{}, {'warmup_iter': 7, 'optim_g': {'type': 'Adam', 'lr': 2e-3}}])
def test_a_resumed_run_has_the_learning_rates_of_its_options(tmp_path, monkeypatch, pictures, first, second, train):
    wanted = scheduled(pictures, 9, second, **train)
    assert run(tmp_path / 'whole', monkeypatch, wanted) == 0
    assert run(tmp_path / 'resumed', monkeypatch, scheduled(pictures, 5, first)) == 0
    for log in (tmp_path / 'resumed' / EXPERIMENT).glob('*.log'):
        log.unlink()
    assert run(tmp_path / 'resumed', monkeypatch, wanted, '--auto_resume') == 0
    (whole,) = (tmp_path / 'whole' / EXPERIMENT).glob('*.log')
    (resumed,) = (tmp_path / 'resumed' / EXPERIMENT).glob('*.log')
    assert list(rates(resumed)) == [6, 7, 8, 9]
    assert rates(resumed) == {iteration: rate for iteration, rate in rates(whole).items() if iteration > 5}
    (line,) = [line for line in resumed.read_text().splitlines() if 'options that have changed' in line]
    assert 'train.total_iter 5 → 9' in line
    assert 'train.scheduler.' in line


@pytest.mark.parametrize('model_type', ['SRModel', 'GuardedSRModel'])
def test_a_dense_network_goes_on_with_the_learning_rates_of_its_options(tmp_path, monkeypatch, pictures, model_type):
    def dense_options(length: int, schedule: str, rate: float) -> dict:
        optimizer = {'type': 'Adam', 'lr': rate}
        options = scheduled(pictures, length, schedule, total_iter=length, optim_g=optimizer)
        del options['train']['stages']
        return {**options, 'model_type': model_type, 'network_g': NETWORKS['EDSR']}

    wanted = dense_options(9, 'longer cosine', 2e-3)
    assert run(tmp_path / 'whole', monkeypatch, wanted) == 0
    assert run(tmp_path / 'resumed', monkeypatch, dense_options(5, 'multi-step', 1e-3)) == 0
    for log in (tmp_path / 'resumed' / EXPERIMENT).glob('*.log'):
        log.unlink()
    assert run(tmp_path / 'resumed', monkeypatch, wanted, '--auto_resume') == 0
    (whole,) = (tmp_path / 'whole' / EXPERIMENT).glob('*.log')
    (resumed,) = (tmp_path / 'resumed' / EXPERIMENT).glob('*.log')
    assert rates(resumed) == {iteration: rate for iteration, rate in rates(whole).items() if iteration > 5}
    assert resumed.read_text().count('options that have changed') == 1


def test_a_longer_run_with_the_same_schedule_is_the_one_that_was_never_stopped(tmp_path, monkeypatch, pictures):
    for folder, lengths in (('whole', [9]), ('resumed', [5, 9])):
        for length in lengths:
            options = scheduled(pictures, length, 'later milestones', ema_decay=0.9)
            assert run(tmp_path / folder, monkeypatch, options, '--auto_resume') == 0
    whole, resumed = (
        load_file(tmp_path / folder / EXPERIMENT / 'models/net_g_9.pth') for folder in ('whole', 'resumed')
    )
    assert same(resumed, whole)


def test_a_state_of_an_earlier_version_goes_on_with_the_options_schedule(tmp_path, monkeypatch, pictures):
    assert run(tmp_path, monkeypatch, scheduled(pictures, 5, 'cosine')) == 0
    state = tmp_path / EXPERIMENT / 'training_states/5.state'
    content = load_file(state)
    del content['options']
    save_file(content, state)
    assert run(tmp_path, monkeypatch, scheduled(pictures, 9, 'longer cosine'), '--auto_resume') == 0
    saved = load_file(tmp_path / EXPERIMENT / 'training_states/9.state')
    assert saved['schedulers'][0]['periods'] == [5, 4]
    assert saved['optimizers'][0]['param_groups'][0]['lr'] < 4e-4  # of 1e-3 · 0.5, near the end of a period


def test_a_larger_batch_goes_on_and_is_said(tmp_path, monkeypatch, pictures, capsys):
    assert run(tmp_path, monkeypatch, scheduled(pictures, 5, 'multi-step')) == 0
    options = scheduled(pictures, 9, 'multi-step')
    options['datasets']['train'].update(batch_size_per_gpu=4, gt_size=20)
    capsys.readouterr()
    assert run(tmp_path, monkeypatch, options, '--auto_resume') == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'options that have changed' in line]
    assert 'datasets.train.gt_size 16 → 20' in line
    assert 'datasets.train.batch_size_per_gpu 3 → 4' in line
    assert 'train.scheduler' not in line


def test_recoveries_keep_the_classifier_slow_under_a_new_schedule(tmp_path, pictures):
    options = training_options(pictures, stages={'joint': 9})
    first = model_of(tmp_path, options)
    first.recoveries = 2
    first._slow_classifier_down()
    first._slow_classifier_down()
    first.opt['path']['training_states'] = str(tmp_path)
    first.save_training_state(0, 3)
    options['train']['scheduler'] = {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.1}
    second = model_of(tmp_path, options)
    second.resume_training(load_file(tmp_path / '3.state'))
    groups = second.optimizer_g.param_groups
    assert [group['lr'] for group in groups[:2]] == pytest.approx([1e-4, 5e-4 * 0.09])


@pytest.mark.parametrize(
    ('change', 'wanted'),
    [
        ({'stages': {'supernet': 4}}, 'train.total_iter: 4 is not allowed; at least 5, the iteration of'),
        ({'model_type': 'GuardedSRModel'}, 'model_type: GuardedSRModel cannot go on from'),
    ],
)
def test_what_cannot_go_on_is_refused_in_one_line(tmp_path, monkeypatch, pictures, capsys, change, wanted):
    assert run(tmp_path, monkeypatch, scheduled(pictures, 5, 'multi-step')) == 0
    options = scheduled(pictures, 9, 'multi-step')
    if 'stages' in change:
        options['train'].update(change)
    else:
        del options['train']['stages']
        options['train']['total_iter'] = 9
        options.update(change, network_g=NETWORKS['EDSR'])
    capsys.readouterr()
    assert run(tmp_path, monkeypatch, options, '--auto_resume') == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert wanted in error
    assert 'training_states/5.state' in error


def test_another_optimiser_cannot_go_on(tmp_path, monkeypatch, pictures, capsys):
    assert run(tmp_path, monkeypatch, scheduled(pictures, 5, 'multi-step')) == 0
    state = tmp_path / EXPERIMENT / 'training_states/5.state'
    content = load_file(state)
    content['options']['train']['optim_g']['type'] = 'SGD'  # as a version that knows it would write
    save_file(content, state)
    capsys.readouterr()
    assert run(tmp_path, monkeypatch, scheduled(pictures, 9, 'multi-step'), '--auto_resume') == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f'train.optim_g.type: SGD → Adam: {state} belongs to the first' in error


@pytest.mark.parametrize('damage', [{'iter': '5'}, {'options': [1]}, {'options': {'train': torch.ones(2)}}])
def test_a_state_with_damaged_options_is_no_traceback(tmp_path, monkeypatch, pictures, capsys, damage):
    assert run(tmp_path, monkeypatch, scheduled(pictures, 5, 'multi-step')) == 0
    state = tmp_path / EXPERIMENT / 'training_states/5.state'
    save_file({**load_file(state), **damage}, state)
    capsys.readouterr()
    status = run(tmp_path, monkeypatch, scheduled(pictures, 9, 'multi-step'), '--auto_resume')
    output = capsys.readouterr().err
    assert 'Traceback' not in output
    assert status == (0 if 'train' in str(damage) else 1)


def test_a_dense_network_trains_with_the_same_guards(tmp_path, monkeypatch, pictures):
    options = training_options(pictures, ema_decay=0.5)
    del options['train']['stages']
    options['train']['total_iter'] = 5
    options.update(model_type='GuardedSRModel', network_g=NETWORKS['EDSR'])
    options['logger']['save_checkpoint_freq'] = 1
    assert run(tmp_path / 'whole', monkeypatch, options) == 0
    assert run(tmp_path / 'resumed', monkeypatch, options) == 0
    for name in ('models/net_g_5.pth', 'training_states/5.state', 'models/net_g_4.pth', 'training_states/4.state'):
        (tmp_path / 'resumed' / EXPERIMENT / name).unlink()
    assert run(tmp_path / 'resumed', monkeypatch, options, '--auto_resume') == 0
    for name in ('models/net_g_5.pth', 'training_states/5.state'):
        whole, resumed = (load_file(tmp_path / folder / EXPERIMENT / name) for folder in ('whole', 'resumed'))
        assert same(resumed, whole)
    net = basicsr_classpruning.load(tmp_path / 'whole' / EXPERIMENT / 'models/net_g_5.pth')
    assert net.options == NETWORKS['EDSR']


# -------------------------------------------------------------------- validation


def options_for_testing(pictures: Path, checkpoint: Path) -> dict:
    options = training_options(pictures)
    for key in ('train', 'logger'):
        del options[key]
    common = {'type': 'DegradedImageDataset', 'dataroot_gt': str(pictures), 'degradation': {'type': 'bicubic'}}
    options['datasets'] = {'test_1': {'name': 'one', **common}, 'test_2': {'name': 'two', **common}}
    options['path'] = {'pretrain_network_g': str(checkpoint)}
    options['val'] = {
        'save_img': True, 'budgets': [0.5], 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}},
    }  # fmt: skip
    return options


def test_testing_writes_figures_and_pictures(tmp_path, monkeypatch, pictures):
    net = classpruning('EDSR')
    save_file({'params': net.state_dict(), 'network_g': net.options}, tmp_path / 'net.pth')
    options = options_for_testing(pictures, tmp_path / 'net.pth')
    assert run(tmp_path, monkeypatch, options, command='test') == 0
    results = tmp_path / 'results/tiny'
    one, two = (json.loads(line) for line in (results / 'metrics.jsonl').read_text().splitlines())
    assert (one['dataset'], two['dataset']) == ('one', 'two')
    assert one['pictures'] == 4
    rows = {row['name']: row for row in one['rows']}
    assert list(rows) == ['routed', 'budget 0.5', '1:4', '2:4', '4:4']

    macs = net.macs(20, 24)  # of a picture of 40 by 48, halved
    assert one['macs_dense'] == pytest.approx(macs.dense)
    for k, candidate in enumerate(net.candidates):
        assert rows[candidate]['macs'] == pytest.approx(macs.candidates[k])
        assert rows[candidate]['saved'] == pytest.approx(1 - macs.candidates[k] / macs.dense)
        assert rows[candidate]['class_share'] == [float(k == j) for j in range(3)]
    assert rows['budget 0.5']['macs'] / macs.dense == pytest.approx(0.5, abs=0.25 / 4)
    assert sum(rows['routed']['class_share']) == pytest.approx(1)

    dataset = build_dataset({**options['datasets']['test_1'], 'phase': 'test', 'scale': 2})
    psnr = [
        calculate_psnr(
            tensor2img([net.restore_with(sample['lq'][None], '2:4')]), tensor2img([sample['gt']]), crop_border=2
        )
        for sample in (dataset[i] for i in range(4))
    ]
    assert rows['2:4']['metrics']['psnr'] == pytest.approx(sum(psnr) / 4)
    saved = sorted((results / 'visualization/one').iterdir())
    assert [path.name for path in saved] == [f'{i}_tiny.png' for i in range(4)]
    assert cv2.imread(str(saved[0])).shape == (40, 48, 3)


def test_pictures_without_ground_truth_are_restored_but_not_measured():
    net = classpruning('EDSR')
    batches = [{'lq': torch.rand(1, 3, 8, 8), 'lq_path': ['a.png']}]
    restored = []
    report = evaluate(net, batches, {}, name='x', iteration=1, on_result=lambda _, picture: restored.append(picture))
    assert report.rows[0].metrics == {}
    assert restored[0].shape == (16, 16, 3)
    with pytest.raises(UserError, match='data set x: has no clean pictures'):
        evaluate(net, batches, {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}, name='x', iteration=1)


def test_equal_pictures_are_counted_and_left_out_of_the_mean():
    net = classpruning('EDSR')
    lq = torch.rand(1, 3, 8, 8)
    exact = net.restore_with(lq, '4:4').clamp(0, 1)
    exact = (exact * 255).round() / 255
    batches = [{'lq': lq, 'gt': exact, 'lq_path': ['a.png']}, {'lq': lq, 'gt': 1 - exact, 'lq_path': ['b.png']}]
    psnr = {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}
    report = evaluate(net, batches, psnr, name='x', iteration=1)
    rows = {row.name: row for row in report.rows}
    assert rows['4:4'].equal == {'psnr': 1}
    other = calculate_psnr(tensor2img([exact]), tensor2img([1 - exact]), 2)
    assert rows['4:4'].metrics['psnr'] == pytest.approx(other)
    assert rows['1:4'].equal == {'psnr': 0}
    assert '1 equal' in report.table()
    only = evaluate(net, batches[:1], psnr, name='x', iteration=1)
    assert {row.name: row.metrics['psnr'] for row in only.rows}['4:4'] is None

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (report.to_json(), only.to_json()):
        json.loads(line, parse_constant=refuse)  # neither Infinity nor NaN


def test_a_dense_network_is_validated_over_finite_values_in_the_common_part(tmp_path, monkeypatch, capsys):
    (tmp_path / 'gt').mkdir()
    (tmp_path / 'lq').mkdir()
    for name, value in (('black', 0), ('grey', 90)):  # the network below outputs 0
        cv2.imwrite(str(tmp_path / f'gt/{name}.png'), np.full((15, 21, 3), value, np.uint8))
        cv2.imwrite(str(tmp_path / f'lq/{name}.png'), np.full((8, 11, 3), value, np.uint8))
    net = dense('EDSR')
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.mean.zero_()
    save_file({'params': net.state_dict()}, tmp_path / 'net.pth')
    options = options_for_testing(tmp_path, tmp_path / 'net.pth')
    roots = {'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq')}
    options['datasets'] = {
        'test_1': {'name': 'one', 'type': 'PairedImageDataset', **roots, 'io_backend': {'type': 'disk'}}
    }
    network = {**NETWORKS['EDSR'], 'rgb_mean': [0.0, 0.0, 0.0]}
    options.update(model_type='GuardedSRModel', network_g=network)
    del options['val']['budgets']
    assert run(tmp_path, monkeypatch, options, command='test') == 0
    log = capsys.readouterr().err
    wanted = calculate_psnr(np.zeros((15, 21, 3), np.uint8), np.full((15, 21, 3), 90, np.uint8), 2)
    assert f'psnr: {wanted:.4f}, 1 equal' in log
    assert cv2.imread(str(tmp_path / 'results/tiny/visualization/one/grey_tiny.png')).shape == (16, 22, 3)


def test_validation_leaves_training_as_it_was(tmp_path, monkeypatch, pictures, uninterrupted):
    options = long_options(pictures)
    del options['val'], options['datasets']['val']
    assert run(tmp_path, monkeypatch, options) == 0
    name = 'models/net_g_latest.pth'
    assert same(load_file(tmp_path / EXPERIMENT / name), load_file(uninterrupted / name))


@pytest.mark.parametrize('bad', ['missing', 'empty', 'broken'])
def test_pictures_that_are_not_there_or_do_not_decode(tmp_path, monkeypatch, pictures, capsys, bad):
    folder = tmp_path / 'bad'
    if bad != 'missing':
        folder.mkdir()
    if bad == 'broken':
        (folder / 'a.png').write_bytes(b'no picture')
    status = run(tmp_path, monkeypatch, training_options(folder))
    error = capsys.readouterr().err.splitlines()[-1]
    assert status in (1, 2)
    assert str(folder) in error
    assert 'Traceback' not in error


def test_a_log_that_cannot_be_written_stops_the_run_with_one_line(tmp_path, monkeypatch, pictures, capsys):
    options = training_options(pictures)
    original = ClassPruningModel.optimize_parameters

    def fill_the_disk(self, current_iter: int) -> None:
        original(self, current_iter)
        if current_iter == 2:
            log = next(handler for handler in logging.getLogger('basicsr').handlers if hasattr(handler, 'baseFilename'))
            log.setStream(open('/dev/full', 'w'))  # noqa: SIM115 — the handler closes it

    monkeypatch.setattr(ClassPruningModel, 'optimize_parameters', fill_the_disk)
    assert run(tmp_path, monkeypatch, options) == 1
    output = capsys.readouterr().err
    assert output.splitlines()[-1].endswith('.log: could not be written: No space left on device')
    assert 'Traceback' not in output
