"""BasicSR's training and testing, with this plugin's options, data order and resuming put in their places."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import basicsr.test
import basicsr.train
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.utils import MessageLogger, get_root_logger
from basicsr.utils.logger import initialized_logger
from basicsr.utils.misc import check_resume

from basicsr_classpruning.checkpoint import read_checkpoint
from basicsr_classpruning.config.loading import parse_options
from basicsr_classpruning.data.checks import pictures_only
from basicsr_classpruning.data.samplers import ResumableSampler
from basicsr_classpruning.data.seeded_dataset import NamingDataset, SeededDataset
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.models.resuming import refuse_other_run, resume_basicsr_model
from basicsr_classpruning.preflight import check_run
from basicsr_classpruning.safe_files import UNFINISHED
from basicsr_classpruning.untrusted.files import check_sums, load_file


def train(argv: Sequence[str]) -> None:
    """Trains as BasicSR's ``train.py`` does, with the same arguments, into the current folder's ``experiments``."""
    run = _TrainingRun(argv)
    with (
        _fresh_log(),
        _replaced(
            basicsr.train,
            parse_options=run.parse_options,
            load_resume_state=run.load_resume_state,
            create_train_val_dataloader=run.create_dataloaders,
            build_model=run.build_model,
            MessageLogger=run.begin_logging,
        ),
    ):
        basicsr.train.train_pipeline(os.getcwd())
    run.model = None
    _leave_process_group()


def test(argv: Sequence[str]) -> None:
    """Tests as BasicSR's ``test.py`` does, with the same arguments, into the current folder's ``results``."""

    notices: list[str] = []

    def parse(root_path: str, is_train: bool) -> tuple[dict[str, Any], Any]:
        opt, args = parse_options(root_path, is_train, argv)
        notices.extend(_check_run(opt, args))
        return opt, args

    def build(opt: dict[str, Any]) -> Any:
        for notice in notices:
            get_root_logger().warning(notice)
        return _build_model(opt)

    with (
        _fresh_log(),
        _replaced(basicsr.test, parse_options=parse, build_dataset=_build_dataset, build_model=build),
    ):
        basicsr.test.test_pipeline(os.getcwd())
    _leave_process_group()


def _check_run(opt: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """What is to be logged of a run's data sets; errors name the options file."""
    try:
        return check_run(opt)
    except UserError as error:
        raise type(error)(f'{args.opt}: {error}') from None


def _build_dataset(options: dict[str, Any]) -> NamingDataset:
    with pictures_only():
        return NamingDataset(build_dataset(options))


def _build_model(opt: dict[str, Any]) -> Any:
    try:
        return build_model(opt)
    except ImportError as error:  # of a network, loss or metric
        raise UserError(f'model_type {opt["model_type"]}: {error}; install what is missing') from None


def _leave_process_group() -> None:
    """Ends gloo's threads, which BasicSR leaves running: they can abort a process at its exit, when all is done.

    Only after success: beside a process that failed, this would wait for it. Nothing may hold the model any more: a
    DistributedDataParallel that goes last takes the group with it while it keeps Python's lock, for which the threads
    may be waiting.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _replaced(module: Any, **functions: Any) -> Iterator[None]:
    """Replaces what BasicSR looks up in a module for a while."""
    originals = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


@contextlib.contextmanager
def _fresh_log() -> Iterator[None]:
    """Gives a run a log file of its own: BasicSR keeps the process's first logger, with a file or without."""
    _close_log()
    try:
        with _replaced(logging, FileHandler=_LogFile):
            yield
    finally:
        _close_log()


def _close_log() -> None:
    logger = logging.getLogger('basicsr')
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # said before, when the line was written
            handler.close()
    initialized_logger.pop(logger.name, None)


