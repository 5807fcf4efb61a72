"""Training against a discriminator: what learns in which stage, as BasicSR's models do it, and resumed bit for bit."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from basicsr.models import build_model
from tiny import NETWORKS, same, training_options
from training import BUDGET, EXPERIMENT, batch, model_of, run, step
from whole_options import changed, problem

import basicsr_classpruning
from basicsr_classpruning.models.guarded_model import BadNumbers
from basicsr_classpruning.untrusted.files import load_file

DISCRIMINATOR = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 8}


def gan_options(pictures: Path, **train) -> dict:
    options = training_options(
        pictures, gan_opt={'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
        optim_d={'type': 'Adam', 'lr': 1e-3}, **train,
    )  # fmt: skip
    return {**options, 'model_type': 'ClassPruningGANModel', 'network_d': dict(DISCRIMINATOR)}


def discriminator_of(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.net_d.named_parameters()}


@pytest.mark.parametrize('adversary', ['standard', 'relativistic'])
@pytest.mark.parametrize('split', ['turn', 'none'])
def test_each_stage_trains_its_part(tmp_path, pictures, adversary, split):
    model = model_of(tmp_path, gan_options(pictures, adversary=adversary, split=split, **BUDGET))
    for iteration, base, judged in ((1, True, True), (4, False, False), (7, True, True)):
        before = discriminator_of(model)
        assert ('base' in step(model, iteration, batch(side=16))) == base
        terms = {'l_gan', 'l_d_real', 'l_d_fake'}
        assert terms & set(model.log_dict) == (terms if judged else set())
        assert same(discriminator_of(model), before) != judged


def test_the_discriminator_rests_where_every_image_takes_the_bypass(tmp_path, pictures):
    options = gan_options(pictures, explore=0.0)
    options['network_g']['candidates'] = ['0:4', '1:4', '4:4']
    model = model_of(tmp_path, options)
    for iteration, log_price, judged in ((1, 0.0, True), (7, 9.0, False), (8, -9.0, True)):
        model.net_g.log_price.data.fill_(log_price)
        before = discriminator_of(model)
        assert ('base' in step(model, iteration, batch(side=16))) == judged
        assert same(discriminator_of(model), before) != judged


@pytest.mark.parametrize(('adversary', 'theirs'), [('standard', 'SRGANModel'), ('relativistic', 'ESRGANModel')])
def test_the_dense_network_learns_what_it_learns_in_basicsr(tmp_path, pictures, adversary, theirs):
    options = gan_options(pictures, adversary=adversary, srste_decay=0.0)
    options['network_g']['candidates'] = ['4:4']
    ours = model_of(tmp_path, options)
    plain = {**deepcopy(options), 'model_type': theirs, 'network_g': NETWORKS['EDSR'], 'is_train': True}
    plain.update(dist=False, rank=0, world_size=1, path={})
    for key in ('stages', 'adversary', 'srste_decay'):
        del plain['train'][key]
    reference = build_model(plain)
    reference.net_g.load_state_dict(ours.net_g.eval().dense.net.state_dict())
    ours.net_g.train()
    reference.net_d.load_state_dict(ours.net_d.state_dict())
    for iteration in (1, 2, 3):
        data = batch(side=16)
        ours.feed_data(data)
        ours.optimize_parameters(iteration)
        reference.feed_data(data)
        reference.optimize_parameters(iteration)
        assert ours.log_dict['l_gan'] == pytest.approx(reference.log_dict['l_g_gan'], rel=1e-4)
        for name in ('l_d_real', 'l_d_fake'):
            assert ours.log_dict[name] == pytest.approx(reference.log_dict[name], rel=1e-4)
    for name, value in reference.net_d.state_dict().items():
        torch.testing.assert_close(ours.net_d.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    trained = dict(ours.net_g.eval().dense.net.state_dict())
    for name, value in reference.net_g.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-4)


def test_a_run_leaves_both_networks_and_goes_on_bit_for_bit(tmp_path, monkeypatch, pictures):
    options = gan_options(pictures, ema_decay=0.9, adversary='relativistic', **BUDGET)
    options['logger']['save_checkpoint_freq'] = 1
    for folder in ('whole', 'resumed'):
        assert run(tmp_path / folder, monkeypatch, options) == 0
    for path in (tmp_path / 'resumed' / EXPERIMENT).glob('*/*'):
        if path.name.endswith(('_8.pth', '_9.pth', '8.state', '9.state')):
            path.unlink()
    (tmp_path / 'resumed' / EXPERIMENT / 'models/net_d_7.pth').write_bytes(b'cut off')  # falls back to 6
    assert run(tmp_path / 'resumed', monkeypatch, options, '--auto_resume') == 0
    for name in ('models/net_g_9.pth', 'models/net_d_9.pth', 'training_states/9.state'):
        whole, resumed = (load_file(tmp_path / folder / EXPERIMENT / name) for folder in ('whole', 'resumed'))
        assert same(resumed, whole), name
    assert load_file(tmp_path / 'whole' / EXPERIMENT / 'models/net_d_9.pth')['network_g'] == DISCRIMINATOR
    net = basicsr_classpruning.load(tmp_path / 'whole' / EXPERIMENT / 'models/net_g_latest.pth')
    assert net.candidates == ('1:4', '2:4', '4:4')


def test_a_discriminator_to_start_from_is_loaded(tmp_path, pictures):
    first = model_of(tmp_path, gan_options(pictures))
    torch.save({'params': first.net_d.state_dict()}, tmp_path / 'd.pth')
    options = {**gan_options(pictures), 'manual_seed': 5, 'path': {'pretrain_network_d': str(tmp_path / 'd.pth')}}
    assert same(discriminator_of(model_of(tmp_path, options)), discriminator_of(first))


def test_a_discriminator_that_gives_no_numbers_stops_the_run(tmp_path, pictures):
    model = model_of(tmp_path, gan_options(pictures))
    with torch.no_grad():
        model.net_d.conv9.bias.fill_(float('nan'))
    with pytest.raises(BadNumbers, match='iteration 1: loss term l_gan is not finite'):
        step(model, 1, batch(side=16))


@pytest.mark.parametrize('model_type', ['SRGANModel', 'ESRGANModel', 'RealESRNetModel', 'RealESRGANModel'])
def test_basicsr_models_refuse_a_classpruning_network(model_type):
    assert problem(changed('model_type', model_type)).startswith(
        f"model_type: '{model_type}' is not allowed with a ClassPruning network; ClassPruningModel"
    )


@pytest.mark.parametrize(
    ('key', 'value', 'wanted'),
    [
        ('network_d', ..., 'network_d: is missing'),
        ('network_d.num_feet', 8, 'network_d.num_feet: unknown key of UNetDiscriminatorSN'),
        ('train.gan_opt', ..., 'train.gan_opt: is missing'),
        ('train.gan_opt.gan_type', 'vanila', "train.gan_opt.gan_type: 'vanila' is not allowed"),
        ('train.optim_d.type', 'SGD', "train.optim_d.type: 'SGD' is not allowed; Adam"),
        ('train.adversary', 'nice', "train.adversary: 'nice' is not allowed"),
    ],
)
def test_wrong_options_are_named(key, value, wanted):
    text = changed('model_type', 'ClassPruningGANModel')
    text['network_d'] = dict(DISCRIMINATOR)
    text['train'].update(gan_opt={'gan_type': 'vanilla'}, optim_d={'type': 'Adam', 'lr': 1e-3})
    *path, last = key.split('.')
    section = text
    for part in path:
        section = section[part]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    assert problem(text).startswith(wanted)
