"""Training steps: every stage and network, bad numbers, collapse."""

from __future__ import annotations

import logging
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from tiny import CANDIDATES, NETWORKS, dense, same, training_options
from torch import nn
from training import BUDGET, CLASS, DISTILL, EXPERIMENT, batch, model_of, run, step

from basicsr_classpruning.config.sections import filled_in
from basicsr_classpruning.config.training import ClassPruningTrain
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.models.classpruning_model import ClassPruningModel
from basicsr_classpruning.models.collapse import CollapseWatch
from basicsr_classpruning.models.explosion import ExplosionWatch
from basicsr_classpruning.models.guarded_model import BadNumbers
from basicsr_classpruning.models.stages import RoundRobin, Sandwich, Schedule
from basicsr_classpruning.routing import ladder
from basicsr_classpruning.routing.ladder import Candidate
from basicsr_classpruning.safe_files import save_file
from basicsr_classpruning.untrusted.files import load_file

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
    schedule = Schedule(train_section(stages={'supernet': 2, 'joint': 1}))
    assert [schedule.stage(i).name for i in (1, 2, 3, 4)] == ['supernet', 'supernet', 'joint', 'joint']
    assert Schedule(train_section(total_iter=5)).stage(5).name == 'supernet'


def test_the_split_names_the_way_of_dealing():
    stages = {split: Schedule(train_section(total_iter=5, split=split)).stage(1) for split in ('turn', 'none')}
    assert isinstance(stages['turn'], RoundRobin)
    assert isinstance(stages['none'], Sandwich)


def train_section(**options) -> dict:
    section = {**training_options(Path('any'))['train'], **options}
    return filled_in(ClassPruningTrain, {k: v for k, v in section.items() if k != 'stages' or k in options}, 'train')


def test_a_model_fills_in_what_another_loader_left_out(tmp_path, pictures):
    options = training_options(pictures)
    filled = model_of(tmp_path, options)
    raw = {**options, 'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'path': {}}
    model = ClassPruningModel(deepcopy(raw))
    assert {k: v for k, v in model.opt['train'].items() if k not in ('optim_g', 'scheduler')} == {
        k: v for k, v in filled.opt['train'].items() if k not in ('optim_g', 'scheduler')
    }
    raw['train'] = {**options['train'], 'explore': 2.0}
    with pytest.raises(UsageError, match=r'train\.explore: 2\.0 is not allowed'):
        ClassPruningModel(raw)


def test_batches_smaller_than_the_candidates_use_all_in_turn(tmp_path, pictures):
    options = training_options(pictures)
    model = model_of(tmp_path, {**options, 'train': {**options['train'], 'stages': {'supernet': 9}}})
    used = []
    for iteration in (1, 2, 3):
        step(model, iteration, batch(images=2))
        used.append(tuple(model.deal.candidates.tolist()))
    assert used == [(1, 2), (2, 0), (0, 1)]


def test_without_a_split_every_candidate_and_the_classifier_learn_from_every_image(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures, split='none', **BUDGET, **CLASS, **DISTILL))
    data, net = batch(images=2), model.net_g
    with torch.no_grad():
        outputs = [net.restore_with(data['lq'], candidate) for candidate in range(3)]
        predicted = net.error_map(data['lq'])  # one part for each image of 8×8 pixels
        squares = [(output.clamp(0, 1) - data['gt']).square().mean((1, 2, 3)) for output in outputs]
        errors = torch.stack(squares, dim=1)[:, :, None, None]
        expected = {
            'l_pix': sum((output - data['gt']).abs().mean() for output in outputs) / 3,
            'l_distill': sum((output - outputs[-1]).abs().mean() for output in outputs) / 3,
            'l_difficulty': model.losses['difficulty'](predicted, errors),
        }
    assert step(model, 1, data) == {'base', 'classifier', 'log_price'}
    assert model.deal.candidates.tolist() == [0, 0, 1, 1, 2, 2]
    for name, value in expected.items():
        assert model.log_dict[name] == pytest.approx(float(value), rel=1e-4), name
    assert {'l_budget', 'l_class', 'train/average_macs'} < set(model.log_dict)


