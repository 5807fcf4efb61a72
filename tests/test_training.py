"""Training: every stage and network, resuming bit for bit, bad numbers, collapse, validation."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.metrics import calculate_psnr
from basicsr.models import build_model
from basicsr.utils import tensor2img
from tiny import NETWORKS, classpruning, dense, scale_of, training_options, write_yaml

import basicsr_classpruning
from basicsr_classpruning.checkpoint import load_file, save_file
from basicsr_classpruning.cli import main
from basicsr_classpruning.config.loading import parse_options
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.models.classpruning_model import ClassPruningModel
from basicsr_classpruning.models.collapse import CollapseWatch
from basicsr_classpruning.models.explosion import ExplosionWatch
from basicsr_classpruning.models.guarded_model import BadNumbers
from basicsr_classpruning.models.stages import Schedule
from basicsr_classpruning.models.validation import evaluate

BUDGET = {'budget_opt': {'type': 'ComputeBudgetLoss', 'target': 0.6}}
CLASS = {'class_opt': {'type': 'ClassificationLoss', 'loss_weight': 0.1}}
DISTILL = {'distill_opt': {'type': 'DistillationLoss'}}
EXPERIMENT = Path('experiments/tiny')


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict, *flags: str, command: str = 'train') -> int:
    """Runs ``classpruning`` in a folder."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    return main([command, '-opt', write_yaml(folder / f'{command}.yml', options), *flags])


def model_of(folder: Path, options: dict) -> ClassPruningModel:
    """The model of an options file, as the training loop builds it."""
    opt, _ = parse_options(str(folder), True, ['-opt', write_yaml(folder / 'train.yml', options)])
    return build_model(opt)


def batch(name: str = 'EDSR', images: int = 3, side: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(images, 3, side * scale_of(name), side * scale_of(name), generator=generator)
    return {'lq': torch.rand(images, 3, side, side, generator=generator), 'gt': gt}


def step(model: ClassPruningModel, iteration: int, data: dict[str, torch.Tensor] | None = None) -> set[str]:
    """One training step; returns which of base, classifier and price it changed."""
    before = deepcopy(dict(model.net_g.named_parameters()))
    model.feed_data(data or batch())
    model.optimize_parameters(iteration)
    return {
        name.partition('.')[0]
        for name, parameter in model.net_g.named_parameters()
        if not torch.equal(parameter, before[name])
    }


# -------------------------------------------------------------------------- steps


@pytest.mark.parametrize('name', NETWORKS)
def test_one_step_changes_the_weights_of_every_network(tmp_path, pictures, name):
    model = model_of(tmp_path, training_options(pictures, name))
    assert step(model, 1, batch(name)) == {'base'}
    assert model.log_dict['l_pix'] > 0


@pytest.mark.parametrize(
    ('iteration', 'changed', 'terms'),
    [
        (1, {'base'}, {'l_pix', 'l_distill'}),
        (4, {'classifier', 'log_price'}, {'l_difficulty', 'l_budget', 'l_class'}),
        (7, {'base', 'classifier', 'log_price'}, {'l_pix', 'l_distill', 'l_difficulty', 'l_budget', 'l_class'}),
    ],
)
def test_each_stage_trains_its_part(tmp_path, pictures, iteration, changed, terms):
    model = model_of(tmp_path, training_options(pictures, **BUDGET, **CLASS, **DISTILL))
    assert step(model, iteration) == changed
    assert {key for key in model.log_dict if key.startswith('l_')} == terms


def test_the_price_rests_without_a_budget(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures))
    assert step(model, 4) == {'classifier'}


def test_a_schedule_gives_each_iteration_its_stage():
    schedule = Schedule.from_options({'stages': {'supernet': 2, 'joint': 1}, 'total_iter': 3})
    assert [schedule.stage(i) for i in (1, 2, 3, 4)] == ['supernet', 'supernet', 'joint', 'joint']
    assert Schedule.from_options({'total_iter': 5}).stage(5) == 'supernet'


def test_batches_smaller_than_the_candidates_use_all_in_turn(tmp_path, pictures):
    options = training_options(pictures)
    model = model_of(tmp_path, {**options, 'train': {**options['train'], 'stages': {'supernet': 9}}})
    used = []
    for iteration in (1, 2, 3):
        step(model, iteration, batch(images=2))
        used.append(tuple(model.classes.tolist()))
    assert used == [(1, 2), (2, 0), (0, 1)]


