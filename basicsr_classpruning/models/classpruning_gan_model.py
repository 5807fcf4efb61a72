"""Trains the candidates of a ClassPruning network against a discriminator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from basicsr_classpruning.checkpoint import read_checkpoint
from basicsr_classpruning.config.training import ClassPruningGANTrain
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.models.adversaries import ADVERSARIES
from basicsr_classpruning.models.classpruning_model import ClassPruningModel
from basicsr_classpruning.models.guarded_model import GuardedSRModel


@MODEL_REGISTRY.register()
class ClassPruningGANModel(ClassPruningModel):
    """Adds to the restoration losses of ClassPruningModel that of a discriminator, as SRGANModel and ESRGANModel do.

    Wherever candidates learn, they learn from pixel, perceptual and adversarial losses; after each such step the
    discriminator learns from what they restored. In the classifier stage it rests: what the classifier predicts is the
    squared error, as in any other training.
    """

    train_schema = ClassPruningGANTrain
    unwatched = ('l_gan',)

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        net = build_network(self.opt['network_d'])
        self.print_network(net)
        self._load_discriminator(net)
        net = net.to(self.device).train()
        # All of its parameters are in use whenever it learns.
        self.net_d = self.distribute(net, False) if self.opt['dist'] else net
        loss = build_loss(train_opt['gan_opt']).to(self.device)
        self.adversary = ADVERSARIES[train_opt['adversary']](self.net_d, loss)
        super().init_training_settings()

    def _load_discriminator(self, net: nn.Module) -> None:
        paths = self.opt['path']
        path = paths.get('pretrain_network_d')
        if path is None:
            return
        get_root_logger().info(f'Loading {net.__class__.__name__} from {path}.')
        params = read_checkpoint(path).params(paths.get('param_key_d', 'params'))
        try:
            GuardedSRModel.load_params(self, net, params, paths.get('strict_load_d', True))
        except UserError as error:
            raise UserError(f'{path}: {error}') from None

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        options = dict(self.opt['train']['optim_d'])
        self.optimizer_d = self.get_optimizer(options.pop('type'), self.net_d.parameters(), **options)
        self.optimizers.append(self.optimizer_d)

    def restoration_terms(self, output: Tensor, gt: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield from super().restoration_terms(output, gt)
        # BasicSR's discriminators view features as vectors, which those of images in channels-last order cannot be.
        output, gt = output.contiguous(), gt.contiguous()
        self.net_d.requires_grad_(False)
        self.judged = output.detach(), gt
        yield 'l_gan', self.adversary.generator_term(output, gt)

    def optimize_parameters(self, current_iter: int) -> None:
        super().optimize_parameters(current_iter)
        if self.deal is not None and not self.skipped:  # images were restored, and can be learned from
            self._teach_discriminator(current_iter)

    def _teach_discriminator(self, current_iter: int) -> None:
        self.net_d.requires_grad_(True)
        self.optimizer_d.zero_grad()
        losses = {}
        for name, loss in self.adversary.discriminator_terms(*self.judged):
            losses[name] = loss.detach()
            loss.backward()
        del self.judged
        what = ', '.join(name for name, loss in losses.items() if not math.isfinite(loss))
        if self._any_process(bool(what)):
            self._bad_step(f'loss term {what or "of another process"} is not finite', current_iter)
            return
        limit = self.opt['train']['grad_clip'] or float('inf')
        norm = torch.nn.utils.clip_grad_norm_(self.net_d.parameters(), limit)
        if torch.isfinite(norm):
            self.optimizer_d.step()
        else:
            self._bad_step(f'the gradient of {" + ".join(losses)} is not finite', current_iter)
        self.log_dict.update(self.reduce_loss_dict(losses))

    def save(self, epoch: int, current_iter: int) -> None:
        self.save_network(self.net_d, 'net_d', current_iter)
        super().save(epoch, current_iter)  # the training state last, with which a checkpoint counts

    def network_options(self, net_label: str = 'net_g') -> dict[str, Any]:
        if net_label == 'net_g':
            return super().network_options()
        return GuardedSRModel.network_options(self, net_label)
