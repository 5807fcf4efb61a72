"""Faults of data sets, of any class, found before a run writes anything; pictures whose sizes do not quite fit."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from basicsr.archs.vgg_arch import VGG_PRETRAIN_PATH
from basicsr.metrics import calculate_niqe, calculate_psnr
from basicsr.utils import tensor2img
from basicsr.utils.img_util import img2tensor
from basicsr.utils.lmdb_util import LmdbMaker
from PIL import Image
from tiny import NETWORKS, classpruning, network_g, training_options
from training import EXPERIMENT, run

from basicsr_classpruning.safe_files import save_file


def write_pairs(folder: Path, count: int = 4, height: int = 40, width: int = 48, scale: int = 2) -> Path:
    """``gt`` and ``lq`` with pictures of the same names; sides of ``lq`` are rounded up."""
    rng = np.random.default_rng(0)
    for name in ('gt', 'lq'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture = cv2.resize(rng.uniform(0, 255, (5, 6, 3)).astype(np.float32), (width, height))
        cv2.imwrite(str(folder / f'gt/{index}.png'), picture)
        small = cv2.resize(picture, (-(-width // scale), -(-height // scale)), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f'lq/{index}.png'), small)
    return folder


def paired_options(folder: Path, **dataset) -> dict:
    options = training_options(folder)
    options['train']['stages'] = {'supernet': 2}
    common = {
        'type': 'PairedImageDataset', 'dataroot_gt': str(folder / 'gt'), 'dataroot_lq': str(folder / 'lq'),
        'io_backend': {'type': 'disk'},
    }  # fmt: skip
    options['datasets'] = {
        'train': {
            'name': 'pairs', **common, 'gt_size': 16, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0,
            'batch_size_per_gpu': 3, **dataset,
        },
        'val': {'name': 'val', **common},
    }  # fmt: skip
    options['val'] = {'val_freq': 2, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}}
    return options


def refusal(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys, options: dict, status: int) -> str:
    """The one line with which a call is refused, which leaves nothing behind."""
    capsys.readouterr()
    assert run(folder, monkeypatch, options) == status
    output = capsys.readouterr().err
    assert 'Traceback' not in output
    assert not (folder / 'experiments').exists()
    line = output.splitlines()[-1]
    assert line.startswith(f'classpruning: error: {folder / "train.yml"}: datasets.')
    return line.removeprefix(f'classpruning: error: {folder / "train.yml"}: ')


def test_pairs_train_and_are_measured(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, paired_options(write_pairs(tmp_path))) == 0
    record = json.loads((tmp_path / EXPERIMENT / 'metrics.jsonl').read_text().splitlines()[0])
    assert record['pictures'] == 4


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def resize(path: Path, width: int, height: int) -> None:
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (width, height)))


FAULTS: dict[str, tuple[Callable[[Path], object], dict, int, str]] = {
    'other scale': (
        lambda f: resize(f / 'lq/2.png', 12, 10), {}, 2,
        'datasets.train: {f}/gt/2.png is 48x40, {f}/lq/2.png 12x10; not scale 2',
    ),
    'one more degraded': (
        lambda f: shutil.copy(f / 'lq/0.png', f / 'lq/9.png'), {}, 2,
        "datasets.train.dataroot_gt: {f}/lq/9.png has no clean picture in {f}/gt (filename_tmpl '{{}}', same suffix)",
    ),
    'one less degraded': (
        lambda f: (f / 'lq/1.png').unlink(), {}, 2,
        'datasets.train.dataroot_lq: {f}/lq/1.png is missing, which belongs to {f}/gt/1.png '
        "(filename_tmpl '{{}}', same suffix)",
    ),
    'other naming': (
        lambda f: [path.rename(path.with_stem(f'{path.stem}x2')) for path in (f / 'lq').iterdir()], {}, 2,
        'datasets.train.dataroot_lq: {f}/lq/0.png is missing, which belongs to {f}/gt/0.png '
        "(filename_tmpl '{{}}', same suffix)",
    ),
    'smaller than gt_size': (
        lambda f: (resize(f / 'gt/3.png', 48, 14), resize(f / 'lq/3.png', 24, 7)), {}, 2,
        'datasets.train.gt_size: 16 is not allowed; {f}/gt/3.png is 48x14, {f}/lq/3.png 24x7',
    ),
    'empty': (lambda f: write(f / 'gt/3.png', b''), {}, 1, 'datasets.train: {f}/gt/3.png: is empty, no picture'),
    'no picture': (
        lambda f: write(f / 'lq/3.png', b'<html>not found</html>'), {}, 1,
        'datasets.train: {f}/lq/3.png: this picture does not decode',
    ),
    'cut off': (
        lambda f: write(f / 'lq/3.png', (f / 'lq/3.png').read_bytes()[:60]), {}, 1,
        'datasets.train: {f}/lq/3.png: this picture does not decode',
    ),
    'no such file in the list': (
        lambda f: (f / 'list.txt').write_text('0.png (40,48,3)\n7.png (40,48,3)\n'), {'meta_info_file': 'list.txt'}, 1,
        'datasets.train: {f}/lq/7.png: No such file or directory',
    ),
}  # fmt: skip


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_of_paired_pictures_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys, fault):
    damage, dataset, status, wanted = FAULTS[fault]
    damage(write_pairs(tmp_path))
    if 'meta_info_file' in dataset:
        dataset = {'meta_info_file': str(tmp_path / dataset['meta_info_file'])}
    line = refusal(tmp_path, monkeypatch, capsys, paired_options(tmp_path, **dataset), status)
    assert line == wanted.format(f=tmp_path)


def test_a_fault_is_named_before_a_test_writes_anything(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path)
    write(tmp_path / 'lq/3.png', b'')
    options = paired_options(tmp_path)
    options['datasets'] = {'test_1': options['datasets']['val']}
    del options['train'], options['logger'], options['val']['val_freq']
    assert run(tmp_path, monkeypatch, options, command='test') == 1
    wanted = f'classpruning: error: {tmp_path}/test.yml: datasets.test_1: {tmp_path}/lq/3.png: is empty, no picture'
    assert capsys.readouterr().err.splitlines()[-1] == wanted
    assert not (tmp_path / 'results').exists()


def test_files_that_are_no_pictures_are_passed_over_and_counted(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path)
    for name in ('gt/Thumbs.db', 'lq/desktop.ini', 'lq/Thumbs.db'):
        (tmp_path / name).write_bytes(b'\0' * 40)
    assert run(tmp_path, monkeypatch, paired_options(tmp_path)) == 0
    assert 'datasets.train: 3 files passed over, no picture by its name: Thumbs.db, Thumbs.db, desktop.ini' in (
        capsys.readouterr().err
    )


def test_a_turned_photograph_has_the_size_that_it_is_decoded_to(tmp_path, monkeypatch):
    write_pairs(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown upright
    for folder in ('gt', 'lq'):
        for path in (tmp_path / folder).iterdir():
            picture = Image.open(path)
            if folder == 'gt':
                picture.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix('.jpg'), exif=exif)
            else:
                picture.save(path.with_suffix('.jpg'))
            path.unlink()
    assert run(tmp_path, monkeypatch, paired_options(tmp_path)) == 0


def test_a_network_with_one_channel_is_no_network_for_colour_pictures(tmp_path, monkeypatch, capsys):
    options = paired_options(write_pairs(tmp_path))
    options['network_g'] = network_g('EDSR')
    options['network_g']['base'].update(num_in_ch=1, num_out_ch=1, rgb_mean=[0.5])
    line = refusal(tmp_path, monkeypatch, capsys, options, 2)
    assert line == f'datasets.train: {tmp_path}/gt/0.png: lq has 3 channels, but the network takes 1'


def write_lmdb(folder: Path, names: list[str]) -> None:
    maker = LmdbMaker(str(folder.with_suffix('.lmdb')))
    for name in names:
        content = (folder / f'{name}.png').read_bytes()
        maker.put(content, name, cv2.imread(str(folder / f'{name}.png')).shape)
    maker.close()


@pytest.mark.parametrize(
    ('names', 'listed', 'wanted', 'status'),
    [
        (['0', '1'], None, "the key '2' of {f}/gt.lmdb is not in {f}/lq.lmdb; both LMDBs need the same keys", 2),
        (['0', '1'], '2.png (20,24,3) 1\n', '{f}/lq.lmdb/2: in meta_info.txt, but not in the LMDB', 1),
    ],
)
def test_the_keys_of_lmdbs_must_agree(tmp_path, monkeypatch, capsys, names, listed, wanted, status):
    write_pairs(tmp_path)
    write_lmdb(tmp_path / 'gt', ['0', '1', '2'])
    write_lmdb(tmp_path / 'lq', names)
    if listed:
        with open(tmp_path / 'lq.lmdb/meta_info.txt', 'a') as file:
            file.write(listed)
    roots = {name: str(tmp_path / f'{name[-2:]}.lmdb') for name in ('dataroot_gt', 'dataroot_lq')}
    options = paired_options(tmp_path, **roots, io_backend={'type': 'lmdb'})
    assert refusal(tmp_path, monkeypatch, capsys, options, status) == f'datasets.train: {wanted.format(f=tmp_path)}'


def test_lmdbs_train(tmp_path, monkeypatch):
    write_pairs(tmp_path)
    for name in ('gt', 'lq'):
        write_lmdb(tmp_path / name, ['0', '1', '2'])
    roots = {name: str(tmp_path / f'{name[-2:]}.lmdb') for name in ('dataroot_gt', 'dataroot_lq')}
    assert run(tmp_path, monkeypatch, paired_options(tmp_path, **roots, io_backend={'type': 'lmdb'})) == 0


def test_a_data_set_without_clean_pictures_cannot_be_trained_on(tmp_path, monkeypatch, capsys):
    options = paired_options(write_pairs(tmp_path))
    options['datasets']['train'] = {
        'name': 'single', 'type': 'SingleImageDataset', 'dataroot_lq': str(tmp_path / 'lq'),
        'io_backend': {'type': 'disk'}, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 3,
    }  # fmt: skip
    line = refusal(tmp_path, monkeypatch, capsys, options, 2)
    assert line == 'datasets.train.type: SingleImageDataset brings no clean pictures (gt), which training needs'


def test_an_option_that_a_data_set_lacks_is_named(tmp_path, monkeypatch, capsys):
    options = paired_options(write_pairs(tmp_path))
    options['datasets']['train'].update(type='RealESRGANPairedDataset')
    del options['datasets']['train']['use_rot']
    line = refusal(tmp_path, monkeypatch, capsys, options, 2)
    assert line == 'datasets.train.use_rot: is missing; RealESRGANPairedDataset needs it'


OWN = """
import torch
from basicsr.utils.registry import DATASET_REGISTRY

