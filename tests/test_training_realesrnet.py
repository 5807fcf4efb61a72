"""Training on pictures that the model degrades, as in Real-ESRGAN."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.models.realesrnet_model import RealESRNetModel
from tiny import same, training_options
from training import BUDGET, EXPERIMENT, model_of, run
from whole_options import problem

from basicsr_classpruning.models.guarded_model import seed_iteration
from basicsr_classpruning.untrusted.files import load_file

DEGRADATION = {
    'gt_size': 32, 'gt_usm': True, 'queue_size': 6,
    'resize_prob': [0.2, 0.7, 0.1], 'resize_range': [0.15, 1.5], 'gaussian_noise_prob': 0.5, 'noise_range': [1, 30],
    'poisson_scale_range': [0.05, 3], 'gray_noise_prob': 0.4, 'jpeg_range': [30, 95], 'second_blur_prob': 0.8,
    'resize_prob2': [0.3, 0.4, 0.3], 'resize_range2': [0.3, 1.2], 'gaussian_noise_prob2': 0.5, 'noise_range2': [1, 25],
    'poisson_scale_range2': [0.05, 2.5], 'gray_noise_prob2': 0.4, 'jpeg_range2': [30, 95],
}  # fmt: skip
KERNELS = ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
DATASET = {
    'type': 'RealESRGANDataset', 'io_backend': {'type': 'disk'},
    'blur_kernel_size': 21, 'kernel_list': KERNELS, 'kernel_prob': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob': 0.1, 'blur_sigma': [0.2, 3], 'betag_range': [0.5, 4], 'betap_range': [1, 2],
    'blur_kernel_size2': 21, 'kernel_list2': KERNELS, 'kernel_prob2': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob2': 0.1, 'blur_sigma2': [0.2, 1.5], 'betag_range2': [0.5, 4], 'betap_range2': [1, 2],
    'final_sinc_prob': 0.8, 'gt_size': 32, 'use_hflip': True, 'use_rot': False, 'num_worker_per_gpu': 0,
    'batch_size_per_gpu': 2,
}  # fmt: skip


def realesrnet_options(pictures: Path, **train) -> dict:
    names = pictures.parent / 'names.txt'
    names.write_text(''.join(f'{path.name}\n' for path in sorted(pictures.iterdir())))
    options = training_options(pictures, **train)
    options.update(model_type='ClassPruningRealESRNetModel', **DEGRADATION)
    dataset = {**DATASET, 'name': 'clean', 'dataroot_gt': str(pictures), 'meta_info': str(names)}
    options['datasets'] = {'train': dataset}
    return options


def clean_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.zeros(2, 21, 21)
    kernel[:, 9:12, 9:12] = 1 / 9
    gt = torch.rand(2, 3, 96, 96, generator=generator)
    return {'gt': gt, 'kernel1': kernel, 'kernel2': kernel, 'sinc_kernel': kernel}


def test_a_batch_is_degraded_as_in_basicsr(tmp_path, pictures):
    model = model_of(tmp_path, realesrnet_options(pictures))
    model.update_learning_rate(5)
    model.feed_data(clean_batch())

    class Theirs(RealESRNetModel):
        def __init__(self) -> None:  # theirs asks for a GPU
            self.opt, self.is_train, self.device = model.opt, True, torch.device('cpu')
            self.jpeger, self.usm_sharpener = model.jpeger, model.usm_sharpener

        def _dequeue_and_enqueue(self) -> None:  # while a pool fills, it changes nothing
            pass

    theirs = Theirs()
    seed_iteration(model.opt['manual_seed'] + 1, 5, 0)
    theirs.feed_data(clean_batch())
    assert model.lq.shape == (2, 3, 16, 16)
    assert torch.equal(model.lq, theirs.lq)
    assert torch.equal(model.gt, theirs.gt)
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    again = model_of(tmp_path, realesrnet_options(pictures))
    again.update_learning_rate(5)
    again.feed_data(clean_batch())  # whatever was drawn before
    assert torch.equal(again.lq, model.lq)


def test_a_full_pool_gives_each_pair_once(tmp_path, pictures):
    model = model_of(tmp_path, realesrnet_options(pictures))
    seen = []
    for number in range(8):
        model.lq = torch.full((2, 1, 1, 1), float(number))
        model.gt = model.lq + 100
        model._dequeue_and_enqueue()
        assert torch.equal(model.gt, model.lq + 100)
        seen += model.lq.flatten().tolist()
    assert seen[:6] == [0, 0, 1, 1, 2, 2]  # while it fills, batches pass
    left = model.queue_lr.flatten().tolist()
    assert sorted(seen[6:] + left) == sorted(2 * list(range(8)))


def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch, pictures):
    stages = {'supernet': 3, 'classifier': 1, 'joint': 1}
    options = {**realesrnet_options(pictures, stages=stages, ema_decay=0.9, **BUDGET), 'queue_size': 4}
    options['logger']['save_checkpoint_freq'] = 1
    for folder in ('whole', 'resumed'):
        assert run(tmp_path / folder, monkeypatch, options) == 0
    for path in (tmp_path / 'resumed' / EXPERIMENT).glob('*/*'):
        if path.stem.removeprefix('net_g_') in ('4', '5'):
            path.unlink()
    assert run(tmp_path / 'resumed', monkeypatch, options, '--auto_resume') == 0
    for name in ('models/net_g_5.pth', 'training_states/5.state'):
        whole, resumed = (load_file(tmp_path / folder / EXPERIMENT / name) for folder in ('whole', 'resumed'))
        assert same(resumed, whole), name


def test_other_models_say_what_is_missing(tmp_path, monkeypatch, pictures, capsys):
    options = realesrnet_options(pictures)
    for key in DEGRADATION:
        del options[key]
    options['model_type'] = 'ClassPruningModel'
    assert run(tmp_path, monkeypatch, options) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f'classpruning: error: {tmp_path}/train.yml: datasets.train.type: RealESRGANDataset brings no degraded '
        'pictures (lq), so a model has to degrade the clean ones; model_type ClassPruningRealESRNetModel '
        '(RealESRNetModel for a dense network), or a data set with lq'
    )
    assert not (tmp_path / 'experiments').exists()


def test_a_list_of_names_that_is_not_there_is_named(tmp_path, monkeypatch, pictures, capsys):
    options = realesrnet_options(pictures)
    options['datasets']['train']['meta_info'] = 'nowhere.txt'
    assert run(tmp_path, monkeypatch, options) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f'classpruning: error: {tmp_path}/train.yml: datasets.train: RealESRGANDataset refuses it: '
        'nowhere.txt: No such file or directory'
    )


@pytest.mark.parametrize(
    ('key', 'value', 'wanted'),
    [
        ('queue_size', 7, 'queue_size: 7 is not allowed; a multiple of the batch size (2)'),
        ('gt_size', 33, 'gt_size: 33 is not allowed; a multiple of scale (2)'),
        ('resize_range', [1.5, 0.2], 'resize_range: [1.5, 0.2] is not allowed; [least, greatest]'),
        ('jpeg_rnge', [1, 2], "jpeg_rnge: unknown key; did you mean 'jpeg_range'"),
    ],
)
def test_wrong_options_are_named(pictures, key, value, wanted):
    assert problem({**realesrnet_options(pictures), key: value}).startswith(wanted)
