"""Trains and validates ClassPruning networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from os import path as osp
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn import functional

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.checkpoint import read_checkpoint
from basicsr_classpruning.config.training import ClassPruningTestVal, ClassPruningTrain, ClassPruningVal
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.inference.patched import NotPatchable, patchable_graph
from basicsr_classpruning.losses.classpruning_loss import batch_mean
from basicsr_classpruning.models.collapse import CollapseWatch
from basicsr_classpruning.models.guarded_model import GuardedSRModel
from basicsr_classpruning.models.masks import MaskSchedule
from basicsr_classpruning.models.memory import ErrorMemory
from basicsr_classpruning.models.stages import Batch, Deal, Schedule
from basicsr_classpruning.models.validation import Report, evaluate
from basicsr_classpruning.routing.errors import relative_errors
from basicsr_classpruning.routing.ladder import Ladder, LadderError
from basicsr_classpruning.sparsity.mixture import NOTHING

_MAX_RECOVERIES = 3  # resets of the classifier after which a collapse stops the run
_CLASSIFIER_BATCH = 32  # images of the memory in a step
_LOSSES = {'budget': 'budget_opt', 'class': 'class_opt', 'distill': 'distill_opt', 'difficulty': 'difficulty_opt'}
_RESTART_RATE = 0.3  # factor of the classifier's learning rate at each reset


class TrainingPass(nn.Module):
    """Everything that gets gradients in one step, in one forward pass, as DistributedDataParallel wants it."""

    def __init__(self, net: ClassPruning) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, to_restore: Tensor | None, classes: Tensor | None, to_score: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Restores images with the candidates given, and scores images; each may be left out.

        Returns restored images ``(B, C', H · scale, W · scale)``, predicted errors of the images' parts
        ``(B, K, h, w)``, and class probabilities ``(B, K)``. A loss that uses the errors must use the probabilities
        too, as DistributedDataParallel waits for the gradient of every parameter behind an output; and it knows of no
        parameter that is used outside this method.
        """
        restored = None if to_restore is None else self.net(to_restore, classes)
        if to_score is None:
            return restored, None, None
        # In full precision, as when it decides: it costs next to nothing, and its exponentials overflow fp16.
        with torch.autocast(to_score.device.type, enabled=False):
            errors = self.net.error_map(to_score)
            return restored, errors, self.net.probabilities(relative_errors(errors.mean((2, 3))))


def _options_at_start(opt: Mapping[str, Any]) -> dict[str, Any]:
    """``network_g`` of the checkpoint that a network starts from; empty without such a one."""
    path = opt['path'].get('pretrain_network_g')
    return (path and read_checkpoint(path).network_g) or {}


def _layers_at_start(opt: Mapping[str, Any]) -> dict[str, Any]:
    """The per-layer patterns of the ClassPruning checkpoint that a network starts from; none without such a one."""
    path, network = opt['path'].get('pretrain_network_g'), _options_at_start(opt)
    if _sparse_names(network.get('candidates')) != _sparse_names(opt['network_g'].get('candidates')):
        return {}  # patterns of other candidates are none of this network's
    layers = network.get('layers') or {}
    if not isinstance(layers, dict) or not all(isinstance(ladder, list) for ladder in layers.values()):
        raise UserError(f'{path}: network_g.layers: damaged: wanted lists of patterns by the names of layers')
    return layers


def _fp32_at_start(opt: Mapping[str, Any]) -> list[str]:
    """The layers that candidates of 8-bit integers compute in float32 in that checkpoint."""
    named = _options_at_start(opt).get('fp32') or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        path = opt['path'].get('pretrain_network_g')
        raise UserError(f'{path}: network_g.fp32: damaged: wanted a list of regular expressions')
    return named


def _sparse_names(candidates: Any) -> list[str]:
    """The sparse candidates of a ladder, which ``layers`` speaks of; none of what is no ladder."""
    try:
        return [candidate.name for candidate in Ladder.parse(candidates).sparse]
    except (LadderError, TypeError):
        return []