@DATASET_REGISTRY.register()
class Odd{number}(torch.utils.data.Dataset):
    def __init__(self, opt):
        self.opt, self.paths = opt, opt['paths']

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= {first}:
            raise IndexError('the shelf is empty')
        return {{'lq': torch.rand(3, 8, 8), 'gt': torch.rand(3, 16, 16), 'lq_path': 'x', 'gt_path': 'x'}}
"""


@pytest.mark.parametrize('first', [0, 3])
def test_a_users_own_data_set_that_fails_is_named_with_its_picture(tmp_path, monkeypatch, capsys, first):
    options = paired_options(write_pairs(tmp_path))
    (tmp_path / f'odd_data_{first}.py').write_text(OWN.format(number=first, first=first))
    monkeypatch.syspath_prepend(str(tmp_path))
    options['custom_imports'] = [f'odd_data_{first}']
    paths = [str(tmp_path / f'gt/{index % 4}.png') for index in range(6)]
    options['datasets']['train'].update(type=f'Odd{first}', paths=paths)
    for key in ('dataroot_gt', 'dataroot_lq'):
        del options['datasets']['train'][key]
    if first == 0:
        line = refusal(tmp_path, monkeypatch, capsys, options, 2)
        assert line == f'datasets.train: {paths[0]}: Odd0 refuses it: IndexError: the shelf is empty'
        return
    assert run(tmp_path, monkeypatch, options) == 1  # found when that picture is drawn
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'classpruning: error: data set pairs: {tmp_path}/gt/')
    assert error.endswith('.png: IndexError: the shelf is empty')


@pytest.mark.parametrize('command', ['train', 'test'])
@pytest.mark.parametrize('sides', [(41, 48), (40, 47), (41, 47)])
def test_a_degraded_picture_rounded_up_is_measured_in_the_common_part(tmp_path, monkeypatch, capsys, command, sides):
    write_pairs(tmp_path)
    write_pairs(tmp_path / 'odd', 2, *sides)
    net = classpruning('EDSR')
    save_file({'params': net.state_dict(), 'network_g': net.options}, tmp_path / 'net.pth')
    options = paired_options(tmp_path)
    for key in ('gt', 'lq'):
        options['datasets']['val'][f'dataroot_{key}'] = str(tmp_path / 'odd' / key)
    phase = 'val'
    if command == 'test':
        options['datasets'] = {'test_1': options['datasets']['val']}
        options['path'] = {'pretrain_network_g': str(tmp_path / 'net.pth')}
        phase = 'test_1'
        del options['train'], options['logger'], options['val']['val_freq']
    assert run(tmp_path, monkeypatch, options, command=command) == 0
    warning = f'datasets.{phase}: measured in the common part, as scale 2 does not fit exactly: {tmp_path}/odd/gt/0.png'
    assert capsys.readouterr().err.count(warning) == 1
    if command == 'test':
        (record,) = map(json.loads, (tmp_path / 'results/tiny/metrics.jsonl').read_text().splitlines())
        rows = {row['name']: row['metrics'] for row in record['rows']}
        values = []
        for index in range(2):
            lq, gt = (cv2.imread(str(tmp_path / f'odd/{key}/{index}.png')) for key in ('lq', 'gt'))
            restored = tensor2img([net.restore_with(img2tensor(lq.astype(np.float32) / 255)[None], '2:4')])
            values.append(calculate_psnr(restored[: sides[0], : sides[1]], gt, 2))
        assert rows['2:4']['psnr'] == pytest.approx(sum(values) / 2)


def test_basicsr_itself_cannot_measure_a_picture_rounded_up(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path)
    write_pairs(tmp_path / 'odd', 1, 41, 48)
    options = paired_options(tmp_path)
    options.update(model_type='SRModel', network_g=NETWORKS['EDSR'])
    options['train'].update(total_iter=2)
    del options['train']['stages']
    for key in ('gt', 'lq'):
        options['datasets']['val'][f'dataroot_{key}'] = str(tmp_path / 'odd' / key)
    line = refusal(tmp_path, monkeypatch, capsys, options, 2)
    assert line.startswith(f'datasets.val: {tmp_path}/odd/gt/0.png is 48x41, {tmp_path}/odd/lq/0.png 24x21; scale 2')
    assert line.endswith('model_type GuardedSRModel measures the common part')


@pytest.mark.parametrize('package', ['wandb', 'tensorboard'])
def test_a_logger_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys, package):
    options = paired_options(write_pairs(tmp_path))
    options['logger'].update(use_tb_logger=True, wandb={'project': 'p'} if package == 'wandb' else None)
    # A package that is not there, whatever this machine has.
    monkeypatch.setitem(sys.modules, {'wandb': 'wandb', 'tensorboard': 'torch.utils.tensorboard'}[package], None)
    assert run(tmp_path, monkeypatch, options) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    key = 'logger.wandb.project' if package == 'wandb' else 'logger.use_tb_logger'
    assert line.startswith(f'classpruning: error: {tmp_path}/train.yml: {key}: {package} cannot be imported')
    assert f'pip install {package}' in line
    assert not (tmp_path / 'experiments').exists()


def test_perceptual_weights_that_cannot_be_fetched_are_named(tmp_path, monkeypatch, capsys):
    options = paired_options(write_pairs(tmp_path))
    options['train']['perceptual_opt'] = {'type': 'PerceptualLoss', 'layer_weights': {'conv1_1': 1}}
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')  # where nothing listens
    assert run(tmp_path, monkeypatch, options) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    start = (
        f'classpruning: error: {tmp_path}/train.yml: train.perceptual_opt: the weights of vgg19 cannot be downloaded'
    )
    assert line.startswith(start)
    assert f'vgg19-dcbb9e9d.pth into {tmp_path}/torch/hub/checkpoints' in line
    assert not (tmp_path / 'experiments').exists()
    assert not list((tmp_path / 'torch').rglob('*.*'))


def test_perceptual_weights_that_are_there_are_used(tmp_path, monkeypatch):
    options = paired_options(write_pairs(tmp_path))
    options['train']['perceptual_opt'] = {
        'type': 'PerceptualLoss', 'vgg_type': 'vgg11', 'layer_weights': {'conv1_1': 1},
    }  # fmt: skip
    (tmp_path / 'experiments/pretrained_models').mkdir(parents=True)
    torch.save(torchvision.models.vgg11().state_dict(), tmp_path / VGG_PRETRAIN_PATH)
    assert run(tmp_path, monkeypatch, options) == 0
    (log,) = (tmp_path / EXPERIMENT).glob('*.log')
    assert 'l_percep' in log.read_text()


def test_a_validation_picture_of_another_scale_is_refused(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path)
    write_pairs(tmp_path / 'other', scale=4)
    options = paired_options(tmp_path)
    for key in ('gt', 'lq'):
        options['datasets']['val'][f'dataroot_{key}'] = str(tmp_path / 'other' / key)
    line = refusal(tmp_path, monkeypatch, capsys, options, 2)
    other = tmp_path / 'other'
    assert line == f'datasets.val: {other}/gt/0.png is 48x40, {other}/lq/0.png 12x10; not scale 2'


def single_options(folder: Path, metrics: dict) -> dict:
    options = paired_options(folder)
    options['datasets']['val'] = {
        'name': 'single', 'type': 'SingleImageDataset', 'dataroot_lq': str(folder / 'lq'),
        'io_backend': {'type': 'disk'},
    }  # fmt: skip
    options['val']['metrics'] = metrics
    return options


def test_a_metric_that_needs_no_clean_picture_is_measured_without(tmp_path, monkeypatch):
    write_pairs(tmp_path, 2, 120, 200)
    net = classpruning('EDSR')
    save_file({'params': net.state_dict(), 'network_g': net.options}, tmp_path / 'net.pth')
    niqe = {'type': 'calculate_niqe', 'crop_border': 2, 'better': 'lower'}
    options = single_options(tmp_path, {'niqe': niqe})
    options['datasets'] = {'test_1': options['datasets']['val']}
    options['path'] = {'pretrain_network_g': str(tmp_path / 'net.pth')}
    del options['train'], options['logger'], options['val']['val_freq']
    assert run(tmp_path, monkeypatch, options, command='test') == 0
    (record,) = map(json.loads, (tmp_path / 'results/tiny/metrics.jsonl').read_text().splitlines())
    rows = {row['name']: row['metrics'] for row in record['rows']}
    values = []
    for index in range(2):
        lq = cv2.imread(str(tmp_path / f'lq/{index}.png')).astype(np.float32) / 255
        values.append(calculate_niqe(tensor2img([net.restore_with(img2tensor(lq)[None], '2:4')]), 2))
    assert rows['2:4']['niqe'] == pytest.approx(sum(values) / 2)


def test_a_metric_that_needs_a_clean_picture_is_refused_without(tmp_path, monkeypatch, capsys):
    psnr = {'type': 'calculate_psnr', 'crop_border': 2}
    line = refusal(tmp_path, monkeypatch, capsys, single_options(write_pairs(tmp_path), {'psnr': psnr}), 2)
    assert line == 'datasets.val.type: SingleImageDataset brings no clean pictures (gt), which val.metrics.psnr needs'
