"""Two processes on the CPU, over gloo, against one process with the doubled batch."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from tiny import run_python, training_options, write_yaml

from basicsr_classpruning.cli import main
from basicsr_classpruning.untrusted.files import load_file

EXPERIMENT = Path('experiments/tiny')


def options_for(pictures: Path, images: int, split: str = 'turn', **stages: int) -> dict:
    """Options of a training with ``images`` in each process's batch."""
    options = training_options(
        pictures, stages=stages, split=split, ema_decay=0.9,
        budget_opt={'type': 'ComputeBudgetLoss', 'target': 0.6}, class_opt={'type': 'ClassificationLoss'},
    )  # fmt: skip
    options['datasets']['train']['batch_size_per_gpu'] = images
    options['logger']['save_checkpoint_freq'] = 1000
    return options


@pytest.mark.parametrize('split', ['turn', 'none'])
def test_two_processes_train_the_weights_of_one_with_the_doubled_batch(tmp_path, monkeypatch, pictures, split):
    # A sample depends on its number alone, so that the two processes' batches are the one's between them. Three
    # images in each process and three candidates: each candidate is in use in both.
    (tmp_path / 'two').mkdir()
    (tmp_path / 'one').mkdir()
    options = write_yaml(tmp_path / 'two.yml', options_for(pictures, 3, split, supernet=4))
    done = run_python(
        '-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone', '-m', 'basicsr_classpruning',
        'train', '-opt', options, '--launcher', 'pytorch', cwd=tmp_path / 'two',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.chdir(tmp_path / 'one')
    assert main(['train', '-opt', write_yaml(tmp_path / 'one.yml', options_for(pictures, 6, split, supernet=4))]) == 0
    found, wanted, start = (
        load_file(path / 'models/net_g_latest.pth')
        for path in (
            tmp_path / 'two' / EXPERIMENT,
            tmp_path / 'one' / EXPERIMENT,
            untrained(tmp_path / 'none', monkeypatch, pictures),
        )
    )
    for container in ('params', 'params_ema'):
        for key, value in wanted[container].items():
            if split == 'none' and not key.startswith('base.'):
                continue  # the classifiers draw from the same memory, each process by itself
            torch.testing.assert_close(found[container][key], value, atol=2e-5, rtol=1e-4, msg=f'{container} {key}')
    moved = max(
        float((value - start['params'][key]).abs().max())
        for key, value in wanted['params'].items()
        if key.startswith('base.') and value.is_floating_point()
    )
    assert moved > 1e-3  # far more than the tolerance


def untrained(folder: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path) -> Path:
    """The experiment of a run that takes one tiny step."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    options = options_for(pictures, 6, supernet=1)
    options['train']['optim_g']['lr'] = 1e-12
    assert main(['train', '-opt', write_yaml(folder / 'none.yml', options)]) == 0
    return folder / EXPERIMENT


# Runs the command in two processes that share the imports; the arguments are a free port and the command's own.
_FORKED = """
import multiprocessing
import os
import sys
import torch
from basicsr_classpruning.cli import main


def work(rank):
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=sys.argv[1])
    status = main(sys.argv[2:])
    assert not torch.distributed.is_initialized()  # a process that ends with a group can be aborted by its threads
    sys.exit(status)


context = multiprocessing.get_context('fork')
processes = [context.Process(target=work, args=(rank,)) for rank in range(2)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(max(process.exitcode for process in processes))
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def test_all_stages_run_in_two_processes(tmp_path, pictures):
    # Two images in each process: not every candidate is in use in each.
    options = write_yaml(tmp_path / 'train.yml', options_for(pictures, 2, supernet=2, classifier=3, joint=3))
    done = run_python(
        '-c', _FORKED, free_port(), 'train', '-opt', options, '--launcher', 'pytorch', cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    params = load_file(tmp_path / EXPERIMENT / 'models/net_g_latest.pth')['params']
    assert all(torch.isfinite(value).all() for value in params.values())
    assert params['log_price'] != 0