def test_own_weights_train_and_stay_sparse(tmp_path, pictures):
    options = training_options(pictures)
    options['network_g']['weights'] = 'own'
    model = model_of(tmp_path, options)
    for iteration in (1, 2):
        step(model, iteration)
    layer = model.net_g.base.body[0].conv1
    assert [(weight != 0).float().mean().item() for weight in layer.weights] == [0.25, 0.5]


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_mixed_precision(tmp_path, pictures, amp):
    model = model_of(tmp_path, training_options(pictures, amp=amp, **BUDGET))
    for iteration in (1, 4, 7):
        assert any(step(model, iteration) for _ in range(5))  # fp16 finds its scale by overflowing
        assert all(torch.isfinite(parameter).all() for parameter in model.net_g.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.net_g.parameters())


def test_fp16_decays_pruned_weights_as_fp32_does(tmp_path, pictures):
    gradients = []
    for amp in (None, 'fp16'):
        model = model_of(tmp_path, training_options(pictures, amp=amp, srste_decay=1.0))
        step(model, 1)
        gradients.append(model.net_g.base.body[0].conv1.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=1e-2)
    assert gradients[0].abs().max() > 0.01


def test_the_gradient_is_clipped(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures, grad_clip=1e-3))
    step(model, 1)
    gradients = [parameter.grad.flatten() for parameter in model.net_g.parameters() if parameter.grad is not None]
    assert float(torch.cat(gradients).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_averaged_weights_follow_with_the_masks_in_use(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures, ema_decay=0.9, mask_interval=1))
    before = deepcopy(model.net_g_ema.state_dict())
    step(model, 1)
    now, averaged = model.net_g.state_dict(), model.net_g_ema.state_dict()
    for key, value in averaged.items():
        if value.dtype == torch.uint8:
            assert torch.equal(value, now[key])
        else:
            torch.testing.assert_close(value, 0.9 * before[key] + 0.1 * now[key])


def test_masks_are_renewed_at_their_interval(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures, mask_interval=2))
    layer = model.net_g.base.body[0].conv1
    stale = layer.ranks.clone()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(1))
    step(model, 1)
    assert torch.equal(layer.ranks, stale)
    step(model, 2)
    assert not torch.equal(layer.ranks, stale)


def test_a_dense_checkpoint_starts_a_training(tmp_path, pictures):
    plain = dense('EDSR')
    save_file({'params': plain.state_dict()}, tmp_path / 'dense.pth')
    options = {**training_options(pictures), 'path': {'pretrain_network_g': str(tmp_path / 'dense.pth')}}
    model = model_of(tmp_path, options)
    assert same(dict(model.net_g.eval().frozen_dense().state_dict()), dict(plain.state_dict()))


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


# ------------------------------------------------------------------- bad numbers


def test_an_infinite_loss_stops_and_names_iteration_term_and_candidates(tmp_path, monkeypatch, pictures, capsys):
    options = training_options(pictures, pixel_opt={'type': 'L1Loss', 'loss_weight': 1e39})
    options['logger']['save_checkpoint_freq'] = 1
    assert run(tmp_path, monkeypatch, options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'iteration 1: loss term l_pix is not finite' in error
    assert 'candidates 1:4, 2:4, 4:4' in error
    assert not list((tmp_path / EXPERIMENT).rglob('*.pth'))


def test_bad_steps_are_skipped_and_change_nothing(tmp_path, monkeypatch, pictures):
    broken = {'type': 'L1Loss', 'loss_weight': 1e39}
    options = training_options(pictures, on_nan='skip', pixel_opt=broken, ema_decay=0.5)
    options['train']['stages'] = {'supernet': 3}
    model = model_of(tmp_path, options)
    before = deepcopy(model.net_g.state_dict())
    assert step(model, 1) == set()
    assert run(tmp_path, monkeypatch, options) == 0
    content = load_file(tmp_path / EXPERIMENT / 'models/net_g_latest.pth')
    assert same(content['params'], dict(before))
    assert same(content['params_ema'], dict(before))


def test_skipping_ends_when_every_step_is_bad(tmp_path, pictures):
    broken = {'type': 'L1Loss', 'loss_weight': 1e39}
    options = training_options(pictures, on_nan='skip', pixel_opt=broken)
    options['train']['stages'] = {'supernet': 30}
    model = model_of(tmp_path, options)
    for iteration in range(1, 21):
        step(model, iteration)
    with pytest.raises(BadNumbers, match=r'iteration 21: .* the 21th step in a row'):
        step(model, 21)


def test_a_gradient_that_is_no_number_is_found_before_it_is_used(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures))
    before = deepcopy(model.net_g.state_dict())
    model.net_g.base.conv_last.weight.register_hook(lambda gradient: gradient * float('nan'))
    with pytest.raises(BadNumbers, match='iteration 1: the gradient of l_pix is not finite'):
        step(model, 1)
    assert same(dict(model.net_g.state_dict()), dict(before))


