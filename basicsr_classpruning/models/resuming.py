"""Resuming a run whose options have changed: they win, what has changed is said, what cannot go on is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger

from basicsr_classpruning.errors import UsageError, UserError

# Options that decide the learning rate of an iteration, and how the optimiser uses it.
_SCHEDULE = ('train.scheduler', 'train.optim_', 'train.warmup_iter', 'train.classifier_lr')
# Of a data set: where it lies and how it is read, which changes nothing of what is learnt.
_ASIDE = ('dataroot', 'meta_info', 'io_backend', 'num_worker', 'prefetch', 'num_prefetch', 'pin_memory', 'persistent')
_COUNTERS = {'last_epoch', '_step_count', '_last_lr'}  # of a scheduler: what is no option


def plain(value: Any) -> Any:
    """Options as plain dictionaries, lists and values, which a file read with ``weights_only`` may hold."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def options_to_keep(opt: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options a training state holds, to be compared when the run is resumed."""
    networks = {key: value for key, value in opt.items() if key.startswith('network_')}
    training_set = opt.get('datasets', {}).get('train') or {}
    return plain(
        {
            'model_type': opt.get('model_type'),
            'scale': opt.get('scale'),
            'world_size': opt['world_size'],
            **networks,
            'datasets': {
                'train': {key: value for key, value in training_set.items() if not key.startswith(_ASIDE)},
            },
            'train': opt['train'],
        }
    )


def refuse_other_run(opt: Mapping[str, Any], state: Mapping[str, Any], path: str) -> None:
    """Raises UsageError, one line, for a training state from which a run with these options cannot go on; UserError for
    a damaged one."""
    if not isinstance(state['iter'], int) or not isinstance(state.get('options', {}), dict):
        raise UserError(f'{path}: damaged: iter or options are not what a training state holds')
    before = state.get('options') or {}
    start = 'or start from its network with path.pretrain_network_g'
    if str(before.get('model_type', opt['model_type'])) != opt['model_type']:
        raise UsageError(
            f'model_type: {opt["model_type"]} cannot go on from {path}, a state of {before["model_type"]}; the same, '
            f'{start}'
        )
    for key, change in differences(before, options_to_keep(opt)):
        if before and key.startswith('train.optim_') and key.endswith('.type'):
            raise UsageError(f'{key}: {change}: {path} belongs to the first; the same, {start}')
    length = opt['train'].get('total_iter')
    if length is not None and state['iter'] > length:
        raise UsageError(
            f'train.total_iter: {length} is not allowed; at least {state["iter"]}, the iteration of {path}'
        )


def differences(before: Any, after: Any, key: str = '') -> Iterator[tuple[str, str]]:
    """Dotted keys of options that are not the same, each with ``old → new``."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from differences(before.get(name), after.get(name), f'{key}.{name}' if key else name)
    elif str(before) != str(after):  # a damaged state may hold what cannot be compared
        yield key, f'{_shown(before)} → {_shown(after)}'


def _shown(value: Any) -> str:
    text = 'none' if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + '...'


def is_rescheduled(model: BaseModel, changed: list[tuple[str, str]], state: Mapping[str, Any]) -> bool:
    """Whether the learning rates of a run are others than its training state says."""
    if 'options' in state:
        return any(key.startswith(_SCHEDULE) for key, _ in changed)
    # A state of BasicSR, or of an earlier version, says no more than its schedulers know.
    changes = _COUNTERS | ({'base_lrs'} if state.get('recoveries') else set())  # which slow the classifier down
    return any(
        saved.get(name) != value
        for scheduler, saved in zip(model.schedulers, state['schedulers'])
        for name, value in scheduler.state_dict().items()
        if name not in changes
    )


def resume_basicsr_model(model: BaseModel, state: Mapping[str, Any]) -> None:
    """``resume_training`` of BasicSR's own models, which would put the old schedule in the place of the options'.

    Raises UserError for a state that does not fit the model.
    """
    rescheduled = is_rescheduled(model, [], state)
    try:
        if rescheduled:
            replay_schedule(model, state['iter'], model.opt['train'].get('warmup_iter', -1))
            state = with_own_schedule(model, state)
        BaseModel.resume_training(model, state)
    except Exception as error:  # a state of another run, or a damaged one, may lack anything
        path, reason = model.opt['path']['resume_state'], f'{type(error).__name__}: {error}'.splitlines()[0]
        raise UserError(f'{path}: belongs to a run with other options ({reason})') from None
    if rescheduled:
        get_root_logger().warning('Resuming with options that have changed: train.scheduler or learning rates')


def replay_schedule(model: BaseModel, iterations: int, warmup_iter: int) -> None:
    """Brings a new model's learning rates to where its own schedule has them after so many iterations.

    A learning rate may depend on the one before (multi-step schedules, warm-up), so every step is taken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch's, that an optimiser should have stepped in between
        for iteration in range(1, iterations + 1):
            model.update_learning_rate(iteration, warmup_iter)


def with_own_schedule(model: BaseModel, state: Mapping[str, Any]) -> dict[str, Any]:
    """A training state in which learning rates, schedule and the optimisers' settings are those that a model has.

    What the optimisers have gathered (moments) stays the state's.
    """
    optimizers = [
        {
            **saved,
            'param_groups': [
                {**own, 'params': group['params']}
                for own, group in zip(optimizer.state_dict()['param_groups'], saved['param_groups'], strict=True)
            ],
        }
        for optimizer, saved in zip(model.optimizers, state['optimizers'])
    ]
    schedulers = [scheduler.state_dict() for scheduler in model.schedulers]
    return {**state, 'optimizers': optimizers, 'schedulers': schedulers}
