"""Reads options files and the command line of training and testing."""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from os import path as osp
from typing import Any, NoReturn

from basicsr_classpruning.config.problems import Problem
from basicsr_classpruning.config.validation import import_custom, validate, validate_network
from basicsr_classpruning.config.yaml_reader import parse_value, read_yaml
from basicsr_classpruning.errors import UsageError

_DEBUG_FREQ = 8  # BasicSR's: a run named debug validates and saves this often


def load_options(path: str, is_train: bool | None = None) -> dict[str, Any]:
    """Reads, checks and completes an options file (see `validate`). Raises UsageError."""
    return validate(read_yaml(path), str(path), is_train)


def load_network_options(path: str) -> dict[str, Any]:
    """Reads the network's options from a whole options file, from one with a `network_g` block only, or from one
    that holds nothing but the block. Imports the file's `custom_imports`. Raises UsageError."""
    opt = read_yaml(path)
    if not isinstance(opt, dict):
        raise Problem('', "is no options file; a mapping with network_g, or a network's type").as_error(str(path))
    if 'network_g' not in opt and 'type' in opt:
        return validate_network(opt, str(path), key='')
    if 'network_g' not in opt:
        raise Problem('network_g', 'is missing; the network').as_error(str(path))
    import_custom(opt, str(path))
    return validate_network(opt['network_g'], str(path))


def parse_options(
    root_path: str, is_train: bool = True, argv: Sequence[str] | None = None
) -> tuple[dict[str, Any], argparse.Namespace]:
    """Takes the place of `basicsr.utils.options.parse_options`: same command line, same result.

    ``root_path`` is the folder of `experiments/` and `results/`; ``argv`` are the arguments, by default the
    process's. Sets up distributed training where asked to, and seeds all random numbers.
    Raises UsageError, one line, for a wrong call, file or value.
    """
    args = build_parser(is_train).parse_args(argv)
    opt = read_yaml(args.opt)
    for entry in args.force_yml or []:
        _force(opt, entry, args.opt)
    opt = validate(opt, args.opt, is_train)
    try:
        opt['num_gpu'] = _gpus(opt['num_gpu'], distributed=args.launcher != 'none')
        _expand_users(opt)
        _check_files(opt)
    except Problem as problem:
        raise problem.as_error(args.opt) from None
    _start_distributed(opt, args.launcher)
    _seed(opt)
    opt.update(auto_resume=args.auto_resume, is_train=is_train, root_path=root_path)
    _name_debug_run(opt, args.debug)
    _describe_datasets(opt)
    opt['path'].update(_output_folders(root_path, opt['name'], is_train))
    return opt, args


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f'{self.prog}: {message}')


def build_parser(is_train: bool) -> argparse.ArgumentParser:
    """BasicSR's command line for training or testing."""
    parser = _Parser(prog=f'classpruning {"train" if is_train else "test"}', allow_abbrev=False)
    parser.add_argument('-opt', required=True, metavar='FILE', help='options file in YAML')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the latest training state, if any')
    parser.add_argument('--debug', action='store_true', help='short run: frequent validation, no TensorBoard')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')
    parser.add_argument(
        '--force_yml', nargs='+', metavar='KEY=VALUE', help='replace values of the file, e.g. train:ema_decay=0.999'
    )
    return parser


def _force(opt: Any, entry: str, source: str) -> None:
    """Sets one value, as in ``train:ema_decay=0.999``: the value is read as YAML, the mapping must be there."""
    path, equals, text = entry.partition('=')
    *outer, last = (key.strip() for key in path.split(':'))
    try:
        if not equals or not all([*outer, last]):
            raise Problem('', 'is not allowed; KEY=VALUE, e.g. train:ema_decay=0.999')
        section = _section(opt, outer, source)
        section[last] = None if text.strip().lower() == 'none' else parse_value(text)
    except Problem as problem:
        raise Problem('', problem.text).as_error(f'--force_yml {entry}') from None