def test_the_densest_candidate_may_learn_from_more_images(tmp_path, pictures):
    model = model_of(tmp_path, training_options(pictures, split='none', sparse_batch=1, **DISTILL))
    data, net = batch(images=3), model.net_g
    with torch.no_grad():
        sparse = [net.restore_with(data['lq'][:1], candidate) for candidate in range(2)]
        densest = net.restore_with(data['lq'], 2)
        all_images = [(output - data['gt'][:1]).abs().mean((1, 2, 3)) for output in sparse]
        all_images.append((densest - data['gt']).abs().mean((1, 2, 3)))
        squares = [(output.clamp(0, 1) - data['gt'][:1]).square().mean() for output in (*sparse, densest[:1])]
    step(model, 1, data)
    assert model.deal.candidates.tolist() == [0, 1, 2, 2, 2]
    assert model.log_dict['l_pix'] == pytest.approx(float(torch.cat(all_images).mean()), rel=1e-4)
    pulled = sum((output - densest[:1]).abs().mean() for output in sparse) / 5
    assert model.log_dict['l_distill'] == pytest.approx(float(pulled), rel=1e-4)
    assert torch.equal(model.memory.images[-1:], data['lq'][:1].half())
    torch.testing.assert_close(model.memory.errors[-1].flatten(), torch.stack(squares), rtol=1e-4, atol=1e-7)


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


@pytest.mark.parametrize(('interval', 'weights'), [(1, [1.0]), (0, [0.81, 0.9, 1.0])])
def test_averaged_weights_are_those_of_the_steps_with_the_masks_in_use(tmp_path, pictures, interval, weights):
    options = training_options(pictures, ema_decay=0.9, mask_interval=interval)
    model = model_of(tmp_path, options)
    seen = []
    for iteration in (1, 2, 3):
        step(model, iteration)
        seen.append(deepcopy(model.net_g.state_dict()))
    for key, value in model.net_g_ema.state_dict().items():
        if value.dtype == torch.uint8:
            assert torch.equal(value, seen[-1][key])
        else:  # nothing is left of the weights before the first step, nor of those under other masks
            held = seen[-len(weights) :]
            average = sum(weight * state[key] for weight, state in zip(weights, held)) / sum(weights)
            torch.testing.assert_close(value, average)


def test_masks_stay_in_the_last_third_and_what_comes_after_is_averaged(tmp_path, pictures):
    options = training_options(pictures, ema_decay=0.9, mask_interval=2)
    options['train']['stages'] = {'supernet': 9}
    model = model_of(tmp_path, options)
    layer = model.net_g.base.body[0].conv1
    renewed, seen = [], []
    for iteration in range(1, 10):
        with torch.no_grad():
            layer.weight.copy_(layer.weight.flip(1))
        before = layer.ranks.clone()
        step(model, iteration)
        renewed.append(not torch.equal(layer.ranks, before))
        seen.append(layer.weight.detach().clone())
    assert [iteration for iteration, new in enumerate(renewed, 1) if new] == [2, 4, 6]
    weights = [0.9**3, 0.81, 0.9, 1.0]
    average = sum(weight * state for weight, state in zip(weights, seen[5:])) / sum(weights)
    torch.testing.assert_close(model.net_g_ema.base.body[0].conv1.weight, average)


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
    assert same(dict(model.net_g.eval().dense.net.state_dict()), dict(plain.state_dict()))


# ------------------------------------------------------------------------ bypass


def bypass_options(pictures: Path, name: str = 'EDSR', weights: str = 'own', **train) -> dict:
    options = training_options(pictures, name, **BUDGET, **CLASS, **DISTILL, **train)
    options['network_g'].update(candidates=['0:4', *CANDIDATES], weights=weights)
    return options