def test_an_exploded_loss_stops_the_run_although_it_is_a_number(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures))
    step(model, 1)
    with torch.no_grad():
        for parameter in model.net_g.base.parameters():
            parameter.mul_(1e3)
    with pytest.raises(BadNumbers, match=r'iteration 2: loss term l_pix \(.*\) has exploded, from 0\.\d+'):
        step(model, 2)


def test_the_watch_takes_other_terms_for_a_new_level():
    watch = ExplosionWatch(memory=2, limit=100)
    watch.update({'a': 0.1, 'b': 0.1})
    assert watch.exploded({'a': 0.1, 'b': 30.0}) == []  # other terms than before
    watch.update({'a': 0.1, 'b': 0.1})
    assert watch.exploded({'a': 0.1, 'b': 19.0}) == []
    assert watch.exploded({'a': 0.1, 'b': 30.0}) == ['b']
    resumed = ExplosionWatch(memory=2, limit=100)
    resumed.load_state_dict(watch.state_dict())
    assert resumed.exploded({'a': 30.0, 'b': 0.1}) == ['a']
    assert watch.exploded({'c': 1e9}) == []


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures))
    (tmp_path / 'models').mkdir()
    model.opt['path']['models'] = str(tmp_path / 'models')
    with torch.no_grad():
        model.net_g.base.conv_last.bias[0] = float('inf')
    with pytest.raises(BadNumbers, match=r'iteration 7: the weight base\.conv_last\.bias is not finite'):
        model.save_network(model.net_g, 'net_g', 7)
    assert not list((tmp_path / 'models').iterdir())


# ---------------------------------------------------------------------- collapse


def test_the_watch_sees_a_collapse_after_long_enough():
    watch = CollapseWatch(3, memory=5)
    for _ in range(19):
        watch.update(torch.tensor([1.0, 0.0, 0.0]))
    assert not watch.collapsed
    for _ in range(3):
        watch.update(torch.tensor([1.0, 0.0, 0.0]))
    assert watch.collapsed
    watch.update(torch.tensor([0.5, 0.5, 0.0]))
    assert not watch.collapsed
    watch.restart()
    assert watch.shares.tolist() == pytest.approx([1 / 3] * 3)


def test_a_watch_over_one_class_never_sees_one():
    watch = CollapseWatch(1, memory=1)
    for _ in range(9):
        watch.update(torch.ones(1))
    assert not watch.collapsed


def collapse(model: ClassPruningModel, steps: int) -> None:
    """Trains, until the first recovery, with a price at which every image goes to the cheapest class."""
    model.watch = CollapseWatch(3, memory=2)
    before = model.recoveries
    for _ in range(steps):
        if model.recoveries == before:
            model.net_g.log_price.data.fill_(9.0)
        step(model, 4)


def test_a_collapse_stops_the_run(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures, on_collapse='stop', **BUDGET))
    with pytest.raises(UserError, match=r'iteration 4: the classifier has collapsed to one class \(1:4 9\d'):
        collapse(model, 20)


def test_a_collapse_is_recovered_from(tmp_path, pictures):
    options = training_options(pictures, on_collapse='recover', **BUDGET)
    options['train']['scheduler'] = {'type': 'CosineAnnealingRestartLR', 'periods': [9], 'eta_min': 1e-9}
    model = model_of(tmp_path, options)
    rate = model.optimizer_g.param_groups[1]['initial_lr']
    collapse(model, 13)
    assert model.recoveries == 1
    assert float(model.net_g.log_price.detach()) < 0
    assert not model.watch.collapsed
    # It learns more slowly from now on, whatever the scheduler.
    assert model.optimizer_g.param_groups[1]['lr'] == pytest.approx(0.3 * rate)
    model.update_learning_rate(2)
    assert rate * 0.2 < model.optimizer_g.param_groups[1]['lr'] < rate * 0.3
    assert model.optimizer_g.param_groups[0]['lr'] > rate * 0.9


def test_recovering_ends_after_three_times(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures, on_collapse='recover', **BUDGET))
    model.recoveries = 3
    with pytest.raises(UserError, match='training stopped'):
        collapse(model, 20)


def test_a_collapse_may_be_only_warned_of(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures, on_collapse='warn', **BUDGET))
    collapse(model, 20)
    assert model.recoveries == 0
    assert model.watch.steps < 10  # it began anew after the warning


def test_a_budget_that_asks_for_one_class_is_no_collapse(tmp_path, pictures):
    budget = {'budget_opt': {'type': 'ComputeBudgetLoss', 'target': 0.05}}
    model = model_of(tmp_path, training_options(pictures, on_collapse='stop', **budget))
    collapse(model, 20)
    assert model.watch.collapsed


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