def _section(opt: Any, keys: list[str], source: str) -> dict[str, Any]:
    """The mapping at the end of ``keys``. Raises Problem where one of them is missing, or no mapping."""
    walked: list[str] = []
    for key in keys:
        if isinstance(opt, dict):
            opt = opt.get(key)
            walked.append(key)
    if not isinstance(opt, dict):
        raise Problem('', f'{".".join(walked) or "its content"} is not a mapping in {source}')
    return opt


def _gpus(wanted: int | str, distributed: bool) -> int:
    """The number of GPUs to use. With a launcher the number counts all machines', so only their lack is refused."""
    import torch

    found = torch.cuda.device_count()
    if wanted == 'auto':
        return found
    wanted = int(wanted)
    if wanted > found and (not distributed or found == 0):
        raise Problem('num_gpu', f'{wanted} is not allowed; this machine has {found} (0 runs on the CPU), or auto')
    return wanted


def _expand_users(opt: dict[str, Any]) -> None:
    """Replaces a leading ``~`` in paths by the home folder."""
    for section in (*opt['datasets'].values(), opt['path']):
        for key, value in section.items():
            if isinstance(value, str) and key.startswith(('dataroot', 'pretrain_network', 'resume_state', 'meta_info')):
                section[key] = osp.expanduser(value)


def _check_files(opt: dict[str, Any]) -> None:
    """Refuses paths that lead nowhere before anything is built or written."""
    for phase, dataset in opt['datasets'].items():
        for key in ('dataroot_gt', 'dataroot_lq'):
            if isinstance(dataset.get(key), str) and not osp.isdir(dataset[key]):
                raise Problem(f'datasets.{phase}.{key}', f'{dataset[key]}: no such folder')
        if isinstance(dataset.get('meta_info_file'), str) and not osp.isfile(dataset['meta_info_file']):
            raise Problem(f'datasets.{phase}.meta_info_file', f'{dataset["meta_info_file"]}: no such file')
    for key, value in opt['path'].items():
        if isinstance(value, str) and key.startswith(('pretrain_network', 'resume_state')) and not osp.isfile(value):
            raise Problem(f'path.{key}', f'{value}: no such file')


def _start_distributed(opt: dict[str, Any], launcher: str) -> None:
    from basicsr.utils.dist_util import get_dist_info, init_dist

    opt['dist'] = launcher != 'none'
    needed = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID'}.get(launcher)
    if needed is not None and needed not in os.environ:
        start = 'torchrun' if launcher == 'pytorch' else 'srun'
        raise UsageError(f'--launcher {launcher}: {needed} is not set in the environment; start the command by {start}')
    if opt['dist']:
        params = opt['dist_params'] if launcher == 'slurm' and opt['dist_params'] else {}
        init_dist(launcher, **{key: value for key, value in params.items() if value is not None})
    opt['rank'], opt['world_size'] = get_dist_info()


def _seed(opt: dict[str, Any]) -> None:
    from basicsr.utils import set_random_seed

    if opt['manual_seed'] is None:
        opt['manual_seed'] = random.randint(1, 10000)
    set_random_seed(opt['manual_seed'] + opt['rank'])


def _name_debug_run(opt: dict[str, Any], debug: bool) -> None:
    if debug and not opt['name'].startswith('debug'):
        opt['name'] = f'debug_{opt["name"]}'
    if opt['is_train'] and 'debug' in opt['name']:
        if opt['val'] is not None:
            opt['val']['val_freq'] = _DEBUG_FREQ
        opt['logger'].update(print_freq=1, save_checkpoint_freq=_DEBUG_FREQ)


def _describe_datasets(opt: dict[str, Any]) -> None:
    """Tells each data set its phase and the scale."""
    for phase, dataset in opt['datasets'].items():
        dataset.update(phase=phase.split('_')[0], scale=opt['scale'])


def _output_folders(root_path: str, name: str, is_train: bool) -> dict[str, str]:
    root = osp.join(root_path, 'experiments' if is_train else 'results', name)
    folders = {'log': root, 'visualization': osp.join(root, 'visualization')}
    if not is_train:
        return {'results_root': root, **folders}
    states, models = osp.join(root, 'training_states'), osp.join(root, 'models')
    return {'experiments_root': root, 'models': models, 'training_states': states, **folders}