@pytest.mark.parametrize('weights', ['own', 'shared'])
@pytest.mark.parametrize('dealt', [{'split': 'turn'}, {'split': 'none'}, {'split': 'none', 'sparse_batch': 1}])
def test_every_stage_trains_beside_a_bypass(tmp_path, pictures, weights, dealt):
    model = model_of(tmp_path, bypass_options(pictures, weights=weights, **dealt, explore=0.5))
    bypass = model.net_g.others['0:4'].weight.clone()
    for iteration in range(1, 7):
        changed = step(model, iteration)
        assert ('base' in changed) == (iteration <= 3)
        assert ('classifier' in changed) == (iteration > 3 or dealt['split'] == 'none')
        if model.deal is not None:
            assert 0 not in model.deal.candidates
    for iteration in (7, 8):
        assert 'classifier' in step(model, iteration)
        assert model.deal is None or 0 not in model.deal.candidates
    assert model.memory.errors.shape[1] == 4
    assert torch.equal(model.net_g.others['0:4'].weight, bypass)


def test_the_bypass_has_no_turn_and_every_other_candidate_has(tmp_path, pictures):
    model = model_of(tmp_path, bypass_options(pictures))
    used = []
    for iteration in (1, 2, 3):
        step(model, iteration, batch(images=2))
        used.append(tuple(model.deal.candidates.tolist()))
    assert used == [(2, 3), (3, 1), (1, 2)]


@pytest.mark.parametrize(('dealt', 'count'), [({'split': 'none'}, 3), ({'split': 'none', 'sparse_batch': 1}, 1)])
def test_errors_of_the_bypass_are_measured_beside_those_of_the_outputs(tmp_path, pictures, dealt, count):
    model = model_of(tmp_path, bypass_options(pictures, **dealt))
    data, net = batch(images=3), model.net_g
    with torch.no_grad():
        outputs = [net.restore_with(data['lq'][:count], candidate).clamp(0, 1) for candidate in net.candidates]
        wanted = [(output - data['gt'][:count]).square().mean((1, 2, 3)) for output in outputs]
    step(model, 1, data)
    found = model.memory.errors[-count:].flatten(1)
    torch.testing.assert_close(found, torch.stack(wanted, dim=1), rtol=1e-4, atol=1e-7)


def test_a_joint_step_whose_images_all_take_the_bypass_trains_the_classifier_only(tmp_path, pictures):
    model = model_of(tmp_path, bypass_options(pictures, explore=0.0))
    step(model, 4)
    model.net_g.log_price.data.fill_(9.0)  # at which every image goes to the sparsest class
    assert 'base' not in step(model, 7)
    assert model.deal is None
    assert model.log_dict['l_difficulty'] != 0
    model.net_g.log_price.data.fill_(-9.0)
    assert 'base' in step(model, 8)


def test_bf16_does_not_round_what_the_bypass_leaves(tmp_path, pictures):
    model = model_of(tmp_path, bypass_options(pictures, 'DnCNN', amp='bf16', split='none'))
    model.amp_type = torch.bfloat16  # on processors that emulate it, too
    clean = batch('DnCNN')['gt']
    step(model, 1, {'lq': clean, 'gt': clean})
    assert not model.memory.errors[:, 0].any()


