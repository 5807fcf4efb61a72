"""Kill and resume: ``kill -9`` at random moments of one run, each followed by ``--auto_resume``.

Compared with a run that nobody disturbed: the data, the stage, the learning rates and the random states of every
iteration, and every checkpoint and training state that is left at the end.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basicsr_classpruning.cli import main
from basicsr_classpruning.models.classpruning_model import ClassPruningModel
from basicsr_classpruning.untrusted.files import load_file
from tests.tiny import same
from tools.reliability.common import Child, Outcome, Result
from tools.reliability.material import EXPERIMENT, checkpoints, damage_of, training, with_int8, write_options

STAGES = (30, 15, 15)
SAVE_EVERY, VALIDATE_EVERY = 2, 3
LENGTH = sum(STAGES)


def run(kills: int, seed: int, folder: Path) -> Result:
    """Kills one run ``kills`` times, and a quarter as often one whose candidates multiply 8-bit integers."""
    options = training(folder, STAGES, SAVE_EVERY, VALIDATE_EVERY)
    result = Result(figures={'iterations': LENGTH, 'first iterations after a kill': []})
    _kill(folder, options, kills, seed, result)
    _kill(folder / 'int8', with_int8(folder, options), max(1, kills // 4), seed, result)
    return result


def _kill(folder: Path, options: dict[str, Any], kills: int, seed: int, result: Result) -> None:
    reference = Training(folder / 'undisturbed', options)
    outcome = reference.start().finish()
    if outcome.complaint or outcome.status:
        raise RuntimeError(f'the undisturbed run failed: {outcome.output}')
    Killing(Training(folder / 'killed', options), reference, random.Random(seed), result).run(kills)


class Training:
    """A run of training in a folder, in one process after the other, and what was seen of it."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder = folder
        self.experiment = folder / EXPERIMENT
        self.command = ['train', '-opt', write_options(folder, options), '--auto_resume']
        self.seen: dict[int, set[str]] = {}  # by iteration: digests of its data, stage, rates and random states
        self.times: dict[int, float] = {}  # by iteration: when it ended, since its process started

    def start(self) -> Process:
        """Starts, or goes on."""
        return Process(self)

    def note(self, line: str, seconds: float) -> int:
        """Takes a line that an iteration sent; returns the iteration."""
        iteration, digest = line.split(' ', 1)
        self.seen.setdefault(int(iteration), set()).add(digest)
        self.times[int(iteration)] = seconds
        return int(iteration)

    def metrics(self) -> str:
        path = self.experiment / 'metrics.jsonl'
        return path.read_text() if path.exists() else ''


@dataclass
class Process:
    """One process of a training; it sends a line at the end of each iteration."""

    training: Training
    iterations: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        reading, writing = os.pipe()
        self.begun = time.perf_counter()
        self.child = Child(lambda: self._work(writing))
        os.close(writing)
        self._lines = os.fdopen(reading)

    def _work(self, pipe: int) -> int:
        os.chdir(self.training.folder)
        torch.set_num_threads(1)
        original = ClassPruningModel.optimize_parameters

        def optimize(model: ClassPruningModel, iteration: int) -> None:
            original(model, iteration)
            os.write(pipe, f'{iteration} {_digest(model)}\n'.encode())

        ClassPruningModel.optimize_parameters = optimize  # type: ignore[method-assign, assignment]
        return main(self.training.command)

    def follow(self, until: int) -> bool:
        """Reads what the iterations send, up to one of that number; returns whether it came."""
        for line in self._lines:
            iteration = self.training.note(line, time.perf_counter() - self.begun)
            self.iterations.append(iteration)
            if iteration >= until:
                return True
        return False

    def finish(self) -> Outcome:
        """Waits for the end."""
        self.follow(LENGTH + 1)
        self._lines.close()
        return self.child.wait()


def _digest(model: ClassPruningModel) -> str:
    """The stage, and what stands for the data, the learning rates and the random states after a step."""
    rates = [group['lr'] for group in model.optimizer_g.param_groups]
    kind, words, *rest = np.random.get_state()
    digest = hashlib.sha256(repr((rates, random.getstate(), kind, rest)).encode())
    for part in (np.asarray(words), torch.get_rng_state().numpy(), model.lq.numpy(), model.gt.numpy()):
        digest.update(part.tobytes())
    return f'{model.stage} {digest.hexdigest()}'


