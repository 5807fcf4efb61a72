"""What would stop a run at a later step, found before it writes anything."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from os import path as osp
from typing import Any

import torch
from basicsr.archs.vgg_arch import VGG_PRETRAIN_PATH
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

from basicsr_classpruning.archs.base_network import declared_channels
from basicsr_classpruning.config.schema import KNOWN_MODELS
from basicsr_classpruning.data.checks import Needs, check_dataset
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.models.guarded_model import GuardedSRModel
from basicsr_classpruning.models.validation import needs_truth


def check_run(opt: Mapping[str, Any]) -> list[str]:
    """Checks what a run needs beside its options: data sets, optional packages, downloaded weights.

    Returns lines to be logged. Raises UsageError or UserError, one line that begins with the key.
    """
    _check_logger(opt.get('logger') or {}, opt['name'])
    _check_perceptual_weights(opt.get('train') or {})
    notices = []
    for phase, options in opt['datasets'].items():
        notices += check_dataset(options, f'datasets.{phase}', _needs(opt, options['phase']), opt['manual_seed'])
    return notices


def _needs(opt: Mapping[str, Any], phase: str) -> Needs:
    model = MODEL_REGISTRY.get(opt['model_type'])
    degrades = phase == 'train' and getattr(model, 'degrades', False) and opt.get('high_order_degradation', True)
    ours = opt['model_type'] in KNOWN_MODELS
    network = opt['network_g']['base'] if opt['network_g']['type'] == 'ClassPruning' else opt['network_g']
    gt = None
    if phase == 'train':
        gt = 'training' if ours else None
    else:
        metrics = ((opt.get('val') or {}).get('metrics') or {}).items()
        gt = next((f'val.metrics.{name}' for name, options in metrics if needs_truth(options)), None)
    return Needs(
        scale=opt['scale'],
        channels=declared_channels(ARCH_REGISTRY.get(network['type']), network) if ours else None,
        lq=ours and not degrades,
        gt=gt,
        crops=issubclass(model, GuardedSRModel),
    )


def _check_logger(logger: Mapping[str, Any], name: str) -> None:
    if 'debug' in name:
        return  # BasicSR leaves both out
    if (logger.get('wandb') or {}).get('project') is not None:
        _check_package('wandb', 'wandb', 'logger.wandb.project: null')
    if logger.get('use_tb_logger'):
        _check_package('torch.utils.tensorboard', 'tensorboard', 'logger.use_tb_logger: false')


def _check_package(module: str, package: str, instead: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        key = instead.partition(':')[0]
        raise UsageError(
            f'{key}: {package} cannot be imported ({error}); pip install {package}, or {instead}'
        ) from None


def _check_perceptual_weights(train: Mapping[str, Any]) -> None:
    """Fetches the weights of a perceptual loss's VGG, as torchvision would do later, unless they are there."""
    options = train.get('perceptual_opt')
    if not options:
        return
    loss = LOSS_REGISTRY.get(options['type'])
    if not (isinstance(loss, type) and issubclass(loss, PerceptualLoss)) or osp.exists(VGG_PRETRAIN_PATH):
        return
    kind = options.get('vgg_type', inspect.signature(loss).parameters['vgg_type'].default)
    models = importlib.import_module('torchvision.models')
    try:
        url = models.get_model_weights(kind).DEFAULT.url
    except ValueError:
        raise UsageError(f'train.perceptual_opt.vgg_type: {kind!r} is not allowed; vgg19, vgg16, …') from None
    name = osp.basename(url)
    folder = osp.join(torch.hub.get_dir(), 'checkpoints')
    path = osp.join(folder, name)
    if osp.exists(path):
        return
    try:
        os.makedirs(folder, exist_ok=True)
        torch.hub.download_url_to_file(url, path, hash_prefix=name.rpartition('-')[2].removesuffix('.pth'))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f'train.perceptual_opt: the weights of {kind} cannot be downloaded ({error}); '
            f'put {url} into {folder}, or leave perceptual_opt out'
        ) from None