class _LogFile(logging.FileHandler):
    """A log that cannot be written stops the run with one line; Python's prints a traceback for each lost line."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise UserError(f'{self.baseFilename}: could not be written: {error.strerror or error}') from None
        super().handleError(record)


class _TrainingRun:
    """The functions that one training run puts in BasicSR's place; what one learns, a later one uses."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = argv
        self.resumed: dict[str, Any] = {'iter': 0}  # the training state that this run goes on from
        self.notices: list[str] = []  # what is to be logged as soon as there is a log
        self.val_loaders: list[Any] = []
        self.model: Any = None

    def parse_options(self, root_path: str, is_train: bool) -> tuple[dict[str, Any], Any]:
        opt, args = parse_options(root_path, is_train, self.argv)
        if opt['num_gpu'] > 1 and not opt['dist']:
            self.notices.append(f'Using one of {opt["num_gpu"]} GPUs; torchrun … --launcher pytorch uses all')
            opt['num_gpu'] = 1
        self.notices += _check_run(opt, args)
        return opt, args

    def load_resume_state(self, opt: dict[str, Any]) -> dict[str, Any] | None:
        """The training state to go on from: the one named in the options or, with ``--auto_resume``, the newest whole
        one. A state counts only together with its network's file; damaged ones are passed over with a line."""
        if opt['auto_resume']:
            path, state = self._newest_state(
                Path(opt['path']['experiments_root']),
                [key.replace('network_', 'net_', 1) for key in opt if key.startswith('network_')],
            )
            opt['path']['resume_state'] = path
        elif opt['path'].get('resume_state'):
            state = _load_state(Path(opt['path']['resume_state']))
        else:
            state = None
        if state is None:
            return None
        refuse_other_run(opt, state, opt['path']['resume_state'])
        check_resume(opt, state['iter'])
        self.resumed = state
        return state

    def build_model(self, opt: dict[str, Any]) -> Any:
        self.model = _build_model(opt)
        if type(self.model).resume_training is BaseModel.resume_training:
            self.model.resume_training = functools.partial(resume_basicsr_model, self.model)
        return self.model

    def begin_logging(self, opt: dict[str, Any], start_iter: int, tb_logger: Any) -> MessageLogger:
        """Called when a model has resumed: validates it where that is due. BasicSR saves before it validates, so a run
        that was killed in between, or soon after, would never know that validation's results."""
        if start_iter and opt['val'] is not None and start_iter % opt['val']['val_freq'] == 0:
            for loader in self.val_loaders:
                self.model.validation(loader, start_iter, tb_logger, opt['val']['save_img'])
        return MessageLogger(opt, start_iter, tb_logger)

    def _newest_state(self, root: Path, networks: Sequence[str]) -> tuple[str | None, dict[str, Any] | None]:
        for leftover in root.glob(f'*/.*{UNFINISHED}'):
            leftover.unlink(missing_ok=True)  # what a killed run was writing
        states = sorted((root / 'training_states').glob('*.state'), key=_iteration, reverse=True)
        for path in states:
            try:
                for network in networks:
                    file = root / 'models' / f'{network}_{_iteration(path)}.pth'
                    check_sums(file)
                    read_checkpoint(file)
                return str(path), _load_state(path)
            except UserError as error:
                self.notices.append(f'{error}; going back to the checkpoint before it')
        if states:
            raise UserError(f'{root}: none of {len(states)} checkpoints is whole; remove the folder to start afresh')
        return None, None

    def create_dataloaders(self, opt: dict[str, Any], logger: Any) -> tuple[Any, Any, list[Any], int, int]:
        """BasicSR's function, but samples depend on the seed and the step alone, and epochs are whole batches."""
        for notice in self.notices:
            logger.warning(notice)
        train_loader = sampler = None
        total_iters = int(opt['train']['total_iter'])
        for phase, dataset_opt in opt['datasets'].items():
            if phase == 'train':
                train_set = SeededDataset(_build_dataset(dataset_opt).dataset, opt['manual_seed'])
                batch = dataset_opt['batch_size_per_gpu'] * (1 if opt['dist'] else max(1, opt['num_gpu']))
                sampler = ResumableSampler(
                    train_set,
                    opt['world_size'],
                    opt['rank'],
                    dataset_opt.get('dataset_enlarge_ratio', 1),
                    batch,
                    opt['manual_seed'],
                )
                epoch, offset = divmod(int(self.resumed['iter']), sampler.steps_per_epoch)
                sampler.resume_at(epoch, offset)
                # BasicSR goes on with this epoch; a state saved at the end of one names that one, not the next.
                self.resumed['epoch'] = epoch
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
                val_set = _build_dataset(dataset_opt)
                logger.info(f'Validating on {len(val_set)} images of {dataset_opt["name"]}.')
                self.val_loaders.append(
                    build_dataloader(val_set, dataset_opt, num_gpu=opt['num_gpu'], dist=opt['dist'], sampler=None)
                )
        if sampler is None:
            raise UsageError('datasets: there is no train section')
        total_epochs = -(-total_iters // sampler.steps_per_epoch)
        return train_loader, sampler, self.val_loaders, total_epochs, total_iters


def _iteration(path: Path) -> int:
    return int(path.stem) if path.stem.isdigit() else -1


def _load_state(path: Path) -> dict[str, Any]:
    check_sums(path)
    state = load_file(path)
    wanted = {'epoch', 'iter', 'optimizers', 'schedulers'}
    if not isinstance(state, dict) or not wanted <= state.keys():
        raise UserError(f'{path}: not a training state (BasicSR writes them to training_states/)')
    return state
