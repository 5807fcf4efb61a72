"""Load: ``restore`` on thousands of small pictures and on one huge picture, and by two processes at once."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.checkpoint import write_checkpoint
from tests.tiny import NETWORKS, classpruning, int8_network, randomise
from tools.reliability.common import Result, Row

_FULL = 2000  # small pictures from which on the huge one is as huge as it is meant to be
_HUGE = (8000, 12000)
_FLAT = 1.05  # growth of the memory from the second quarter of a run to the last that still counts as flat


def run(count: int, seed: int, folder: Path) -> Result:
    """Restores ``count`` small pictures and one of 12,000 × 8,000 (a hundredth of that for less than 2,000)."""
    result = Result()
    full = count >= _FULL
    model = _write_model(folder / 'model.pth')
    rng = np.random.default_rng(seed)
    small = _write_small(folder / 'small', count, rng)
    for backend in ('dense', 'cpu') if full else ('cpu',):
        one, two = (
            Restoring(small, model, folder / f'{backend}{threads}', threads, backend).run() for threads in (1, 2)
        )
        for restoring in (one, two):
            result.row('small picture: restored').tried += count
            result.row('small picture: restored').lost += restoring.missing(count)
        _compare(result.row(f'small picture, --backend {backend}: same bytes with 1 and 2 threads'), one, two)
    _measure(result, f'{count} small pictures', one, judged=full)
    shared = folder / 'shared'
    both = [Restoring(small, model, shared, threads, backend).start() for threads in (1, 2)]
    for restoring in both:
        restoring.finish()
        result.row('small picture, two processes in one folder: restored').tried += count
        result.row('small picture, two processes in one folder: restored').lost += restoring.missing(count)
    _compare(result.row('small picture, two processes in one folder: same bytes as alone'), both[0], one)
    integers = _write_int8_model(folder / 'int8.pth')
    some = _write_small(folder / 'some', max(count // 10, 2), rng)
    one, two = (Restoring(some, integers, folder / f'int8-{threads}', threads, 'cpu').run() for threads in (1, 2))
    _compare(result.row('small picture, 8-bit integers: same bytes with 1 and 2 threads'), one, two)
    routed = _write_routed_model(folder / 'routed.pth')
    one, two = (
        Restoring(some, routed, folder / f'patches-{threads}', threads, 'cpu', patch=16).run() for threads in (1, 2)
    )
    _compare(result.row('small picture, in patches with a bypass: same bytes with 1 and 2 threads'), one, two)
    height, width = _HUGE if full else (side // 10 for side in _HUGE)
    huge = _write_huge(folder / 'huge', height, width, rng)
    one, two = (Restoring(huge, model, folder / f'huge{threads}', threads, 'dense', 256).run() for threads in (1, 2))
    for restoring in (one, two):
        result.row('huge picture: restored').tried += 1
        result.row('huge picture: restored').lost += restoring.missing(1)
        _measure(result, f'one picture of {width} × {height}, {restoring.threads} thread(s)', restoring, judged=full)
    _compare(result.row('huge picture: same bytes with 1 and 2 threads'), one, two)
    return result


def _write_model(path: Path) -> Path:
    """A small network; the figures are about memory and bytes, not about speed."""
    net = ClassPruning({**NETWORKS['DnCNN'], 'num_feat': 8, 'num_conv': 3}, ['1:4', '2:4', '4:4'])
    randomise(net)
    net.rank_by_magnitude()
    write_checkpoint(path, {'params': net.state_dict()}, net.options)
    return path


def _write_int8_model(path: Path) -> Path:
    """One with a bypass, units and groups that are not whole."""
    net = int8_network(base={**NETWORKS['DnCNN'], 'num_feat': 18, 'num_conv': 3})
    write_checkpoint(path, {'params': net.state_dict()}, net.options)
    return path


def _write_routed_model(path: Path) -> Path:
    """One with a bypass, whose patches can have candidates of their own."""
    net = classpruning('DnCNN', candidates=['0:4', '1:4', '2:4', '4:4'])
    write_checkpoint(path, {'params': net.state_dict()}, net.options)
    return path


def _write_small(folder: Path, count: int, rng: np.random.Generator) -> Path:
    folder.mkdir()
    for number in range(count):
        height, width = rng.integers(24, 80, 2)
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        cv2.imwrite(str(folder / f'{number:04}.png'), cv2.resize(coarse, (int(width), int(height))))
    return folder


def _write_huge(folder: Path, height: int, width: int, rng: np.random.Generator) -> Path:
    folder.mkdir()
    coarse = rng.integers(40, 216, (height // 50, width // 50, 3), np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(0, 12, (200, width, 3), np.uint8)
    for top in range(0, height, 400):  # every other strip is noisy
        picture[top : top + 200] += grain[: len(picture[top : top + 200])]
    cv2.imwrite(str(folder / 'huge.png'), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return folder


@dataclass
class Restoring:
    """One process of ``classpruning restore`` whose memory is watched."""

    source: Path
    model: Path
    output: Path
    threads: int
    backend: str
    tile: int = 96
    patch: int | None = None
    """Side of patches that are routed to a budget; None: whole tiles are routed, by the price."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, resident memory in MiB."""
    status: int = 0
    errors: str = ''

    def start(self) -> Restoring:
        self._report = self.output.with_name(f'{self.output.name}-{self.threads}.json')
        arguments = [
            'restore', self.source, '--model', self.model, '--output', self.output, '--threads', self.threads,
            '--backend', self.backend, '--tile', self.tile, '--json', self._report, '--overwrite',
        ]  # fmt: skip
        arguments += ['--patch', 0] if self.patch is None else ['--patch', self.patch, '--budget', 0.6]
        # The environment's number of threads must not matter either. Which algorithm is the faster one is measured by
        # each process: where both are as fast, two may find otherwise, and round otherwise.
        environment = {**os.environ, 'OMP_NUM_THREADS': str(3 - self.threads), 'CLASSPRUNING_ALGORITHM': 'winograd'}
        command = [sys.executable, '-m', 'basicsr_classpruning', *map(str, arguments)]
        self._log = open(self.output.with_name(f'{self.output.name}-{self.threads}.log'), 'w+')  # noqa: SIM115
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environment)
        self._start = time.perf_counter()
        return self

    def finish(self) -> Restoring:
        """Waits for the end, watching the memory."""
        statm = Path(f'/proc/{self._process.pid}/statm')
        page = os.sysconf('SC_PAGE_SIZE')
        while self._process.poll() is None:
            fields = statm.read_text().split()
            if len(fields) > 1 and int(fields[1]):
                self.memory.append((time.perf_counter() - self._start, int(fields[1]) * page / 2**20))
            time.sleep(0.1)
        self.status = self._process.returncode
        self._log.seek(0)
        self.errors = self._log.read().strip().rpartition('\n')[2]
        self._log.close()
        return self

    def run(self) -> Restoring:
        """From the start to the end."""
        return self.start().finish()

    def missing(self, count: int) -> list[str]:
        """What was not restored, a line each."""
        if self.status:
            return [f'exit status {self.status}: {self.errors}'] * count
        report = json.loads(self._report.read_text())
        pictures = len([path for path in self.output.iterdir() if path.suffix == '.png'])
        done = min(report['pictures'], pictures)
        return ['not restored'] * (count - done) + ['skipped'] * len(report['skipped'])


