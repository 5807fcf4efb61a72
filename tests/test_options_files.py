"""The example options files: they are checked, build, and fit together."""

import re

import pytest
import torch
from basicsr.archs import build_network
from tiny import REPOSITORY, write_pictures

import basicsr_classpruning  # noqa: F401  # registers the networks, losses and models
from basicsr_classpruning.cli import main
from basicsr_classpruning.config import load_options
from basicsr_classpruning.examples import options_folder

FILES = sorted(path for folder in ('train', 'test') for path in (REPOSITORY / 'options' / folder).glob('*.yml'))
NAMES = [f'{path.parent.name}/{path.name}' for path in FILES]


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_checks_and_says_how_it_is_run(path):
    opt = load_options(str(path), is_train=path.parent.name == 'train')
    head = path.read_text(encoding='utf-8').split('\nname:')[0]
    assert f'classpruning {path.parent.name} -opt options/{path.parent.name}/{path.name}' in head
    keys = ('dataroot_gt', 'dataroot_lq', 'meta_info')
    roots = {dataset[key] for dataset in opt['datasets'].values() for key in keys if dataset.get(key)}
    assert all(root in head for root in roots), 'the head says where the data are expected'


@pytest.mark.parametrize('path', [path for path in FILES if path.parent.name == 'train'], ids=lambda path: path.stem)
def test_tests_what_was_trained(path):
    trained = load_options(str(path))
    tested = load_options(str(REPOSITORY / 'options' / 'test' / path.name))
    assert tested['network_g'] == trained['network_g']
    assert (tested['name'], tested['scale']) == (trained['name'], trained['scale'])
    assert tested['path']['pretrain_network_g'] == f'experiments/{trained["name"]}/models/net_g_latest.pth'
    start = trained['path']['pretrain_network_g']
    if trained['model_type'] == 'ClassPruningGANModel':  # goes on from a training without a discriminator
        first = load_options(str(path.with_name(path.name.replace('_gan', ''))))
        assert start == f'experiments/{first["name"]}/models/net_g_latest.pth'
        assert first['network_g'] == trained['network_g']
    elif trained['model_type'] == 'ClassPruningRealESRNetModel':  # from a network that others have published
        assert start in path.read_text(encoding='utf-8').replace('Start: ', 'experiments/pretrained_models/')
    elif trained['network_g'].get('unit', 1) > 1:  # from what `prune --int8` makes of a published network
        assert start == f'experiments/{trained["name"]}_pruned.pth'
        assert f'--out {start} --int8' in path.read_text(encoding='utf-8')
    elif start is not None:
        dense = load_options(str(path.with_name(f'{path.stem}_dense.yml')))
        as_it_was = f'experiments/{dense["name"]}/models/net_g_latest.pth'
        assert start in (as_it_was, f'experiments/{trained["name"]}_pruned.pth')
        assert dense['network_g'] == trained['network_g']['base']


@pytest.mark.parametrize('path', [path for path in FILES if path.parent.name == 'train'], ids=lambda path: path.stem)
def test_builds(path):
    network = load_options(str(path))['network_g']
    net = build_network(network)
    if network['type'] == 'ClassPruning':
        assert list(net.candidates) == network['candidates']
        assert any(choice.patterns for choice in net.choices)


def test_what_is_trained_for_photographs_starts_from_what_it_says():
    from basicsr_classpruning import load
    from basicsr_classpruning.archs.forms import as_dense

    paths = sorted((REPOSITORY / 'options' / 'photographs').glob('*.yml'))
    read = {path: load_options(str(path)) for path in paths}
    named = {options['name']: options for options in read.values()}
    made = []
    for path, options in read.items():
        head = path.read_text(encoding='utf-8').split('\nname:')[0]
        assert f'classpruning train -opt options/photographs/{path.name}' in head
        assert all(dataset['dataroot_gt'] in head for dataset in options['datasets'].values())
        start, network = options['path']['pretrain_network_g'], options['network_g']
        if before := re.fullmatch(r'experiments/(\w+)/models/net_g_latest.pth', start):  # another one's training
            assert named[before[1]]['network_g'] == network
        else:
            if pruned := re.search(rf'classpruning prune (\S+) --out {re.escape(start)} ', head):
                start = pruned[1]
                assert f'--candidates {" ".join(network["candidates"])} ' in head
            if network['base']['type'] == 'Spandrel':  # a published file
                assert start == network['base']['checkpoint']
            else:
                assert as_dense(load(REPOSITORY / start)).options == network['base']
        if file := re.search(r'(?:averaged weights are|--out) (zoo/[^\s,]+)', head):
            made.append(file[1])
            net = load(REPOSITORY / file[1])
            assert list(net.candidates) == network['candidates']
            assert net.options['base'] == network['base']
    assert made == ['zoo/dncnn_noise_32_patches.pth', 'zoo/edsr_x2_64_int8.pth']  # the others are too large


@pytest.mark.parametrize('name', ['edsr_x2', 'edsr_x2_gan', 'realesrnet_x4'])
def test_trains_with_its_bypass(name, tmp_path, monkeypatch):
    path = REPOSITORY / 'options' / 'train' / f'{name}.yml'
    options = load_options(str(path))
    assert options['network_g']['candidates'][0] == '0:16'
    for key in ('train', 'val'):
        write_pictures(tmp_path / options['datasets'][key]['dataroot_gt'], 2, 192, 192)
    (tmp_path / options['datasets']['train'].get('meta_info', 'names.txt')).write_text('0.png\n1.png\n')
    small = ['num_gpu=0', 'path:pretrain_network_g=~', 'train:amp=~', 'datasets:train:batch_size_per_gpu=1',
             'datasets:train:num_worker_per_gpu=0', 'train:scheduler={type: MultiStepLR, milestones: [9]}',
             'logger:print_freq=1', 'logger:use_tb_logger=false', 'val:val_freq=99',
             'train:stages={supernet: 1, classifier: 1, joint: 1}']  # fmt: skip
    base = options['network_g']['base']
    small += [f'network_g:base:{key}={value}' for key, value in {'num_feat': 16, 'num_block': 1, 'num_conv': 2}.items()
              if key in base]  # fmt: skip
    if name == 'realesrnet_x4':
        small += ['gt_size=32', 'datasets:train:gt_size=32', 'queue_size=2']
    else:
        small.append('datasets:train:gt_size=' + ('128' if name.endswith('gan') else '32'))
    if name == 'edsr_x2_gan':
        small.append('train:perceptual_opt=~')  # which needs weights that are downloaded
        small.append('network_d:num_feat=8')
    monkeypatch.chdir(tmp_path)
    assert main(['train', '-opt', str(path), '--force_yml', *small]) == 0
    assert (tmp_path / 'experiments' / options['name'] / 'models' / 'net_g_latest.pth').is_file()


def test_they_are_found_from_python():
    assert sorted(options_folder().glob('*/*.yml')) == sorted((REPOSITORY / 'options').glob('*/*.yml'))


def test_the_demo_restores():
    net = build_network(load_options(str(REPOSITORY / 'options' / 'train' / 'demo.yml'))['network_g']).eval()
    with torch.no_grad():
        assert net(torch.rand(2, 3, 24, 40)).shape == (2, 3, 24, 40)
