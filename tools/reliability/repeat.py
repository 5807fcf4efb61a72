"""The same run twice: with the same ``manual_seed``, threads and workers, every checkpoint is the same bit for bit."""

from __future__ import annotations

from pathlib import Path

from basicsr_classpruning.untrusted.files import load_file
from tests.tiny import same
from tools.reliability.common import Result
from tools.reliability.material import EXPERIMENT, checkpoints, start_training, training

STAGES = (10, 5, 5)
DEGRADATIONS = ({'type': 'noise', 'sigma': [0, 50]}, {'type': 'jpeg', 'quality': [10, 90]})


def run(count: int, seed: int, folder: Path) -> Result:
    """Runs ``count`` trainings of different seeds, degradations and numbers of threads, each with 0 and 2 workers."""
    result = Result()
    for number in range(count):
        options = training(folder, STAGES, save_every=5)
        options['manual_seed'] = seed + number
        options['datasets']['train']['degradation'] = DEGRADATIONS[number // 2 % len(DEGRADATIONS)]
        threads = 1 + number % 2
        for workers in (0, 2):
            options['datasets']['train']['num_worker_per_gpu'] = workers
            first, second = (
                _train(folder / f'{number} {threads} {workers} {turn}', options, threads)
                for turn in ('first', 'second')
            )
            row = result.row(f'file of a run, {threads} thread(s), {workers} workers: the same in the second run')
            for path in checkpoints(first):
                row.add('' if _equal(path, second / path.relative_to(first)) else f'{path.name}: {row.what}')
            if workers:
                alone = folder / f'{number} {threads} 0 first' / EXPERIMENT
                row = result.row(f'file of a run, {threads} thread(s): the same with 0 and 2 workers')
                for path in checkpoints(first):
                    row.add('' if _equal(path, alone / path.relative_to(first)) else f'{path.name}: {row.what}')
    return result


def _train(folder: Path, options: dict, threads: int) -> Path:
    outcome = start_training(folder, options, threads).wait()
    if outcome.status:
        raise RuntimeError(f'a training failed: {outcome.output}')
    return folder / EXPERIMENT


def _equal(first: Path, second: Path) -> bool:
    return second.exists() and same(load_file(first), load_file(second))