@MODEL_REGISTRY.register()
class ClassPruningModel(GuardedSRModel):
    """Runs the stages of the training strategy (supernet, classifier, joint) on a ClassPruning network.

    A static N:M network, or a dense one, is trained with it too: give a single candidate.
    """

    net_g: ClassPruning
    net_g_ema: ClassPruning
    train_schema: type[ClassPruningTrain] = ClassPruningTrain
    val_schemas = (ClassPruningVal, ClassPruningTestVal)

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt['network_g'].get('type') != 'ClassPruning':
            raise UsageError(
                f'network_g.type: {opt["network_g"].get("type")!r} is not allowed with model_type ClassPruningModel; '
                'ClassPruning (or train the dense network with model_type GuardedSRModel)'
            )
        if opt['network_g'].get('layers') is None:
            opt['network_g']['layers'] = _layers_at_start(opt)
        if opt['network_g'].get('fp32') is None:
            opt['network_g']['fp32'] = _fp32_at_start(opt)
        super().__init__(opt)

    # ---------------------------------------------------------------- set-up

    def model_to_device(self, net: nn.Module) -> nn.Module:
        return net.to(self.device)  # the training pass is what gets distributed

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        self.schedule = Schedule(train_opt)
        if train_opt['patch'] is not None:
            try:
                patchable_graph(self.net_g.routed())
            except NotPatchable as error:
                raise UsageError(f'train.patch: {error}; leave it out') from None
        self.decay = train_opt['srste_decay']
        interval = train_opt['mask_interval'] if self.net_g.options['weights'] == 'shared' else 0
        self.masks = MaskSchedule(interval, train_opt['total_iter'])
        self.watch = CollapseWatch(len(self.net_g.candidates))
        self.memory = ErrorMemory()
        self.recoveries = 0
        self.losses = {
            name: build_loss(train_opt[key]).to(self.device)
            for name, key in _LOSSES.items()
            if train_opt[key] is not None
        }
        if train_opt['freeze_dense']:
            self.net_g.freeze_dense()
        super().init_training_settings()
        training_pass = TrainingPass(self.net_g)
        # Which parameters a step uses depends on the stage and on the classes of the images at hand.
        self.training_pass = self.distribute(training_pass, True) if self.opt['dist'] else training_pass

    def setup_optimizers(self) -> None:
        options = dict(self.opt['train']['optim_g'])
        kind = options.pop('type')
        rate = self.opt['train']['classifier_lr']
        groups = [
            {'params': [*self.net_g.base.parameters(), *self.net_g.others.parameters()]},
            {'params': list(self.net_g.classifier.parameters()), 'lr': rate},
            # One number that has to cross orders of magnitude within a stage.
            {'params': [self.net_g.log_price], 'lr': 2 * rate},
        ]
        self.optimizer_g = self.get_optimizer(kind, groups, **options)
        self.optimizers.append(self.optimizer_g)

    def load_params(self, net: nn.Module, params: dict[str, Tensor], strict: bool) -> None:
        net.start_from(params, strict)  # type: ignore[operator]

    def state_to_save(self, net: nn.Module, current_iter: int) -> dict[str, Tensor]:
        # What a run goes on from keeps the digits that rounding drops; what is left of a training is small.
        state = super().state_to_save(net, current_iter)
        if current_iter == -1 and isinstance(net, ClassPruning):
            state |= net.rounded_weights()
        return state

    def network_options(self, net_label: str = 'net_g') -> dict[str, Any]:
        return self.net_g.options

    # -------------------------------------------------------------- training

    def loss_terms(self, current_iter: int) -> Iterator[tuple[str, Tensor]]:
        self.stage = stage = self.schedule.stage(current_iter)
        if stage.candidates_learn and self.masks.renewed_in(current_iter):
            self.net_g.rank_by_magnitude()
        self._measure_errors(stage.to_measure(len(self.lq), len(self.memory)))
        batch = Batch(self.lq, current_iter, self.opt['rank'], self.opt['world_size'])
        self.deal = stage.deal(self.net_g, batch)
        to_restore, candidates = (
            (None, None) if self.deal is None else (self.lq[self.deal.images], self.deal.candidates)
        )
        to_score, errors = self.memory.sample(_CLASSIFIER_BATCH) if stage.classifier_learns else (None, None)
        with self.autocast():
            output, predicted, probabilities = self.training_pass(to_restore, candidates, to_score)
        if self.deal is not None:
            yield from self._restoration(output, self.deal)
        if errors is not None:
            yield from self._classifier_terms(predicted, probabilities, errors)

    def _restoration(self, output: Tensor, deal: Deal) -> Iterator[tuple[str, Tensor]]:
        """The terms of the images that were dealt and restored."""
        output, truth = output.float(), self.gt[deal.images]
        # No pixel counts that another one only reads for its border, or that nothing restores.
        self.output = output if deal.used is None else torch.where(deal.used, output, truth)
        yield from self.restoration_terms(self.output, truth)
        if 'distill' in self.losses:
            with torch.no_grad(), self.autocast():
                teacher = self.net_g.run_sparse(self.lq, None).float()[deal.images]
            counted = output if deal.used is None else torch.where(deal.used, output, teacher)
            yield 'l_distill', self.losses['distill'](counted, teacher)
        if deal.by_all:
            self._remember(
                [
                    deal.outputs_of(candidate, self.output.detach())
                    if candidate in self.net_g.learners
                    else self._restored(candidate, deal.by_all)
                    for candidate in range(len(self.net_g.candidates))
                ]
            )

    def _measure_errors(self, images: int) -> None:
        """Runs every candidate on the batch's first ``images``, and remembers their errors."""
        if images:
            self._remember([self._restored(candidate, images) for candidate in range(len(self.net_g.candidates))])

    @torch.no_grad()
    def _restored(self, candidate: int, images: int) -> Tensor:
        """What a candidate makes of the batch's first ``images``; mixed precision is for those that learn in it."""
        with self.autocast() if candidate in self.net_g.learners else contextlib.nullcontext():
            return self.net_g.run_sparse(self.lq[:images], candidate)

    @torch.no_grad()
    def _remember(self, outputs: Sequence[Tensor]) -> None:
        """Keeps the errors of every candidate's outputs ``(B, C, H, W)`` for the first B images of the batch.

        Their mean squares in the parts that the classifier knows, of images as they would be saved: ``(B, K, h, w)``.
        """
        count = len(outputs[0])
        height, width = self.net_g.error_map(self.lq[:1]).shape[2:]
        squares = [(output.float().clamp(0, 1) - self.gt[:count]).square().mean(1, keepdim=True) for output in outputs]
        errors = [functional.adaptive_avg_pool2d(square, (height, width)) for square in squares]
        self.memory.add(self.lq[:count], torch.cat(errors, dim=1))

    def _classifier_terms(
        self, predicted: Tensor, probabilities: Tensor, errors: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        costs = self.net_g.costs()
        # Without the two terms below nothing else depends on the price, but its gradient is waited for.
        yield 'l_difficulty', self.losses['difficulty'](predicted, errors) + 0 * probabilities.sum()
        if 'budget' in self.losses:
            yield 'l_budget', self.losses['budget'](probabilities, costs)
        if 'class' in self.losses:
            yield 'l_class', self.losses['class'](probabilities)
        chosen = functional.one_hot(probabilities.argmax(dim=1), len(costs))
        self.watch.update(batch_mean(chosen.float()))

    def optimize_parameters(self, current_iter: int) -> None:
        # The decay is added to a gradient that fp16 training has scaled.
        self.net_g.selection.decay = self.decay * self.scaler.get_scale()
        super().optimize_parameters(current_iter)
        self.log_dict.update(self._figures())
        if self.stage.needs_variety and self.watch.collapsed and not self._budget_asks_for_one_class():
            self._handle_collapse(current_iter)

    def _figures(self) -> dict[str, float]:
        """What the log and TensorBoard are told beside the losses."""
        figures: dict[str, float] = {'train/stage': self.schedule.number(self.stage)}
        if self.watch.steps:  # the classifier has begun to learn
            figures['train/average_macs'] = float(self.watch.shares @ self.net_g.costs().cpu())
            for name, share in zip(self.net_g.candidates, self.watch.shares.tolist()):
                figures[f'train/share/{name}'] = share
        return figures

    def _budget_asks_for_one_class(self) -> bool:
        costs = self.net_g.costs()
        target = self.losses['budget'].target if 'budget' in self.losses else 1.0
        return not costs[0] * 1.02 < target < costs[-1] * 0.98

    def _handle_collapse(self, current_iter: int) -> None:
        """Warns, starts the classifier afresh or stops, as ``train.on_collapse`` says."""
        shares = ', '.join(f'{name} {share:.1%}' for name, share in zip(self.net_g.candidates, self.watch.shares))
        message = f'iteration {current_iter}: the classifier has collapsed to one class ({shares})'
        action = self.opt['train']['on_collapse']
        if action == 'stop' or (action == 'recover' and self.recoveries >= _MAX_RECOVERIES):
            raise UserError(f'{message}: training stopped; try a smaller train.classifier_lr')
        get_root_logger().warning(message + ('; it starts afresh' if action == 'recover' else ''))
        self.watch.restart()
        if action == 'recover':
            self.recoveries += 1
            self._restart_classifier()

    def _restart_classifier(self) -> None:
        self.net_g.restart_routing()
        for parameter in (*self.net_g.classifier.parameters(), self.net_g.log_price):
            if self.opt['dist']:
                torch.distributed.broadcast(parameter.data, 0)
            self.optimizer_g.state.pop(parameter, None)
        self._slow_classifier_down()  # what made it collapse once would do so again

    def _slow_classifier_down(self) -> None:
        for group in self.optimizer_g.param_groups[1:]:
            group['lr'] *= _RESTART_RATE
            group['initial_lr'] *= _RESTART_RATE
        for scheduler in self.schedulers:
            scheduler.base_lrs[1:] = [rate * _RESTART_RATE for rate in scheduler.base_lrs[1:]]

    def replay_schedule(self, resume_state: dict[str, Any]) -> None:
        super().replay_schedule(resume_state)
        for _ in range(resume_state['recoveries']):
            self._slow_classifier_down()

    def steps_to_average(self, current_iter: int) -> int:
        return self.masks.steps_since(current_iter)

    def model_ema(self, decay: float = 0.999) -> None:
        super().model_ema(decay)
        with torch.no_grad():
            averaged = dict(self.net_g_ema.named_buffers())
            for name, buffer in self.net_g.named_buffers():
                averaged[name].copy_(buffer)  # the masks in use, without which the averaged weights mean nothing
        self.net_g_ema.forget_subnetworks()

    def describe_step(self) -> str:
        if self.deal is None:
            return f' (stage {self.stage})'
        used = [place for place in self.deal.candidates.unique().tolist() if place != NOTHING]
        names = [self.net_g.candidates[place] for place in used]
        return f' (stage {self.stage}, candidates {", ".join(names)})'

    def extra_state(self) -> dict[str, Any]:
        return {
            'losses': {name: loss.state_dict() for name, loss in self.losses.items()},
            'watch': self.watch.state_dict(),
            'memory': self.memory.state_dict(),
            'recoveries': self.recoveries,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        for name, loss in self.losses.items():
            if name in state['losses']:  # a term added since starts afresh
                loss.load_state_dict(state['losses'][name])
        self.watch.load_state_dict(state['watch'])
        self.memory.load_state_dict(state['memory'], self.device)
        self.recoveries = state['recoveries']

    # ------------------------------------------------------------ validation

    def network_for_testing(self) -> ClassPruning:
        """The averaged network where there is one."""
        return getattr(self, 'net_g_ema', self.net_g)

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """Validates the routed network, every budget in ``val.budgets`` and every candidate on one data set.

        The table goes to the log, the figures to TensorBoard and, a line for each data set, to ``metrics.jsonl``
        beside the log.
        """
        net = self.network_for_testing()
        name = dataloader.dataset.opt['name']
        val_opt = self.opt['val']

        def save(batch: Mapping[str, Any], image: Any) -> None:
            self.save_picture(image, batch['lq_path'][0], name, current_iter)

        training = net.training
        net.eval()
        try:
            report = evaluate(
                net,
                dataloader,
                val_opt['metrics'] or {},
                name=name,
                iteration=current_iter,
                budgets=val_opt['budgets'],
                all_candidates=val_opt['candidates'],
                device=self.device,
                on_result=save if save_img else None,
            )
        finally:
            net.train(training)
        get_root_logger().info(f'Validation {name}, {report.pictures} pictures\n{report.table()}')
        with open(osp.join(self.opt['path']['log'], 'metrics.jsonl'), 'a', encoding='utf-8') as file:
            file.write(report.to_json() + '\n')
        self._keep_best(report)
        if tb_logger:
            for row in report.rows:
                values = {**row.metrics, 'average_macs': row.macs, 'saved': row.saved}
                for key, value in values.items():
                    if value is None:
                        continue
                    tb_logger.add_scalar(f'metrics/{name}/{row.name}/{key}', value, current_iter)
            for candidate, share in zip(report.candidates, report.rows[0].class_share):
                tb_logger.add_scalar(f'metrics/{name}/share/{candidate}', share, current_iter)

    def _keep_best(self, report: Report) -> None:
        if self.is_train and report.rows[0].metrics:
            self._initialize_best_metric_results(report.dataset)
            for metric, value in report.rows[0].metrics.items():
                if value is None:
                    continue
                self._update_best_metric_result(report.dataset, metric, value, report.iteration)