def _compare(row: Row, one: Restoring, two: Restoring) -> None:
    for path in sorted(one.source.iterdir()):
        first, second = one.output / path.name, two.output / path.name
        equal = first.exists() and second.exists() and first.read_bytes() == second.read_bytes()
        row.add('' if equal else f'{path.name}: {row.what}')
    leftovers = [path.name for path in (*one.output.glob('.*'), *two.output.glob('.*'))]
    row.lost += [f'{name} is left over' for name in leftovers]


def _measure(result: Result, what: str, restoring: Restoring, judged: bool) -> None:
    """Writes down the memory of a run by quarters of its time; ``judged``: it must be flat from the second quarter on.

    Of a run with little to restore, most is the start: its memory is not judged, however long it takes.
    """
    end = restoring.memory[-1][0]
    quarters = [
        max((size for seconds, size in restoring.memory if low <= seconds / end <= high), default=0.0)
        for low, high in itertools.pairwise((0, 0.25, 0.5, 0.75, 1))
    ]
    step = max(1, len(restoring.memory) // 40)
    result.figures.setdefault('memory', []).append(
        {
            'what': what,
            'seconds': round(end, 1),
            'peak MiB by quarter of the time': [round(size) for size in quarters],
            'curve': [(round(seconds, 1), round(size)) for seconds, size in restoring.memory[::step]],
        }
    )
    if judged:
        grown = quarters[3] / quarters[1]
        result.row('memory flat').add('' if grown <= _FLAT else f'{what}: memory grew to {grown:.2f} times')
