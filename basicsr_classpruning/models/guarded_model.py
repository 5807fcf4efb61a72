"""BasicSR's SRModel with what a long run needs: mixed precision, exact resuming, whole checkpoints, a NaN guard."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Iterator
from os import path as osp
from typing import Any

import numpy as np
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, imwrite, tensor2img
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from basicsr_classpruning.archs.adapters import fitting_params
from basicsr_classpruning.archs.base_network import load_fitting, load_what_fits
from basicsr_classpruning.benchmark.metrics import mean_of_finite, shown
from basicsr_classpruning.checkpoint import read_checkpoint, write_checkpoint
from basicsr_classpruning.config.sections import filled_in
from basicsr_classpruning.config.training import GuardedTrain, TestVal, Val
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.models.explosion import ExplosionWatch
from basicsr_classpruning.models.resuming import (
    differences,
    is_rescheduled,
    options_to_keep,
    plain,
    replay_schedule,
    with_own_schedule,
)
from basicsr_classpruning.models.validation import measure, needs_truth
from basicsr_classpruning.safe_files import save_file

_AMP_TYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
_MAX_SKIPPED = 20  # bad steps in a row after which skipping them is no longer a rescue


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seeds Python, NumPy and torch for one iteration, so that a resumed run draws what the first one would have."""
    words = np.random.SeedSequence((seed, iteration, rank)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def averaging_decay(decay: float, step: int) -> float:
    """Decay with which a step, from 1, enters an exponential average that does not know where it began.

    BasicSR's average begins with the first weights and holds decay^t of them after t steps: with 0.999 more than a
    fifth after 1,500 steps, which costs a pruned network what it has learnt since. With this decay each step weighs
    what it would in an endless average, but the weights of all steps add up to 1, as in Adam's bias correction (Kingma
    and Ba, ICLR 2015, section 3).
    """
    return decay * (1 - decay ** (step - 1)) / (1 - decay**step)


def _has_bf16() -> bool:
    """Whether oneDNN has bf16 convolutions for this processor; torch emulates them on all others."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class BadNumbers(UserError):
    """A loss, gradient or weight that is NaN or infinite, or a loss that has exploded."""


@MODEL_REGISTRY.register()
class GuardedSRModel(SRModel):
    """Trains a network as SRModel does, and adds ``train.amp``, ``train.channels_last``, ``train.grad_clip`` and
    ``train.on_nan``; checkpoints are written whole or not at all, and a run that was stopped goes on bit for bit.
    """

    net_g: nn.Module
    lq: Tensor
    gt: Tensor
    train_schema: type[GuardedTrain] = GuardedTrain
    """What ``train`` may hold, and its defaults."""
    val_schemas: tuple[type[TestVal], type[TestVal]] = (Val, TestVal)
    """What ``val`` may hold in training and in testing, and its defaults."""
    degrades = False
    """Whether batches are degraded here, for a training set that brings clean images alone."""
    unwatched: tuple[str, ...] = ()
    """Loss terms that may take any value without having exploded."""

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt['is_train']:
            opt['train'] = filled_in(self.train_schema, opt['train'], 'train')
            self.options_at_start = options_to_keep(opt)  # BasicSR takes some out when it uses them
        if opt.get('val'):
            opt['val'] = filled_in(self.val_schemas[not opt['is_train']], opt['val'], 'val')
        super().__init__(opt)

    # ---------------------------------------------------------------- set-up

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        self.amp_type = _AMP_TYPES.get(train_opt['amp'])
        if self.amp_type is torch.bfloat16 and self.device.type == 'cpu' and not _has_bf16():
            get_root_logger().warning('train.amp: this processor would emulate bf16; trained in single precision')
            self.amp_type = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train_opt['amp'] == 'fp16')
        self.skipped = 0
        self.explosions = ExplosionWatch()
        super().init_training_settings()
        for net in self._networks():
            if train_opt['channels_last']:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _networks(self) -> list[nn.Module]:
        nets = [self.get_bare_model(self.net_g)]
        return [*nets, self.net_g_ema] if hasattr(self, 'net_g_ema') else nets

    def model_to_device(self, net: nn.Module) -> nn.Module:
        net = net.to(self.device)
        return self.distribute(net, self.opt.get('find_unused_parameters', False)) if self.opt['dist'] else net

    def distribute(self, net: nn.Module, find_unused_parameters: bool) -> nn.Module:
        """Wraps a network for a distributed run, on GPUs or on CPUs."""
        devices = [torch.cuda.current_device()] if self.device.type == 'cuda' else None
        return DistributedDataParallel(net, device_ids=devices, find_unused_parameters=find_unused_parameters)

    # -------------------------------------------------------------- training

    def feed_data(self, data: dict[str, Any]) -> None:
        super().feed_data(data)
        if self.is_train and self.opt['train']['channels_last']:
            self.lq = self.lq.contiguous(memory_format=torch.channels_last)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision as ``train.amp`` says, where the device has it."""
        if self.amp_type is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_type)

    def optimize_parameters(self, current_iter: int) -> None:
        seed_iteration(self.opt['manual_seed'], current_iter, self.opt['rank'])
        self.optimizer_g.zero_grad()
        losses: OrderedDict[str, Tensor] = OrderedDict(self.loss_terms(current_iter))
        if self.step(losses, current_iter) and self.ema_decay > 0:
            self.model_ema(decay=averaging_decay(self.ema_decay, self.steps_to_average(current_iter)))
        self.log_dict = self.reduce_loss_dict(OrderedDict((name, loss.detach()) for name, loss in losses.items()))

    def steps_to_average(self, current_iter: int) -> int:
        """How many steps, the last of them this one, the averaged weights are to hold."""
        return current_iter

    def loss_terms(self, current_iter: int) -> Iterator[tuple[str, Tensor]]:
        """Yields the name and value of every term of this step's loss."""
        with self.autocast():
            self.output = self.net_g(self.lq)
        yield from self.restoration_terms(self.output.float(), self.gt)

    def restoration_terms(self, output: Tensor, gt: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The losses that compare the output ``(B, C, H, W)`` with the ground truth of the same shape."""
        if self.cri_pix:
            yield 'l_pix', self.cri_pix(output, gt)
        if self.cri_perceptual:
            perceptual, style = self.cri_perceptual(output, gt)
            if perceptual is not None:
                yield 'l_percep', perceptual
            if style is not None:
                yield 'l_style', style

    def step(self, losses: dict[str, Tensor], current_iter: int) -> bool:
        """One optimiser step on the sum of the losses; returns False where it was skipped as ``train.on_nan`` says."""
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        what = self._what_is_bad(values)
        if self._any_process(bool(what)):
            return self._bad_step(what or 'a loss term of another process is not finite or has exploded', current_iter)
        total: Any = sum(losses.values())
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer_g)
        parameters = [p for group in self.optimizer_g.param_groups for p in group['params'] if p.grad is not None]
        limit = self.opt['train']['grad_clip'] or float('inf')
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if not torch.isfinite(norm) and not self.scaler.is_enabled():
            return self._bad_step(f'the gradient of {" + ".join(losses)} is not finite', current_iter)
        self.scaler.step(self.optimizer_g)  # with fp16 it skips overflows by itself and lowers its scale
        self.scaler.update()
        self.explosions.update(self._watched(values))
        self.skipped = 0
        return True

    def _what_is_bad(self, losses: dict[str, float]) -> str:
        """Names the loss terms that must not be learned from; empty where there are none."""
        bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if bad:
            return f'loss term {", ".join(bad)} is not finite'
        exploded = self.explosions.exploded(self._watched(losses))
        if exploded:
            terms = ', '.join(f'{name} ({losses[name]:.2g})' for name in exploded)
            return f'loss term {terms} has exploded, from {self.explosions.level:.2g} for all terms together'
        return ''

    def _watched(self, losses: dict[str, float]) -> dict[str, float]:
        return {name: loss for name, loss in losses.items() if name not in self.unwatched}

    def _any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process of a distributed run: all must skip or none."""
        if not self.opt['dist']:
            return flag
        total = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(total)
        return bool(total > 0)

    def _bad_step(self, what: str, current_iter: int) -> bool:
        self.optimizer_g.zero_grad()
        self.skipped += 1
        message = f'iteration {current_iter}: {what}{self.describe_step()}'
        if self.opt['train']['on_nan'] == 'skip' and self.skipped <= _MAX_SKIPPED:
            get_root_logger().warning(f'{message}; this step is skipped')
            return False
        again = f', the {self.skipped}th step in a row' if self.skipped > 1 else ''
        raise BadNumbers(f'{message}{again}: training stopped; the last checkpoint is untouched')

    def describe_step(self) -> str:
        """What a report of a bad step should add, for example the candidate."""
        return ''

    # ------------------------------------------------------------ validation

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """Validates as SRModel does, but for means over finite values only, of images in the part that output and
        ground truth have in common; metrics that need no ground truth are measured without.
        """
        name, metrics = dataloader.dataset.opt['name'], self.opt['val']['metrics'] or {}
        values: dict[str, list[float]] = {key: [] for key in metrics}
        for data in tqdm(dataloader, unit='image', disable=not self.opt['val']['pbar']):
            path = data['lq_path'][0]
            if 'gt' not in data and any(map(needs_truth, metrics.values())):
                raise UserError(f'data set {name}: has no clean pictures (gt), with which val.metrics compare')
            self.lq = data['lq'].to(self.device)
            self.test()
            restored = tensor2img([self.output.detach().cpu()])
            del self.lq, self.output  # a large image's memory, before the next one's
            truth = tensor2img([data['gt']]) if 'gt' in data else None
            if save_img:
                self.save_picture(restored, path, name, current_iter)
            for key, options in metrics.items():
                values[key].append(measure(restored, truth, options, path))
        if metrics:
            self._log_means(values, name, current_iter, tb_logger)

    def _log_means(self, values: dict[str, list[float]], name: str, current_iter: int | str, tb_logger: Any) -> None:
        self._initialize_best_metric_results(name)
        lines = [f'Validation {name}']
        for key, of_pictures in values.items():
            mean, equal = mean_of_finite(of_pictures), sum(map(math.isinf, of_pictures))
            if mean is not None:
                self._update_best_metric_result(name, key, mean, current_iter)
                if tb_logger:
                    tb_logger.add_scalar(f'metrics/{name}/{key}', mean, current_iter)
            best = self.best_metric_results[name][key]
            text = f'{key}: {shown(mean, equal)}'
            lines.append(f'\t # {text}\tBest: {best["val"]:.4f} @ {best["iter"]} iter')
        get_root_logger().info('\n'.join(lines))

    def save_picture(self, image: np.ndarray, path: str, dataset: str, current_iter: int | str) -> None:
        """Saves a restored image ``(H, W, C)`` uint8 BGR where BasicSR's models save theirs."""
        folder = self.opt['path']['visualization']
        name = osp.splitext(osp.basename(path))[0]
        if self.is_train:
            target = osp.join(folder, name, f'{name}_{current_iter}.png')
        else:
            target = osp.join(folder, dataset, f'{name}_{self.opt["val"]["suffix"] or self.opt["name"]}.png')
        imwrite(image, target)

    # ----------------------------------------------------------- checkpoints

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        checkpoint = read_checkpoint(load_path)
        params = checkpoint.params(param_key)
        get_root_logger().info(f'Loading {net.__class__.__name__} from {load_path}.')
        try:
            self.load_params(self.get_bare_model(net), params, strict)
        except UserError as error:
            raise UserError(f'{load_path}: {error}') from None

    def load_params(self, net: nn.Module, params: dict[str, Tensor], strict: bool) -> None:
        """Loads a state dict, or, where not ``strict``, what fits of it; raises UserError where it does not fit."""
        load = load_fitting if strict else load_what_fits
        load(net, fitting_params(self.opt['network_g'], params, net.state_dict()))

    @master_only
    def save_network(self, net: Any, net_label: str, current_iter: int, param_key: Any = 'params') -> None:
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        states = {key: self.state_to_save(self.get_bare_model(each), current_iter) for key, each in zip(keys, nets)}
        label = 'latest' if current_iter == -1 else current_iter
        for name, value in itertools.chain.from_iterable(state.items() for state in states.values()):
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise BadNumbers(
                    f'iteration {label}: the weight {name} is not finite: training stopped, and this checkpoint is not '
                    'saved; the last one is untouched'
                )
        path = osp.join(self.opt['path']['models'], f'{net_label}_{label}.pth')
        write_checkpoint(path, states, self.network_options(net_label))

    def state_to_save(self, net: nn.Module, current_iter: int) -> dict[str, Tensor]:
        """What is saved of a network in an iteration; −1 is the end of the training."""
        return net.state_dict()

    def network_options(self, net_label: str = 'net_g') -> dict[str, Any]:
        """The options that rebuild a network, as plain values."""
        return plain(self.opt[net_label.replace('net_', 'network_', 1)])

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'scaler': self.scaler.state_dict(),
            'explosions': self.explosions.state_dict(),
            'best_metric_results': getattr(self, 'best_metric_results', {}),
            'options': self.options_at_start,
            **self.extra_state(),
        }
        save_file(state, osp.join(self.opt['path']['training_states'], f'{current_iter}.state'))

    def extra_state(self) -> dict[str, Any]:
        """What a subclass wants to find again when a run is resumed."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes what ``extra_state`` gave, from a whole training state."""

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Goes on from a training state. Options that have changed since count, and are logged in one line: learning
        rates are those that the options' own schedule has at this iteration. Raises UserError for a state that does
        not fit the model.
        """
        try:
            changed = list(differences(resume_state.get('options') or self.options_at_start, self.options_at_start))
            if is_rescheduled(self, changed, resume_state):
                self.replay_schedule(resume_state)
                resume_state = with_own_schedule(self, resume_state)
                changed = changed or [('train.scheduler', 'another one')]
            for optimizer, state in zip(self.optimizers, resume_state['optimizers']):
                _check_optimizer_state(optimizer, state)
            super().resume_training(resume_state)
            if resume_state.get('scaler'):  # empty unless that run used fp16
                self.scaler.load_state_dict(resume_state['scaler'])
            if 'explosions' in resume_state:
                self.explosions.load_state_dict(resume_state['explosions'])
            self.load_extra_state(resume_state)
        except Exception as error:  # a state of another run, or a damaged one, may lack anything
            path, reason = self.opt['path']['resume_state'], f'{type(error).__name__}: {error}'.splitlines()[0]
            raise UserError(f'{path}: belongs to a run with other options ({reason})') from None
        if resume_state.get('best_metric_results'):
            self.best_metric_results = resume_state['best_metric_results']
        if changed:
            text = '; '.join(f'{key} {values}' for key, values in changed)
            get_root_logger().warning(f'Resuming with options that have changed: {text}')

    def replay_schedule(self, resume_state: dict[str, Any]) -> None:
        """Brings the learning rates of this new model to where its options have them at the state's iteration."""
        replay_schedule(self, resume_state['iter'], self.opt['train']['warmup_iter'])


def _check_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raises ValueError for a state with which the optimiser would fail in its next step."""
    for given, own in zip(state['param_groups'], optimizer.state_dict()['param_groups'], strict=True):
        for key, value in own.items():
            kind = (int, float) if isinstance(value, (int, float)) else type(value)
            if not isinstance(given[key], kind):
                raise ValueError(f'param_groups: {key} is a {type(given[key]).__name__}')
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    for number, values in state['state'].items():
        for key, value in values.items():
            if torch.is_tensor(value) and value.shape not in (parameters[number].shape, ()):
                raise ValueError(f'{key} of parameter {number} has shape {tuple(value.shape)}')