class Killing:
    """Kills a training again and again, and looks at what is left."""

    def __init__(self, training: Training, reference: Training, rng: random.Random, result: Result) -> None:
        self.training, self.reference, self.rng, self.result = training, reference, rng, result
        self.damaged: dict[Path, bytes] = {}  # files that were damaged on purpose, as they then were

    def run(self, kills: int) -> None:
        """Adds what it finds to the result."""
        # The last iterations are left out, so that the run never ends before its last kill.
        moments = sorted(self.rng.uniform(1, 0.95 * LENGTH) for _ in range(kills))
        newest = 0
        for number, moment in enumerate(moments):
            process = self.training.start()
            starting = number % 8 == 7
            if starting:
                time.sleep(self.rng.uniform(0, self.reference.times[1]))
            elif process.follow(int(moment)):
                time.sleep(self.rng.random() * self._gap(int(moment)))
            process.child.kill()
            outcome = process.finish()
            self._check_resumed(process, outcome, newest, number)
            row = self.result.row(f'kill -9 {self._where(process)}: files whole')
            row.add('; '.join(filter(None, (self._damage(path) for path in self._files()))))
            if number % 10 == 9:
                self._damage_newest()
            newest = self._newest_pair()
        outcome = self.training.start().finish()
        self._compare(outcome)

    def _gap(self, iteration: int) -> float:
        """Seconds that pass after an iteration's step until the next one's end, saving and validation included."""
        return self.reference.times[iteration + 1] - self.reference.times[iteration]

    def _where(self, process: Process) -> str:
        """What the process was doing when it was killed, as its files tell."""
        if not process.iterations:
            return 'while starting or resuming'
        last, experiment = process.iterations[-1], self.training.experiment
        if last % SAVE_EVERY == 0 and not (experiment / f'training_states/{last}.state').exists():
            return 'while saving'
        if last % VALIDATE_EVERY == 0 and f'"iteration": {last},' not in self.training.metrics():
            return 'while validating'
        return 'while training'

    def _files(self) -> list[Path]:
        return [path for path in checkpoints(self.training.experiment) if self.damaged.get(path) != path.read_bytes()]

    def _damage(self, path: Path) -> str:
        """What is wrong with a file: not whole, or not what the undisturbed run wrote."""
        complaint = damage_of(path)
        if not complaint and not same(load_file(path), load_file(self._counterpart(path))):
            return f'{path.name}: differs from the undisturbed run'
        return complaint

    def _counterpart(self, path: Path) -> Path:
        return self.reference.folder / path.relative_to(self.training.folder)

    def _newest_pair(self) -> int:
        """The newest iteration of which both files are there and were not damaged; 0 for none."""
        files = {path.name for path in self._files()}
        pairs = [i for i in range(1, LENGTH + 1) if {f'net_g_{i}.pth', f'{i}.state'} <= files]
        return max(pairs, default=0)

    def _check_resumed(self, process: Process, outcome: Outcome, newest: int, number: int) -> None:
        """The process must have gone on from the newest whole pair, past damaged files with a line for each."""
        if not process.iterations:  # killed before it could show
            return
        first = process.iterations[0]
        row = self.result.row('resumed from the newest whole pair')
        row.add('' if first == newest + 1 else f'went on at {first}, the newest whole pair was {newest}')
        self.result.figures['first iterations after a kill'].append(first)
        if number % 10 == 0 and self.damaged:
            lines = outcome.output.count('going back to the checkpoint before it')
            row = self.result.row('damaged newest file passed over with a line')
            row.add('' if lines == 1 else f'{lines} lines about it')

    def _damage_newest(self) -> None:
        """Truncates the newest network or training state, or flips a bit of what it holds."""
        newest = self._newest_pair()
        if not newest:
            return
        name = self.rng.choice([f'models/net_g_{newest}.pth', f'training_states/{newest}.state'])
        path = self.training.experiment / name
        content = bytearray(path.read_bytes())
        if self.rng.random() < 0.5:
            content = content[: self.rng.randrange(len(content))]
        else:
            content[_middle_of_largest_record(path)] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)
        self.damaged[path] = bytes(content)

    def _compare(self, outcome: Outcome) -> None:
        row = self.result.row('iteration: same data, stage, learning rates and random states')
        for iteration in range(1, LENGTH + 1):
            same_as = self.training.seen.get(iteration) == self.reference.seen[iteration]
            row.add('' if same_as else f'iteration {iteration} differs')
        row = self.result.row('file at the end: same weights, averaged weights, optimiser, schedulers')
        for path in checkpoints(self.reference.experiment):
            found = self.training.folder / path.relative_to(self.reference.folder)
            row.add(self._damage(found) if found.exists() else f'{found.name} is missing')
        row = self.result.row('run finished')
        row.add(outcome.complaint or (outcome.error if outcome.status else ''))


def _middle_of_largest_record(path: Path) -> int:
    """A place in a zip file that holds content: between records is padding, where a flipped bit damages nothing."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    with path.open('rb') as file:
        file.seek(record.header_offset + 26)
        name, extra = struct.unpack('<HH', file.read(4))
    return record.header_offset + 30 + name + extra + record.file_size // 2
