"""Collapse of the classifier, provoked: detected, logged, and recovered from or stopped, as ``on_collapse`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from basicsr_classpruning.safe_files import save_file
from basicsr_classpruning.untrusted.files import load_file
from tests.tiny import write_pictures
from tools.reliability.common import Outcome, Result
from tools.reliability.material import EXPERIMENT, checkpoints, damage_of, start_training, training, write_model

LENGTH = 450  # of the classifier's stage; a collapse counts after 200 steps
COLLAPSED = 'the classifier has collapsed to one class'


def run(seeds: int, seed: int, folder: Path) -> Result:
    """Provokes collapses in ``seeds`` different trainings, in two ways, with each option."""
    result = Result(figures={'most images in one class afterwards, recovered runs': []})
    for number in range(seed, seed + seeds):
        for cause in ('price absurdly high', 'price absurdly low'):
            for action in ('recover', 'stop', 'warn'):
                trial = Trial(folder / f'{number} {cause} {action}', number, cause, action)
                result.row(f'{cause}, on_collapse: {action}').add(trial.run(result.figures))
    return result


class Trial:
    """One training whose classifier collapses."""

    def __init__(self, folder: Path, seed: int, cause: str, action: str) -> None:
        self.folder, self.cause, self.action = folder, cause, action
        folder.mkdir(parents=True)
        self.pictures = write_pictures(folder / 'pictures', count=6)
        self.options: dict[str, Any] = training(folder, (0, LENGTH, 0), save_every=150)
        self.options['manual_seed'] = seed
        train = self.options['train']
        train['on_collapse'] = action
        train['budget_opt'] = {'type': 'ComputeBudgetLoss', 'target': 0.6}
        self.options['path'] = {'pretrain_network_g': str(self._bad_weights(folder / 'bad.pth'))}

    def _bad_weights(self, path: Path) -> Path:
        """A checkpoint that sends every image to the sparsest candidate, or to the densest, whatever is in it."""
        content = load_file(write_model(path))
        content['params']['log_price'].fill_(12.0 if self.cause == 'price absurdly high' else -12.0)
        save_file(content, path)
        return path

    def run(self, figures: dict[str, Any]) -> str:
        """What is wrong with how it ended; empty if all is as the option says."""
        outcome = start_training(self.folder, self.options).wait()
        complaint = outcome.complaint or self._judge(outcome)
        damaged = [damage_of(path) for path in checkpoints(self.folder / EXPERIMENT)]
        complaint = complaint or '; '.join(filter(None, damaged))
        if not complaint and outcome.status == 0 and self.action == 'recover':
            figures['most images in one class afterwards, recovered runs'].append(self._largest_share())
        return complaint and f'{self.folder.name}: {complaint}'

    def _judge(self, outcome: Outcome) -> str:
        lines = [line for line in outcome.output.splitlines() if COLLAPSED in line]
        if not lines:
            return 'no collapse was seen'
        if self.action == 'stop':
            return '' if outcome.status == 1 and COLLAPSED in outcome.error else f'not stopped: {outcome.error}'
        if self.action == 'warn':
            return '' if outcome.status == 0 else f'stopped: {outcome.error}'
        restarts = sum('it starts afresh' in line for line in lines)
        if outcome.status == 0:
            return '' if restarts else 'not recovered'
        return '' if restarts == 3 and COLLAPSED in outcome.error else f'stopped after {restarts} restarts'

    def _largest_share(self) -> float:
        """Share of the most frequent class when the training is over, on its own data."""
        state = load_file(self.folder / EXPERIMENT / f'training_states/{LENGTH}.state')
        return round(float(state['watch']['shares'].max()), 3)
