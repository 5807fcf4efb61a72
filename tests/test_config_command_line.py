"""parse_options in the place of BasicSR's: the same command line and result, and no way to run code."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from basicsr.utils import dist_util
from basicsr.utils.options import dict2str

import basicsr_classpruning  # noqa: F401  # registers the networks, losses and models
from basicsr_classpruning.config import parse_options
from basicsr_classpruning.errors import UsageError

TRAIN = """
name: trial
model_type: SRModel
scale: 2
num_gpu: auto
manual_seed: 3
datasets:
  train: {name: a, type: PairedImageDataset, dataroot_gt: gt, dataroot_lq: lq, gt_size: 96, batch_size_per_gpu: 8,
          num_worker_per_gpu: 2}
  val_1: {name: b, type: PairedImageDataset, dataroot_gt: ~/gt, dataroot_lq: lq}
network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2}
path: {pretrain_network_g: ~/dense.pth}
train:
  total_iter: 10
  ema_decay: 0.9
  optim_g: {type: Adam, lr: 1e-4}
  scheduler: {type: MultiStepLR, milestones: [10]}
  pixel_opt: {type: L1Loss}
val: {val_freq: 5000}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, also the home folder, with the data that the options name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for name in ('gt', 'lq'):
        (tmp_path / name).mkdir()
    (tmp_path / 'dense.pth').touch()
    (tmp_path / 'o.yml').write_text(TRAIN)
    return tmp_path


def parse(*args, is_train=True):
    return parse_options(os.getcwd(), is_train, ['-opt', 'o.yml', *args])[0]


def refused(*args, is_train=True):
    with pytest.raises(UsageError) as caught:
        parse(*args, is_train=is_train)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_result_is_what_basicsr_expects(folder):
    opt, args = parse_options('/root_path', True, ['-opt', 'o.yml', '--auto_resume', '--local-rank', '1'])
    assert (args.opt, args.local_rank, args.launcher) == ('o.yml', 1, 'none')
    assert (opt['dist'], opt['rank'], opt['world_size'], opt['is_train'], opt['auto_resume']) == (
        False,
        0,
        1,
        True,
        True,
    )
    assert opt['num_gpu'] == torch.cuda.device_count()
    assert {name: (item['phase'], item['scale']) for name, item in opt['datasets'].items()} == {
        'train': ('train', 2),
        'val_1': ('val', 2),
    }
    assert opt['datasets']['val_1']['dataroot_gt'] == str(folder / 'gt')
    path = opt['path']
    assert path['pretrain_network_g'] == str(folder / 'dense.pth')
    assert path['experiments_root'] == path['log'] == '/root_path/experiments/trial'
    assert path['models'] == '/root_path/experiments/trial/models'
    assert path['training_states'] == '/root_path/experiments/trial/training_states'
    assert path['visualization'] == '/root_path/experiments/trial/visualization'
    assert 'lr: 0.0001' in dict2str(opt)
    assert type(opt) is dict


def test_agrees_with_basicsr(folder, monkeypatch):
    """Every key that BasicSR's own function sets has the same value in ours."""
    from basicsr.utils import options as theirs

    monkeypatch.setattr('sys.argv', ['train.py', '-opt', 'o.yml', '--force_yml', 'train:ema_decay=0.5'])
    expected, _ = theirs.parse_options('/root_path', True)
    ours, _ = parse_options('/root_path', True, ['-opt', 'o.yml', '--force_yml', 'train:ema_decay=0.5'])

    def missing(theirs, ours):
        return {
            key: (value, ours.get(key))
            for key, value in theirs.items()
            if (missing(value, ours[key]) if isinstance(value, dict) else value != ours.get(key))
        }

    expected['train']['optim_g']['lr'] = 1e-4  # YAML 1.1 takes 1e-4 for text
    assert missing(expected, ours) == {}


def test_testing(folder):
    opt = yaml.safe_load(TRAIN)
    del opt['train'], opt['val'], opt['datasets']['train']
    opt['datasets']['test_1'] = opt['datasets'].pop('val_1')
    (folder / 'o.yml').write_text(yaml.safe_dump(opt))
    opt = parse(is_train=False)
    assert opt['path']['results_root'] == opt['path']['log'] == str(folder / 'results' / 'trial')
    assert opt['datasets']['test_1']['phase'] == 'test'
    assert opt['val']['save_img'] is False


def test_seeds(folder):
    draws = []
    for _ in range(2):
        parse()
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert parse('--force_yml', 'manual_seed=~')['manual_seed'] in range(1, 10001)


def test_debug_runs_are_short(folder):
    opt = parse('--debug')
    assert opt['name'] == 'debug_trial'
    assert (opt['val']['val_freq'], opt['logger']['print_freq'], opt['logger']['save_checkpoint_freq']) == (8, 1, 8)
    assert opt['path']['log'].endswith('debug_trial')
    assert parse('--debug', '--force_yml', 'val=~')['val'] is None


