"""BasicSR's training and testing, with this plugin's options, data order and resuming put in their places."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from os import path as osp
from pathlib import Path
from typing import Any

import basicsr.test
import basicsr.train
from basicsr.data import build_dataloader, build_dataset
from basicsr.utils import get_root_logger
from basicsr.utils.misc import check_resume

from basicsr_classpruning.checkpoint import load_file, read_checkpoint
from basicsr_classpruning.config.loading import parse_options
from basicsr_classpruning.data.samplers import ResumableSampler
from basicsr_classpruning.data.seeded_dataset import SeededDataset
from basicsr_classpruning.errors import UsageError, UserError


def train(argv: Sequence[str]) -> None:
    """Trains as BasicSR's ``train.py`` does, with the same arguments, into the current folder's ``experiments``."""
    run = _TrainingRun(argv)
    with _replaced(
        basicsr.train,
        parse_options=run.parse_options,
        load_resume_state=run.load_resume_state,
        create_train_val_dataloader=run.create_dataloaders,
    ):
        basicsr.train.train_pipeline(os.getcwd())


def test(argv: Sequence[str]) -> None:
    """Tests as BasicSR's ``test.py`` does, with the same arguments, into the current folder's ``results``."""

    def parse(root_path: str, is_train: bool) -> tuple[dict[str, Any], Any]:
        return parse_options(root_path, is_train, argv)

    with _replaced(basicsr.test, parse_options=parse):
        basicsr.test.test_pipeline(os.getcwd())


@contextlib.contextmanager
def _replaced(module: Any, **functions: Any) -> Iterator[None]:
    """Replaces functions of a BasicSR module for a while: its loop looks them up there."""
    originals = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


class _TrainingRun:
    """The functions that one training run puts in BasicSR's place; what one learns, a later one uses."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = argv
        self.finished = 0  # iterations done before this run

    def parse_options(self, root_path: str, is_train: bool) -> tuple[dict[str, Any], Any]:
        return parse_options(root_path, is_train, self.argv)

    def load_resume_state(self, opt: dict[str, Any]) -> dict[str, Any] | None:
        """The training state to go on from: the one named in the options or, with ``--auto_resume``, the newest whole
        one. A state counts only together with its network's file; damaged ones are passed over with a line."""
        if opt['auto_resume']:
            found = _newest_state(opt)
            opt['path']['resume_state'] = None if found is None else found[0]
            state = None if found is None else found[1]
        elif opt['path'].get('resume_state'):
            state = _load_state(Path(opt['path']['resume_state']))
        else:
            state = None
        if state is None:
            return None
        check_resume(opt, state['iter'])
        self.finished = int(state['iter'])
        return state

    def create_dataloaders(self, opt: dict[str, Any], logger: Any) -> tuple[Any, Any, list[Any], int, int]:
        """BasicSR's function, but samples depend on the seed and the step alone, and epochs are whole batches."""
        train_loader = sampler = None
        val_loaders = []
        total_iters = int(opt['train']['total_iter'])
        for phase, dataset_opt in opt['datasets'].items():
            if phase == 'train':
                train_set = SeededDataset(build_dataset(dataset_opt), opt['manual_seed'])
                batch = dataset_opt['batch_size_per_gpu'] * (1 if opt['dist'] else max(1, opt['num_gpu']))
                sampler = ResumableSampler(
                    train_set,
                    opt['world_size'],
                    opt['rank'],
                    dataset_opt.get('dataset_enlarge_ratio', 1),
                    batch,
                    opt['manual_seed'],
                )
                epoch, offset = divmod(self.finished, sampler.steps_per_epoch)
                sampler.resume_at(epoch, offset)
                train_loader = build_dataloader(
                    train_set,
                    dataset_opt,
                    num_gpu=opt['num_gpu'],
                    dist=opt['dist'],
                    sampler=sampler,
                    seed=opt['manual_seed'],
                )
                logger.info(
                    f'Training on {len(train_set)} images, {sampler.steps_per_epoch} iterations an epoch, '
                    f'{total_iters} in all, {opt["world_size"]} process(es) with batches of {batch}.'
                )
            else:
                val_set = build_dataset(dataset_opt)
                logger.info(f'Validating on {len(val_set)} images of {dataset_opt["name"]}.')
                val_loaders.append(
                    build_dataloader(val_set, dataset_opt, num_gpu=opt['num_gpu'], dist=opt['dist'], sampler=None)
                )
        if sampler is None:
            raise UsageError('datasets: there is no train section')
        total_epochs = -(-total_iters // sampler.steps_per_epoch)
        return train_loader, sampler, val_loaders, total_epochs, total_iters


def _newest_state(opt: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    root = Path(opt['path']['experiments_root'])
    states = sorted((root / 'training_states').glob('*.state'), key=_iteration, reverse=True)
    for path in states:
        network = root / 'models' / f'net_g_{_iteration(path)}.pth'
        try:
            state = _load_state(path)
            read_checkpoint(network)
        except UserError as error:
            _announce(f'{error}; going back to the checkpoint before it')
            continue
        return str(path), state
    if states:
        raise UserError(f'{root}: none of its {len(states)} checkpoints is whole; remove the folder to start afresh')
    return None


def _iteration(path: Path) -> int:
    return int(path.stem) if path.stem.isdigit() else -1


def _load_state(path: Path) -> dict[str, Any]:
    state = load_file(path)
    wanted = {'epoch', 'iter', 'optimizers', 'schedulers'}
    if not isinstance(state, dict) or not wanted <= state.keys():
        raise UserError(f'{path}: not a training state (BasicSR writes them to training_states/)')
    return state


def _announce(message: str) -> None:
    """Says something before the run's log file exists."""
    get_root_logger().warning(message)
