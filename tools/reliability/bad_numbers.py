"""NaN and exploding losses: every loss term, in every stage, goes wrong at a random iteration of a training.

``train.on_nan`` says whether the run must stop there, or leave out just this step. The report must name iteration, loss
term and candidates, and no checkpoint may hold what is no number.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from basicsr_classpruning.safe_files import save_file
from basicsr_classpruning.untrusted.files import load_file
from tests.tiny import same
from tools.reliability.common import Outcome, Result
from tools.reliability.material import EXPERIMENT, checkpoints, damage_of, start_training, training, write_model
from tools.reliability.poison import ADDED

LENGTHS = {'supernet': 15, 'classifier': 15, 'joint': 15}
TERMS = {
    'supernet': ('pixel', 'distill'),
    'classifier': ('difficulty', 'budget', 'class'),
    'joint': ('pixel', 'distill', 'difficulty', 'budget', 'class'),
}
LOGGED = {
    'pixel': 'l_pix',
    'distill': 'l_distill',
    'difficulty': 'l_difficulty',
    'budget': 'l_budget',
    'class': 'l_class',
}
POISONS = (*ADDED, 'NaN gradient')


def run(count: int, seed: int, folder: Path) -> Result:
    """Poisons ``count`` combinations of stage, term and poison, each with both options; and what happens by itself."""
    trials = Trials(folder)
    rng = random.Random(seed)
    combinations = [(stage, term, poison) for stage in LENGTHS for term in TERMS[stage] for poison in POISONS]
    for stage, term, poison in rng.sample(combinations, min(count, len(combinations))):
        offset = rng.randrange(2, LENGTHS[stage])  # an explosion is measured against the steps before it
        for on_nan in ('stop', 'skip'):
            trials.poisoned(stage, term, poison, offset, on_nan)
    trials.by_themselves()
    return trials.result


class Trials:
    """Trainings with bad numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result = Result()
        self.options = training(folder, tuple(LENGTHS.values()), save_every=1)  # type: ignore[arg-type]
        self.options['train']['difficulty_opt'] = {'type': 'ErrorRatioLoss'}

    def _train(self, number: int, train: dict[str, Any], **sections: Any) -> tuple[Path, Outcome]:
        folder = self.folder / f'trial{number}'
        options = {**self.options, **sections, 'train': {**self.options['train'], **train}}
        return folder / EXPERIMENT, start_training(folder, options).wait()

    def poisoned(self, stage: str, term: str, poison: str, offset: int, on_nan: str) -> None:
        """One loss term goes wrong in one iteration."""
        before = {name: sum(list(LENGTHS.values())[:place]) for place, name in enumerate(LENGTHS)}
        iteration = before[stage] + offset
        absent = sum(LENGTHS[name] for name in LENGTHS if before[name] < before[stage] and term not in TERMS[name])
        key = f'{term}_opt'
        loss = {
            'type': 'PoisonedLoss',
            'loss': self.options['train'][key],
            'call': iteration - absent,
            'poison': poison,
        }
        if term == 'budget':
            loss['target'] = self.options['train'][key]['target']
        number = sum(row.tried for row in self.result.rows)
        imports = ['tools.reliability.poison']
        experiment, outcome = self._train(number, {key: loss, 'on_nan': on_nan}, custom_imports=imports)
        complaint = outcome.complaint or self._report(outcome, iteration, term, stage, on_nan)
        complaint = complaint or _damage(experiment)
        if not complaint and on_nan == 'stop' and _newest(experiment) != iteration - 1:
            complaint = f'the newest checkpoint is {_newest(experiment)}'
        elif not complaint and on_nan == 'skip' and not _unchanged(experiment, iteration):
            complaint = 'the step was not left out'
        row = self.result.row(f'{poison}, on_nan: {on_nan}')
        row.add(complaint and f'{term} {poison} at {iteration} ({on_nan}): {complaint}')

    def _report(self, outcome: Outcome, iteration: int, term: str, stage: str, on_nan: str) -> str:
        """What the message about the bad step lacks."""
        begins = f'iteration {iteration}: '
        lines = [line for line in outcome.output.splitlines() if begins in line]
        if outcome.status != (1 if on_nan == 'stop' else 0):
            return f'exit status {outcome.status}: {outcome.error}'
        if len(lines) != 1:
            return f'{len(lines)} lines about the iteration'
        wanted = (LOGGED[term], f'stage {stage}', *(('candidates ',) if stage != 'classifier' else ()))
        lacking = [word for word in wanted if word not in lines[0]]
        return f'the report lacks {", ".join(lacking)}: {lines[0]}' if lacking else ''

    def by_themselves(self) -> None:
        """Losses that go wrong without any poison."""
        broken = load_file(write_model(self.folder / 'whole.pth'))
        broken['params']['base.model.0.weight'].view(-1)[0] = float('nan')
        save_file(broken, self.folder / 'broken.pth')
        for what, train, sections in (
            ('learning rate of 1e4', {'optim_g': {'type': 'Adam', 'lr': 1e4}}, {}),
            ('learning rate of 1e6', {'optim_g': {'type': 'Adam', 'lr': 1e6}}, {}),
            ('learning rate of the classifier of 1e6', {'classifier_lr': 1e6, 'stages': {'classifier': 45}}, {}),
            ('a NaN in the starting weights', {}, {'path': {'pretrain_network_g': str(self.folder / 'broken.pth')}}),
        ):
            number = sum(row.tried for row in self.result.rows)
            experiment, outcome = self._train(number, train, **sections)
            complaint = outcome.complaint or _damage(experiment)
            if not complaint and (outcome.status != 1 or 'iteration ' not in outcome.error):
                complaint = f'exit status {outcome.status}: {outcome.error}'
            self.result.row(f'{what}: stopped, nothing bad saved').add(complaint and f'{what}: {complaint}')
            self.result.figures[what] = outcome.error.partition('error: ')[2]


def _damage(experiment: Path) -> str:
    return '; '.join(filter(None, map(damage_of, checkpoints(experiment))))


def _newest(experiment: Path) -> int:
    return max((int(path.stem) for path in experiment.glob('training_states/*.state')), default=0)


def _unchanged(experiment: Path, iteration: int) -> bool:
    """Whether an iteration has left the weights as they were, but for masks that were renewed."""
    before, after = (
        load_file(experiment / f'models/net_g_{number}.pth')['params'] for number in (iteration - 1, iteration)
    )
    floats = [{key: value for key, value in part.items() if value.dtype == torch.float32} for part in (before, after)]
    return same(*floats)