def test_a_candidate_with_weights_of_its_own_learns(tmp_path, pictures, monkeypatch):
    @dataclass(frozen=True)
    class Affine(Candidate):
        name, density = 'affine', 0.01

        @classmethod
        def parse(cls, text):
            return cls() if text == 'affine' else None

        def build(self, dense):
            return nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))

    monkeypatch.setattr(ladder, '_KINDS', [*ladder._KINDS, Affine])
    options = training_options(pictures)
    options['network_g']['candidates'] = ['affine', *CANDIDATES]
    model = ClassPruningModel({**options, 'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'path': {}})
    assert {'others', 'base'} <= set().union(*(step(model, iteration) for iteration in (1, 2)))


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


def test_a_term_below_0_is_judged_by_its_size():
    watch = ExplosionWatch(memory=2, limit=100)
    assert watch.exploded({'a': 0.01, 'b': -1.3}) == []
    watch.update({'a': 0.01, 'b': -1.3})  # the logarithm of an error
    assert watch.exploded({'a': 0.02, 'b': -1.2}) == []
    assert watch.exploded({'a': 200.0, 'b': -1.2}) == ['a']


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
    """Trains, until the first recovery, with a price at which every image goes to the sparsest class."""
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
    assert model.optimizer_g.param_groups[0]['lr'] > model.optimizer_g.param_groups[0]['initial_lr'] * 0.9


def test_a_classifier_that_starts_afresh_is_a_new_one(tmp_path, pictures):
    net = model_of(tmp_path, training_options(pictures)).net_g
    with torch.no_grad():
        for parameter in net.classifier.parameters():
            parameter.add_(1.0)
    net.restart_routing()
    new = build_network(net.options)
    assert {name for name, value in net.classifier.named_parameters() if not value.any()} == {
        name for name, value in new.classifier.named_parameters() if not value.any()
    }
    assert float(net.log_price) == float(new.log_price)


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


# --------------------------------------------------------------- starting from another network


@pytest.mark.parametrize('model_type', ['ClassPruningModel', 'GuardedSRModel'])
@pytest.mark.parametrize('kind', ['dense', 'pruned'])
def test_a_network_of_another_scale_starts_a_training(tmp_path, pictures, monkeypatch, caplog, model_type, kind):
    other = {**NETWORKS['EDSR'], 'upscale': 4}
    torch.manual_seed(3)
    net = build_network(other)
    if kind == 'pruned':
        if model_type == 'GuardedSRModel':
            pytest.skip('a dense network does not start from a pruned one')
        net = build_network({'type': 'ClassPruning', 'base': other, 'candidates': CANDIDATES, 'weights': 'own'})
    save_file({'params': net.state_dict()}, tmp_path / 'x4.pth')
    options = training_options(pictures)
    if model_type == 'GuardedSRModel':
        options.update(model_type=model_type, network_g=dict(NETWORKS['EDSR']))
        options['train'] = {k: v for k, v in options['train'].items() if k in ('optim_g', 'scheduler', 'pixel_opt')}
        options['train']['total_iter'] = 4
    else:
        options['network_g']['weights'] = 'own'
    options['path'] = {'pretrain_network_g': str(tmp_path / 'x4.pth')}
    with pytest.raises(UserError, match=r'weights do not fit the network'):
        model_of(tmp_path, options)
    options['path']['strict_load_g'] = False
    monkeypatch.setattr(logging.getLogger('basicsr'), 'propagate', True)
    model = model_of(tmp_path, options)
    prefix = 'base.' if model_type == 'ClassPruningModel' else ''
    (line,) = {message for message in caplog.messages if 'weights loaded' in message}  # the averaged weights', too
    assert re.search(r'as they were: .*upsample\.0\.weight \(64, 16, 3, 3\)|not used: .*upsample\.2\.weight', line)
    assert '\n' not in line
    found = model.net_g.state_dict()
    wanted = net.state_dict()[f'{prefix * (kind == "pruned")}conv_first.weight']
    assert torch.equal(found[f'{prefix}conv_first.weight'], wanted)
    step(model, 1)
    save_file({'params': {'x': torch.ones(2)}}, tmp_path / 'x4.pth')
    with pytest.raises(UserError, match='none of them has the name and shape'):
        model_of(tmp_path, options)


@pytest.mark.parametrize('name', ['EDSR', 'ECBSR', 'RRDBNet'])
def test_a_dense_training_starts_from_what_other_programs_write(tmp_path, pictures, name):
    plain = dense(name)
    save_file({'state_dict': {f'net_g.{key}': value for key, value in plain.state_dict().items()}}, tmp_path / 'x.pth')
    options = training_options(pictures, name)
    options.update(model_type='GuardedSRModel', network_g=dict(NETWORKS[name]))
    options['train'] = {k: v for k, v in options['train'].items() if k in ('optim_g', 'scheduler', 'pixel_opt')}
    options['train']['total_iter'] = 4
    options['path'] = {'pretrain_network_g': str(tmp_path / 'x.pth')}
    assert same(model_of(tmp_path, options).net_g.state_dict(), plain.state_dict())
