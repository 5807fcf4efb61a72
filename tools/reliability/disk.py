"""A full disk, a read-only folder and a vanished mount while something is saved.

Needs mounts of its own, which Linux gives to any user where user namespaces are allowed; elsewhere a limit on the size
of files stands for the full disk, and the rest is skipped.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from basicsr_classpruning.safe_files import UNFINISHED
from basicsr_classpruning.untrusted.files import load_file
from tests.tiny import same
from tools.reliability.common import Child, Outcome, Result, Row, classpruning
from tools.reliability.material import EXPERIMENT, checkpoints, damage_of, start_training, training, write_model

STAGES = (20, 10, 10)
SAVE_EVERY = 2
LENGTH = sum(STAGES)
_NEW_MOUNTS_AND_USERS = 0x00020000 | 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER of sched.h


def run(rounds: int, seed: int, folder: Path) -> Result:
    """Tries each failure after ``rounds`` different numbers of checkpoints. Nothing here is random."""
    del seed
    trials = Trials(folder)
    if Child(_own_mounts).wait().status == 0:

        def work() -> int:
            _own_mounts()
            for number in range(1, rounds + 1):
                trials.with_mounts(2 * number * SAVE_EVERY)
            (folder / 'result.json').write_text(json.dumps(asdict(trials.result)))
            return 0

        outcome = Child(work).wait(900)
        if outcome.status:
            raise RuntimeError(outcome.output)
        found = json.loads((folder / 'result.json').read_text())
        trials.result.rows += [Row(**row) for row in found['rows']]
    else:
        trials.result.skipped.append(
            'mounts of its own: not allowed here, so a limit on file sizes stands for the disk'
        )
    for number in range(1, rounds + 1):
        trials.without_mounts(2 * number * SAVE_EVERY)
    return trials.result


def _own_mounts() -> int:
    """Gives this process, which must have one thread, mounts of its own; returns 0 where that is allowed."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None).unshare(_NEW_MOUNTS_AND_USERS):
        return 1
    for name, text in (('setgroups', 'deny'), ('uid_map', f'0 {user} 1'), ('gid_map', f'0 {group} 1')):
        Path('/proc/self', name).write_text(text)
    return subprocess.run(['mount', '--make-rprivate', '/'], check=False, capture_output=True).returncode


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A disk in memory of ``size`` bytes."""
    folder.mkdir(parents=True)
    _mount('-t', 'tmpfs', '-o', f'size={size}', 'none', folder)
    try:
        yield
    finally:
        _unmount(folder)


def _mount(*arguments: object) -> None:
    subprocess.run(['mount', *map(str, arguments)], check=True)


def _unmount(folder: Path) -> None:
    subprocess.run(['umount', '-l', str(folder)], check=True)


class Trials:
    """Trainings that cannot go on saving, beside one that could."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result = Result()
        self.options = training(folder, STAGES, SAVE_EVERY)
        self.reference = folder / 'undisturbed'
        outcome = self._start(self.reference).wait()
        if outcome.status:
            raise RuntimeError(f'the undisturbed run failed: {outcome.output}')
        self.pair = sum(os.path.getsize(self.reference / EXPERIMENT / name) for name in _pair(SAVE_EVERY))
        self.model = write_model(folder / 'model.pth')
        self._numbers = itertools.count()

    def _start(self, folder: Path, options: dict[str, Any] | None = None) -> Child:
        return start_training(folder, options or self.options)

    def _folder(self) -> Path:
        return self.folder / f'trial{next(self._numbers)}'

    def with_mounts(self, saved: int) -> None:
        """The failures that need mounts, each after a checkpoint at the iteration ``saved``."""
        for what, rest in (('', 0.2), (', in the middle of a pair', 0.7)):
            folder = self._folder()
            with small_disk(folder, int((saved // SAVE_EVERY + rest) * self.pair) + 65536):
                self._judge(f'training on a disk that gets full{what}', self._start(folder).wait(), folder)
        folder = self._folder()
        with small_disk(folder, int((saved // SAVE_EVERY + 0.5) * self.pair) + 65536):
            options = {**self.options, 'logger': {**self.options['logger'], 'use_tb_logger': True}}
            self._judge(
                'training with TensorBoard on a disk that gets full', self._start(folder, options).wait(), folder
            )
        folder = self._folder()
        with small_disk(folder, 2**22):  # between two checkpoints only the log is written
            options = {**self.options, 'logger': {**self.options['logger'], 'save_checkpoint_freq': LENGTH // 2}}
            child = self._start(folder, options)
            self._wait_for(folder, LENGTH // 2)
            _fill(folder)
            self._judge('training, others fill the disk', child.wait(), folder)
        for name in ('models', 'training_states'):
            folder = self._folder()
            child = self._start(folder)
            part = folder / EXPERIMENT / name
            self._wait_for(folder, saved)
            with _held(child, part):
                _mount('--bind', part, part)
                _mount('-o', 'remount,bind,ro', part)
            self._judge(f'training, {name}/ becomes read-only', child.wait(), folder)
            _unmount(part)
        folder, kept = self._folder(), self._folder()
        with small_disk(kept, 2**26):
            folder.mkdir()
            _mount('--bind', kept, folder)
            child = self._start(folder)
            self._wait_for(folder, saved)
            _unmount(folder)
            self._judge('training, the mount vanishes', child.wait(), kept, vanished=True)
        folder = self._folder()
        with small_disk(folder, 65536):
            (folder / 'pruned.pth').write_bytes(b'old')
            (folder / '0.png').write_bytes(b'old')
            self._replacing('prune', folder, 'prune', self.model, '--out', folder / 'pruned.pth')
            pictures = self.folder / 'pictures'
            self._replacing(
                'restore', folder, 'restore', pictures, '--model', self.model, '--output', folder, '--overwrite',
                '--backend', 'dense',
            )  # fmt: skip

    def without_mounts(self, saved: int) -> None:
        """The failures that any user can provoke anywhere."""
        folder = self._folder()
        child = self._start(folder)
        self._wait_for(folder, saved)
        (folder / EXPERIMENT).rename(folder / 'gone')
        outcome = child.wait()
        (folder / EXPERIMENT).parent.mkdir(exist_ok=True)
        (folder / 'gone').rename(folder / EXPERIMENT)
        self._judge('training, its folder vanishes', outcome, folder, vanished=True)
        folder = self._folder()
        child = self._start(folder)
        self._wait_for(folder, saved)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
        self._judge('training, no file may grow any more', child.wait(), folder)

    def _wait_for(self, folder: Path, iteration: int) -> None:
        """Waits until a training has saved its state at an iteration."""
        wanted = folder / EXPERIMENT / _pair(iteration)[1]
        end = time.monotonic() + 120
        while not wanted.exists() and time.monotonic() < end:
            time.sleep(0.001)

    def _judge(self, what: str, outcome: Outcome, folder: Path, vanished: bool = False) -> None:
        """The run must have stopped with one line and status 1, and all that was saved must be as it was. From a disk
        that has vanished, nobody can remove an unfinished file; the next ``--auto_resume`` does."""
        complaint = outcome.complaint
        lines = outcome.output.strip().splitlines()
        if not complaint and outcome.status != 1:
            complaint = f'exit status {outcome.status}'
        elif not complaint and lines[-1] != outcome.error:
            complaint = f'the error is not the last line: {lines[-1]}'
        complaint = complaint or self._damage(folder / EXPERIMENT)
        if not complaint and not vanished and list((folder / EXPERIMENT).rglob(f'.*{UNFINISHED}')):
            complaint = 'an unfinished file is left'
        self.result.row(what).add(complaint and f'{what}: {complaint}')

    def _damage(self, experiment: Path) -> str:
        files = checkpoints(experiment)
        if not list(experiment.glob('training_states/*.state')):
            return 'no checkpoint is left'
        for path in files:
            wanted = self.reference / EXPERIMENT / path.relative_to(experiment)
            if damage_of(path) or not same(load_file(path), load_file(wanted)):
                return f'{path.name} is damaged'
        return ''

    def _replacing(self, name: str, folder: Path, *command: object) -> None:
        """A command that is to replace files on a full disk must fail and leave them."""
        what = f'{name} to a full disk'
        before = {path: path.read_bytes() for path in folder.iterdir()}
        ballast = _fill(folder)
        outcome = classpruning(*command)
        ballast.unlink()
        complaint = outcome.complaint or ('' if outcome.status == 1 else f'exit status {outcome.status}')
        if not complaint and {path: path.read_bytes() for path in folder.iterdir()} != before:
            complaint = 'files have changed'
        self.result.row(what).add(complaint and f'{what}: {complaint}')


@contextlib.contextmanager
def _held(child: Child, folder: Path) -> Iterator[None]:
    """Holds a training still while it has no unfinished file in a folder. A mount with a file that is being written
    cannot become read-only, and where it has, nobody could remove that file."""
    while True:
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if not list(folder.glob(f'.*{UNFINISHED}')):
            break
        os.kill(child.pid, signal.SIGCONT)
        time.sleep(0.001)
    try:
        yield
    finally:
        os.kill(child.pid, signal.SIGCONT)


def _fill(folder: Path) -> Path:
    """Takes all the space that is left on a disk, with one file."""
    ballast = folder / 'ballast'
    # Until it is full, whoever else writes meanwhile.
    with open(ballast, 'wb', buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


def _pair(iteration: int) -> tuple[str, str]:
    """The two files of a checkpoint, below the experiment's folder."""
    return f'models/net_g_{iteration}.pth', f'training_states/{iteration}.state'
