"""Trains a ClassPruning network on images that the model itself degrades, as in Real-ESRGAN."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.utils import DiffJPEG, USMSharp
from basicsr.utils.registry import MODEL_REGISTRY

from basicsr_classpruning.models.classpruning_model import ClassPruningModel
from basicsr_classpruning.models.guarded_model import seed_iteration

_DEGRADING = 1  # keeps the random numbers of the degradation apart from those of the step after it


class _ContiguousJPEG(DiffJPEG):
    """Its images are permuted in memory, which padding on a CPU keeps, and the blur after it cannot view."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(*args, **kwargs).contiguous()


@MODEL_REGISTRY.register()
class ClassPruningRealESRNetModel(ClassPruningModel):
    """ClassPruningModel behind the degradation of BasicSR's RealESRNetModel, for data sets without degraded images.

    The degradation is BasicSR's own function, with its options. Here it runs on any device, draws numbers that depend
    on the seed and the iteration alone, and its pool of pairs is part of a training state.
    """

    degrades = True

    def __init__(self, opt: dict[str, Any]) -> None:
        self.iteration = 0
        self.queue_size = opt.get('queue_size', 180)
        super().__init__(opt)
        self.jpeger = _ContiguousJPEG(differentiable=False).to(self.device)
        self.usm_sharpener = USMSharp().to(self.device)

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        super().update_learning_rate(current_iter, warmup_iter)
        self.iteration = current_iter  # BasicSR tells it before it brings the batch

    def feed_data(self, data: dict[str, Any]) -> None:
        if 'lq' in data:
            super().feed_data(data)
            return
        seed_iteration(self.opt['manual_seed'] + _DEGRADING, self.iteration, self.opt['rank'])
        RealESRNetModel.feed_data(self, data)  # leaves lq and gt
        super().feed_data({'lq': self.lq, 'gt': self.gt})

    @torch.no_grad()
    def _dequeue_and_enqueue(self) -> None:
        """BasicSR's pool of pairs on any device: exchanges the batch for a random one, once the pool is full."""
        count = len(self.lq)
        if not hasattr(self, 'queue_lr'):
            self.queue_lr = self.lq.new_zeros(self.queue_size, *self.lq.shape[1:])
            self.queue_gt = self.gt.new_zeros(self.queue_size, *self.gt.shape[1:])
            self.queue_ptr = 0
        if self.queue_ptr < self.queue_size:
            self.queue_lr[self.queue_ptr : self.queue_ptr + count] = self.lq
            self.queue_gt[self.queue_ptr : self.queue_ptr + count] = self.gt
            self.queue_ptr += count
            return
        order = torch.randperm(self.queue_size).to(self.device)
        self.queue_lr, self.queue_gt = self.queue_lr[order], self.queue_gt[order]
        lq, gt = self.queue_lr[:count].clone(), self.queue_gt[:count].clone()
        self.queue_lr[:count], self.queue_gt[:count] = self.lq, self.gt
        self.lq, self.gt = lq, gt

    def extra_state(self) -> dict[str, Any]:
        pool = {}
        if hasattr(self, 'queue_lr'):
            pool = {'lq': self.queue_lr, 'gt': self.queue_gt, 'filled': self.queue_ptr}
        return {**super().extra_state(), 'pool': pool}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        pool = state['pool']
        fits = pool and len(pool['lq']) == self.queue_size and pool['gt'].shape[-1] == self.opt['gt_size']
        if fits:  # else it has other sizes now, and fills anew
            self.queue_lr, self.queue_gt = pool['lq'].to(self.device), pool['gt'].to(self.device)
            self.queue_ptr = pool['filled']
