"""What the benchmark tables consist of: every row's network, start and training. Nothing here runs anything."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

CALIBRATION = 'datasets/BSDS500/train'
LADDER = ('4:16', '6:16', '8:16', '11:16', '16:16')
LARGE = 'BSD100'
OTHER = 'other'
"""Test set of scikit-image's pictures that are unlike the training pictures; made where it is missing."""
SEEDS = (0, 1, 2)
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Task:
    """What the networks of a table restore."""

    degradation: dict[str, Any]
    """As in an options file."""
    degrade: str
    """The same as a value of ``classpruning benchmark --degrade``."""
    scale: int
    gt_size: int
    shrink: int
    """Factor by which the training pictures, which are JPEG, are shrunk first."""


NOISE = Task({'type': 'noise', 'sigma': [0, 50]}, 'noise0-50', scale=1, gt_size=64, shrink=2)
SUPER_RESOLUTION_X2 = Task({'type': 'bicubic'}, 'bicubic2', scale=2, gt_size=96, shrink=1)


@dataclass(frozen=True)
class Training:
    """Length and learning rate of one training."""

    steps: int
    rate: float


@dataclass(frozen=True)
class Row:
    """One network of a table."""

    name: str
    """Also of its options file and, with the table's name before it, of its experiment."""
    label: str
    network: dict[str, Any]
    """``network_g`` of its options file."""
    trainings: tuple[Training, ...]
    """One after the other, in one run."""
    start: str | None = None
    """The row whose network it starts from; None: random weights."""
    calibrated: bool = False
    """Whether the start is pruned with calibration data first; otherwise by magnitude."""
    batch: int = 8
    """Images of a step."""
    train: dict[str, Any] = field(default_factory=dict)
    """What its ``train`` block has besides the table's."""
    seed: int = SEEDS[0]
    repeats: str | None = None
    """The row of the first seed that it is another training of, with the same pruned start."""

    @property
    def sparse(self) -> bool:
        """Whether it is a ClassPruning network, of one candidate or of several."""
        return self.network['type'] == 'ClassPruning'

    @property
    def routed(self) -> bool:
        """Whether it has a choice of candidates."""
        return self.sparse and len(self.network['candidates']) > 1


@dataclass(frozen=True)
class Table:
    """Networks of one task, all trained with the same data for the same total number of steps."""

    name: str
    title: str
    task: Task
    base: dict[str, Any]
    """The dense network that is pruned."""
    narrow: tuple[int, ...]
    """Features of smaller dense networks, for comparison at equal MACs."""
    first: Training
    """From random weights to the dense network that all pruned ones start from."""
    further: Training
    """From there on."""
    stages: dict[str, int]
    """Of the ClassPruning rows; they add up to the further steps."""
    test_sets: tuple[str, ...] = (LARGE, 'Set14', OTHER)
    repeated: tuple[str, ...] = ()
    """Rows that are trained with every seed, from the same dense network."""

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All rows, each after the one it starts from."""
        from_nothing = (self.first, self.further)
        rows = self._rows_of_the_first_seed(from_nothing)
        again = [row for row in rows if row.name in self.repeated]
        return rows + tuple(
            replace(row, name=f'{row.name}_seed{seed}', label=f'{row.label}, seed {seed}', seed=seed, repeats=row.name)
            for seed in SEEDS[1:]
            for row in again
        )

    def _rows_of_the_first_seed(self, from_nothing: tuple[Training, ...]) -> tuple[Row, ...]:
        return (
            Row('start', 'dense, before the further steps', self.base, (self.first,)),
            Row('dense', 'dense', self.base, (self.further,), start='start'),
            *(
                Row(f'dense_{width}', f'dense, {width} features', {**self.base, 'num_feat': width}, from_nothing)
                for width in self.narrow
            ),
            *(self._static(candidate, calibrated=False) for candidate in ('1:4', '2:4')),
            *(self._static(candidate, calibrated=True) for candidate in ('4:16', '6:16', '8:16')),
            self.classpruning('classpruning', 'ClassPruning'),
        )

    def _static(self, candidate: str, calibrated: bool) -> Row:
        start = 'calibrated' if calibrated else 'SR-STE'
        return Row(
            f'static_{candidate.replace(":", "_")}',
            f'static {candidate}, {start}',
            self._network([candidate], 'own' if calibrated else 'shared'),
            (self.further,),
            start='start',
            calibrated=calibrated,
        )

    def classpruning(self, name: str, label: str, *, ladder: tuple[str, ...] = LADDER, **changes: Any) -> Row:
        """A ClassPruning row; ``changes`` replace values of its ``train`` block, None takes a key out."""
        train = {
            'stages': self.stages,
            'split': 'budget',
            'budget_opt': {'type': 'ComputeBudgetLoss', 'target': 0.6, 'loss_weight': 1.0},
            'class_opt': {'type': 'ClassificationLoss', 'loss_weight': 0.1},
        }
        train = {key: value for key, value in {**train, **changes}.items() if value is not None}
        network = self._network(list(ladder), 'own')
        # The learning rate falls within each stage: the classifier has to learn when the candidates have settled. It
        # begins twice as high as for one network: a candidate sees a part of each batch only.
        rates = (2 * self.further.rate, self.further.rate, self.further.rate)
        stages = tuple(Training(*pair) for pair in zip(train['stages'].values(), rates) if pair[0])
        return Row(name, label, network, stages, start='start', calibrated=True, batch=10, train=train)

    def _network(self, candidates: list[str], weights: str) -> dict[str, Any]:
        return {'type': 'ClassPruning', 'base': self.base, 'candidates': candidates, 'weights': weights}

    def row(self, name: str) -> Row:
        """The row of a name. Raises KeyError."""
        return {row.name: row for row in self.rows}[name]

    def trainings_of(self, name: str) -> list[Row]:
        """A row with all its seeds."""
        return [row for row in self.rows if name in (row.name, row.repeats)]