@pytest.mark.parametrize(
    ('entry', 'key', 'value'),
    [
        ('train:ema_decay=0.999', 'ema_decay', 0.999),
        ('train:total_iter=5e5', 'total_iter', 500000),
        ('train:warmup_iter=5', 'warmup_iter', 5),
        ('train:perceptual_opt=none', 'perceptual_opt', None),
        ('train : ema_decay = 0.5', 'ema_decay', 0.5),
        ('train:pixel_opt={type: L1Loss, reduction: sum}', 'pixel_opt', {'type': 'L1Loss', 'reduction': 'sum'}),
    ],
)
def test_force_yml(folder, entry, key, value):
    assert parse('--force_yml', entry)['train'][key] == value


def test_force_yml_takes_several(folder):
    opt = parse('--force_yml', 'name=other', 'train:scheduler:milestones=[1, 2]', 'train:optim_g:lr=1e-5')
    assert (opt['name'], opt['train']['scheduler']['milestones'], opt['train']['optim_g']['lr']) == (
        'other',
        [1, 2],
        1e-5,
    )


@pytest.mark.parametrize(
    'entry',
    [
        'a"];open("pwned","w")#=1',
        'name"]="x";open("pwned","w");opt["name=1',
        'train:ema_decay=[__import__("os").mkdir("pwned")]',
        'train:ema_decay=__import__("os").mkdir("pwned")',
        'name=[open("pwned", "w")]',
        'train:ema_decay=!!python/object/apply:os.mkdir [pwned]',
        'name=!!python/object/apply:os.mkdir [pwned]',
        'train:nothing:here=1',
        'trian:ema_decay=1',
        'train:emadecay=1',
        'train:ema_decay:x=1',
        'train:ema_decay',
        '=1',
        ':=1',
        'train:=1',
        'train=',
        'name=[',
        'custom_imports=[os;x]',
    ],
)
def test_force_yml_runs_nothing(folder, entry):
    assert refused('--force_yml', entry)
    assert not Path('pwned').exists()


def test_force_yml_messages(folder):
    assert (
        refused('--force_yml', 'trian:ema_decay=1') == '--force_yml trian:ema_decay=1: trian is not a mapping in o.yml'
    )
    assert refused('--force_yml', 'train:emadecay=1').startswith(
        "o.yml: train.emadecay: unknown key; did you mean 'ema"
    )
    assert refused('--force_yml', 'name:a:b=1') == '--force_yml name:a:b=1: name is not a mapping in o.yml'
    assert refused('--force_yml', 'train').endswith('is not allowed; KEY=VALUE, e.g. train:ema_decay=0.999')
    assert refused('--force_yml', 'name=!!python/none x').startswith('--force_yml name=!!python/none x: the tag ')


@pytest.mark.parametrize('args', [[], ['-opt'], ['-opt', 'o.yml', '--nothing'], ['-opt', 'o.yml', '--launcher', 'x']])
def test_wrong_calls(folder, args):
    with pytest.raises(UsageError, match=r'^classpruning train: '):
        parse_options('.', True, args)


def test_missing_files(folder):
    with pytest.raises(UsageError, match=r'^none\.yml: no such file'):
        parse_options('.', True, ['-opt', 'none.yml'])
    assert (
        refused('--force_yml', 'datasets:train:dataroot_gt=nix')
        == 'o.yml: datasets.train.dataroot_gt: nix: no such folder'
    )
    assert refused('--force_yml', 'datasets:train:meta_info_file=nix').endswith('meta_info_file: nix: no such file')
    assert refused('--force_yml', 'path:pretrain_network_g=nix') == 'o.yml: path.pretrain_network_g: nix: no such file'
    assert refused('--force_yml', 'path:resume_state=nix') == 'o.yml: path.resume_state: nix: no such file'


def test_gpus_that_are_not_there(folder):
    count = torch.cuda.device_count()
    wanted = count + 1
    assert refused('--force_yml', f'num_gpu={wanted}') == (
        f'o.yml: num_gpu: {wanted} is not allowed; this machine has {count} (0 runs on the CPU), or auto'
    )
    assert parse('--force_yml', 'num_gpu=0')['num_gpu'] == 0


@pytest.mark.parametrize(('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID')])
def test_launchers_need_their_environment(folder, monkeypatch, launcher, variable):
    monkeypatch.delenv(variable, raising=False)
    assert refused('--launcher', launcher).startswith(f'--launcher {launcher}: {variable} is not set')


def test_launchers_start_the_process_group(folder, monkeypatch):
    started = []
    monkeypatch.setattr(dist_util, 'init_dist', lambda launcher, **params: started.append((launcher, params)))
    monkeypatch.setattr(dist_util, 'get_dist_info', lambda: (1, 2))
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('SLURM_PROCID', '1')
    opt = parse('--launcher', 'pytorch')
    assert (opt['dist'], opt['rank'], opt['world_size']) == (True, 1, 2)
    parse('--launcher', 'slurm', '--force_yml', 'dist_params={backend: gloo}')
    assert started == [('pytorch', {}), ('slurm', {'backend': 'gloo'})]
