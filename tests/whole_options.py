"""Options files of every kind, as text, and what several tests do with them."""

import pytest
import yaml

import basicsr_classpruning  # noqa: F401  # registers the networks, losses and models
from basicsr_classpruning.config import validate
from basicsr_classpruning.errors import UsageError

CLASSPRUNING = """
name: trial
model_type: ClassPruningModel
scale: 2
datasets:
  train: {name: a, type: DegradedImageDataset, dataroot_gt: gt, gt_size: 96, batch_size_per_gpu: 8,
          num_worker_per_gpu: 2, degradation: {type: bicubic}}
  val: {name: b, type: PairedImageDataset, dataroot_gt: gt, dataroot_lq: lq, io_backend: {type: disk}}
network_g:
  type: ClassPruning
  base: {type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2}
  candidates: ['4:16', '8:16', '16:16']
train:
  optim_g: {type: Adam, lr: 0.0001, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [10], gamma: 0.5}
  stages: {supernet: 10, classifier: 5, joint: 5}
  pixel_opt: {type: L1Loss, loss_weight: 1.0}
  budget_opt: {target: 0.6}
val: {val_freq: 5.0e+3, metrics: {psnr: {type: calculate_psnr, crop_border: 2}}}
"""

# The shapes of BasicSR 1.4.2's own files.
EDSR = """
name: 201_EDSR_Mx2_f64b16_DIV2K_300k_B16G1_wandb
model_type: SRModel
scale: 2
num_gpu: 1
manual_seed: 10
datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: datasets/DIV2K/DIV2K_train_HR_sub
    dataroot_lq: datasets/DIV2K/DIV2K_train_LR_bicubic/X2_sub
    meta_info_file: basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt
    filename_tmpl: '{}'
    io_backend: {type: disk}
    gt_size: 96
    use_hflip: true
    use_rot: true
    use_shuffle: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
    prefetch_mode: ~
  val:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: datasets/Set5/GTmod12
    dataroot_lq: datasets/Set5/LRbicx2
    io_backend: {type: disk}
network_g:
  type: EDSR
  num_in_ch: 3
  num_out_ch: 3
  num_feat: 64
  num_block: 16
  upscale: 2
  res_scale: 1
  img_range: 255.
  rgb_mean: [0.4488, 0.4371, 0.4040]
path: {pretrain_network_g: ~, strict_load_g: true, resume_state: ~}
train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [200000], gamma: 0.5}
  total_iter: 300000
  warmup_iter: -1
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
val:
  val_freq: !!float 5e3
  save_img: false
  metrics:
    psnr: {type: calculate_psnr, crop_border: 2, test_y_channel: false}
    niqe: {type: calculate_niqe, crop_border: 2, better: lower}
logger:
  print_freq: 100
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: true
  wandb: {project: ~, resume_id: ~}
dist_params: {backend: nccl, port: 29500}
"""

SWINIR_NETWORK = """
type: SwinIR
upscale: 2
in_chans: 3
img_size: 48
window_size: 8
img_range: 1.
depths: [6, 6, 6, 6, 6, 6]
embed_dim: 180
num_heads: [6, 6, 6, 6, 6, 6]
mlp_ratio: 2
upsampler: 'pixelshuffle'
resi_connection: '1conv'
"""

TEST = """
name: EDSR_Mx2
model_type: SRModel
scale: 2
num_gpu: 1
manual_seed: 0
datasets:
  test_1: {name: Set5, type: PairedImageDataset, dataroot_gt: gt, dataroot_lq: lq, io_backend: {type: disk}}
  test_2: {name: DIV2K100, type: PairedImageDataset, dataroot_gt: gt, dataroot_lq: lq, filename_tmpl: '{}x2',
           io_backend: {type: lmdb, readonly: true}}
  test_3: {name: own, type: SingleImageDataset, dataroot_lq: lq, io_backend: {type: disk}}
network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2}
path: {pretrain_network_g: experiments/pretrained_models/EDSR_Mx2.pth, strict_load_g: true}
val:
  save_img: true
  suffix: ~
  metrics: {psnr: {type: calculate_psnr, crop_border: 2, test_y_channel: false}}
"""


def options(text=CLASSPRUNING):
    return yaml.safe_load(text)


def changed(dotted, value, text=CLASSPRUNING):
    """Options with one value replaced; with ... the key is left out."""
    opt = options(text)
    *path, last = dotted.split('.')
    section = opt
    for key in path:
        section = section.setdefault(key, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return opt


def problem(opt):
    """The message of the error, without the file's name."""
    with pytest.raises(UsageError) as caught:
        validate(opt, 'FILE.yml')
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith('FILE.yml: ')
    return message.removeprefix('FILE.yml: ')
