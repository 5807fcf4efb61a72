"""Small networks, pictures and options that several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
import yaml
from basicsr.archs import build_network
from torch import nn

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.cli import main
from basicsr_classpruning.sparsity import sparse_layers
from basicsr_classpruning.sparsity.int8 import Grid, InputRange, largest_scale, rounded_weight

Found = TypeVar('Found')
REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / 'shared'
CANDIDATES = ['1:4', '2:4', '4:4']

# Every network that ClassPruning wraps, at a few thousand parameters, by the name of its type.
NETWORKS: dict[str, dict[str, Any]] = {
    str(base['type']): base
    for base in (
        {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 2, 'upscale': 2},
        {'type': 'MSRResNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 2, 'upscale': 4},
        {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 2, 'num_block': 1,
         'squeeze_factor': 4, 'upscale': 2},
        {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 1, 'num_grow_ch': 16,
         'scale': 2},
        {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_conv': 3, 'upscale': 2},
        {'type': 'ECBSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 2, 'num_channel': 16, 'with_idt': True,
         'act_type': 'prelu', 'scale': 2},
        {'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 16, 'out_channels': 3, 'num_block': 1},
        {'type': 'SwinIR', 'upscale': 2, 'img_size': 16, 'window_size': 4, 'embed_dim': 16, 'depths': [2],
         'num_heads': [2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffle'},
        {'type': 'DnCNN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_conv': 4},
        {'type': 'NAFNet', 'img_channel': 3, 'width': 8, 'middle_blk_num': 1, 'enc_blk_nums': [1],
         'dec_blk_nums': [1]},
    )
}  # fmt: skip
SCALES = {'MSRResNet': 4, 'RIDNet': 1, 'DnCNN': 1, 'NAFNet': 1}  # the others double the size


def scale_of(name: str) -> int:
    return SCALES.get(name, 2)


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Replaces all parameters, so that what starts at zero, or as the identity, matters too. In eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 0.5 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim else 0.0
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def dense(name: str, seed: int = 0) -> nn.Module:
    """One of the networks as BasicSR builds it, with random weights."""
    torch.manual_seed(seed)
    return randomise(build_network(deepcopy(NETWORKS[name])), seed)


def network_g(name: str, **options: Any) -> dict[str, Any]:
    """Options of a ClassPruning network around one of the networks."""
    return {'type': 'ClassPruning', 'base': deepcopy(NETWORKS[name]), 'candidates': list(CANDIDATES), **options}


def classpruning(name: str, seed: int = 0, **options: Any) -> ClassPruning:
    """A ClassPruning network in eval mode, all parameters random."""
    torch.manual_seed(seed)
    net: ClassPruning = build_network(network_g(name, **options))
    randomise(net, seed)
    net.rank_by_magnitude()
    return net


def int8_network(name: str = 'DnCNN', **options: Any) -> ClassPruning:
    """A network of random weights with a bypass and candidates of 8-bit integers, in units of 4."""
    candidates = ['0:16', '4:16-int8', '8:16-int8', '16:16-int8', '16:16']
    net = classpruning(name, **{'candidates': candidates, 'unit': 4, 'weights': 'own', **options})
    seen = InputRange.covering(-1.0, 2.0)
    with torch.no_grad():
        for _, layer in sparse_layers(net.base):
            layer.reset_candidates()
            for place, candidate in enumerate(layer.int8):
                weight = layer.weights[layer._slots[candidate]]
                scale = largest_scale(weight) * (1 + place / 10)
                layer.set_grid(candidate, Grid(scale, seen.scale, seen.zero))
                weight.copy_(rounded_weight(weight, scale))
    net.forget_subnetworks()
    return net


def write_pictures(folder: Path, count: int = 4, height: int = 40, width: int = 48) -> Path:
    """Colour pictures that differ in how much detail they hold: ``0.png`` is nearly flat, the last one noisy."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.uniform(60, 200, (3, 4, 3)).astype(np.float32)
        picture: np.ndarray = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        picture += rng.standard_normal(picture.shape) * 12 * index
        cv2.imwrite(str(folder / f'{index}.png'), picture.clip(0, 255).astype(np.uint8))
    return folder


def training_options(pictures: Path, name: str = 'EDSR', **train: Any) -> dict[str, Any]:
    """Options of a short training of one of the networks on the CPU; ``train`` adds to its section."""
    scale = scale_of(name)
    degradation = {'type': 'bicubic'} if scale > 1 else {'type': 'noise', 'sigma': [0, 50]}
    return {
        'name': 'tiny',
        'model_type': 'ClassPruningModel',
        'scale': scale,
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {
            'train': {
                'name': 'pictures', 'type': 'DegradedImageDataset', 'dataroot_gt': str(pictures),
                'degradation': degradation, 'gt_size': 8 * scale, 'use_hflip': True, 'use_rot': True,
                'num_worker_per_gpu': 0, 'batch_size_per_gpu': 3,
            },
        },
        'network_g': network_g(name),
        'train': {
            'optim_g': {'type': 'Adam', 'lr': 1e-3},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [5], 'gamma': 0.5},
            'stages': {'supernet': 3, 'classifier': 3, 'joint': 3},
            'pixel_opt': {'type': 'L1Loss'},
            **train,
        },
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 1000},
    }  # fmt: skip


def write_yaml(path: Path, options: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(options))
    return str(path)


def prune(prunable: Path, out: Path, *argv: str) -> int:
    """Runs `classpruning prune` on the fixture's checkpoint; the exit status."""
    network = (str(prunable / 'dense.pth'), '--arch', str(prunable / 'arch.yml'))
    return main(['prune', *network, '--out', str(out), *argv])


def run_python(*args: str, cwd: Path | str = REPOSITORY, timeout: float = 1200, **environment: str):
    """Runs Python in a process of its own, which finds the package and sees no GPU."""
    variables = {
        **os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **environment,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=variables, timeout=timeout, capture_output=True, text=True, check=False
    )


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def in_threads(count: int, work: Callable[[int], Found]) -> list[Found]:
    """What a function returns for 0 to ``count - 1``, each in a thread of its own, all started at once."""
    start = threading.Barrier(count)

    def begin(index: int) -> Found:
        start.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))
