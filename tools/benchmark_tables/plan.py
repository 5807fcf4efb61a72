"""What the benchmark tables consist of: every row's network, start and training. Nothing here runs anything."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

CALIBRATION = 'datasets/BSDS500/train'
LARGE = 'BSD100'
OTHER = 'other'
"""Test set of scikit-image's pictures that are unlike the training pictures; made where it is missing."""
VARIANTS_TEST_SET = 'Set14'
VARIANTS_BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
SEEDS = (0, 1, 2)
BUDGETS = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


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
JPEG = Task({'type': 'jpeg', 'quality': [10, 90]}, 'jpeg10-90', scale=1, gt_size=64, shrink=2)
SUPER_RESOLUTION_X2 = Task({'type': 'bicubic'}, 'bicubic2', scale=2, gt_size=96, shrink=1)
SUPER_RESOLUTION_X4 = Task({'type': 'bicubic'}, 'bicubic4', scale=4, gt_size=96, shrink=1)


@dataclass(frozen=True)
class Training:
    """Length and learning rate of one training."""

    steps: int
    rate: float


@dataclass(frozen=True)
class Recipe:
    """What ClassPruning consists of in a table, and how much of the training each part gets."""

    ladder: tuple[str, ...] = ('3:16', '6:16', '10:16', '16:16')
    """The candidates."""
    batch: int = 3
    """Images of a step."""
    sparse_batch: int | None = None
    """How many of them the sparse candidates restore; None: all, as the dense one does."""
    fit: int = 0
    """Steps that cost what fitting the classifier to the calibration pictures costs, and take their place; 0: it learns
    in training only."""


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
    per_layer: bool = False
    """Whether pruning with data gives each layer its own N; otherwise all layers have that of the candidate."""
    permuted: bool = False
    """Whether the start's output channels are first put in an order in which similar ones share a block."""
    batch: int = 8
    """Images of a step."""
    train: dict[str, Any] = field(default_factory=dict)
    """What its ``train`` block has besides the table's."""
    fit: int = 0
    """As in its recipe."""
    seed: int = SEEDS[0]
    repeats: str | None = None
    """The row of the first seed that it is another training of."""
    pruned_as: str | None = None
    """The row whose pruned start it shares; None: it has its own."""
    variant: bool = False
    """Whether it shows what a part of ClassPruning, or a pattern, is worth; it has a table apart."""

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
    first: Training
    """From random weights to the dense network that all pruned ones start from."""
    further: Training
    """From there on."""
    narrow: tuple[int, ...] = ()
    """Features of smaller dense networks, for comparison at equal MACs."""
    recipe: Recipe = Recipe()
    """ClassPruning's."""
    by_magnitude: tuple[str, ...] = ()
    """Static N:M rivals whose masks go by magnitude and are learnt in training."""
    calibrated: tuple[str, ...] = ('8:16',)
    """Static N:M rivals that are pruned with data, as ClassPruning is, to one N in all layers."""
    per_layer: tuple[str, ...] = ()
    """The same with an N for each layer, at the MACs of N:M; where there are any, ClassPruning's candidates have that
    too."""
    test_sets: tuple[str, ...] = ('Set14',)
    repeated: tuple[str, ...] = ()
    """Rows that are trained with every seed, from the same pruned start."""
    timed_apart: bool = False
    """Whether the kept results are of a time when ClassPruning's candidates were timed before the other networks had
    their turn: what a busy machine makes of that is no comparison."""
    variants_of: Recipe | None = None
    """The recipe that variants of ClassPruning change one thing of; None: neither they nor patterns are compared."""

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All rows, each after the one it starts from."""
        rows = self._rows_of_the_first_seed()
        again = [(row, seed) for seed in SEEDS[1:] for row in rows if row.name in self.repeated]
        return (
            *rows,
            *(
                replace(
                    row,
                    name=f'{row.name}_seed{seed}',
                    label=f'{row.label}, seed {seed}',
                    seed=seed,
                    repeats=row.name,
                    pruned_as=row.name,
                )
                for row, seed in again
            ),
            *(self._variants(self.variants_of) if self.variants_of else ()),
        )

    def _rows_of_the_first_seed(self) -> tuple[Row, ...]:
        from_nothing = (self.first, self.further)
        return (
            Row('start', 'dense, before the further steps', self.base, (self.first,)),
            Row('dense', 'dense', self.base, (self.further,), start='start'),
            *(
                Row(f'dense_{width}', f'dense, {width} features', {**self.base, 'num_feat': width}, from_nothing)
                for width in self.narrow
            ),
            *(self._static(candidate, calibrated=False) for candidate in self.by_magnitude),
            *(self._static(candidate, calibrated=True) for candidate in self.calibrated),
            *(self._static_per_layer(candidate) for candidate in self.per_layer),
            self.classpruning('classpruning', 'ClassPruning', self.recipe),
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
            # As the kept results were trained: masks changed to the end, and averaged weights were worse than the last.
            train={} if calibrated else {'ema_decay': 0},
        )

    def _static_per_layer(self, candidate: str) -> Row:
        uniform = self._static(candidate, calibrated=True)
        return replace(
            uniform, name=f'{uniform.name}_layers', label=f'static {candidate}, per-layer N, calibrated', per_layer=True
        )

    def classpruning(
        self,
        name: str,
        label: str,
        recipe: Recipe,
        network: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Row:
        """A ClassPruning row; ``changes`` replace values of its ``train`` block, None takes a key out."""
        train: dict[str, Any] = {
            'stages': {'supernet': self.further.steps - recipe.fit},
            'split': 'none',
            'sparse_batch': recipe.sparse_batch,
            'budget_opt': {'type': 'ComputeBudgetLoss', 'target': 0.6, 'loss_weight': 1.0},
            'class_opt': {'type': 'ClassificationLoss', 'loss_weight': 0.1},
        }
        train = {key: value for key, value in {**train, **changes}.items() if value is not None}
        # The learning rate falls within each stage: the classifier has to learn when the candidates have settled. It
        # begins twice as high as for one network: a pruned candidate has more to learn.
        rates = (2 * self.further.rate, self.further.rate, self.further.rate)
        stages = tuple(Training(*pair) for pair in zip(train['stages'].values(), rates) if pair[0])
        whole = {**self._network(list(recipe.ladder), 'own'), **(network or {})}
        return Row(
            name,
            label,
            whole,
            stages,
            start='start',
            calibrated=True,
            per_layer=bool(self.per_layer),
            batch=recipe.batch,
            train=train,
            fit=recipe.fit,
        )

    def _variants(self, recipe: Recipe) -> tuple[Row, ...]:
        """The recipe, and rows that change one thing of it; those pruned alike share a start. Patterns are static."""
        steps = self.further.steps - recipe.fit
        joint = {'supernet': steps - steps // 3, 'classifier': 0, 'joint': steps // 3}
        turn = {'supernet': steps, 'classifier': 0, 'joint': 0}
        distillation = {'type': 'DistillationLoss', 'loss_weight': 1.0}
        dealt = replace(recipe, batch=11)
        two, densest = replace(recipe, batch=2), replace(recipe, batch=6, sparse_batch=2)
        six = replace(two, ladder=('3:16', '4:16', '6:16', '8:16', '11:16', '16:16'))
        reference = self.classpruning('variant_ladder4', 'four candidates, 3 images a step', recipe)
        alike: tuple[Row, ...] = (
            self.classpruning('variant_turn', 'batches of 11 dealt in turn', dealt, split='turn', stages=turn),
            self.classpruning('variant_joint', 'the same, a third of it joint', dealt, split='turn', stages=joint),
            self.classpruning('variant_batch2', '2 images a step', two),
            self.classpruning('variant_batch8', '8 images a step', replace(recipe, batch=8)),
            self.classpruning('variant_dense6', '2 images a step, 6 for the dense candidate', densest),
            self.classpruning('variant_distillation', 'with distillation', recipe, distill_opt=distillation),
            self.classpruning(
                'variant_no_terms', 'without the two loss terms', recipe, budget_opt=None, class_opt=None
            ),
        )
        others = (
            self.classpruning('variant_shared', 'one weight set, nested masks', recipe, {'weights': 'shared'}),
            self.classpruning('variant_ladder6', 'six candidates, 2 images a step', six),
        )
        patterns = (
            self._pattern('pattern_m4', '2:4, block 1', '2:4'),
            self._pattern('pattern_m32', '16:32, block 1', '16:32'),
            self._pattern('pattern_block4', '8:16, block 4', '8:16', block=4),
            self._pattern('pattern_taps', '8:16, block 16, shared taps', '8:16', block=16, share_taps=True),
        )
        similar = (
            replace(row, name=f'{row.name}_permuted', label=f'{row.label}, similar channels together', permuted=True)
            for row in patterns
            if 'block' in row.network
        )
        alike = tuple(replace(row, pruned_as=reference.name) for row in alike)
        return tuple(replace(row, variant=True) for row in (reference, *alike, *others, *patterns, *similar))

    def _pattern(self, name: str, label: str, candidate: str, **pattern: Any) -> Row:
        """A static network of another pattern, to be compared with static 8:16."""
        row = self._static(candidate, calibrated=True)
        return replace(row, name=name, label=label, network={**row.network, **pattern})

    def _network(self, candidates: list[str], weights: str) -> dict[str, Any]:
        return {'type': 'ClassPruning', 'base': self.base, 'candidates': candidates, 'weights': weights}

    def row(self, name: str) -> Row:
        """The row of a name. Raises KeyError."""
        return {row.name: row for row in self.rows}[name]

    def compared(self, variants: bool) -> list[Row]:
        """The rows that are measured together: all but the variants, or these and what they are compared with."""
        beside = ('dense', 'static_8_16', 'classpruning')
        return [
            row
            for row in self.rows
            if row.name != 'start' and (row.variant or row.name in beside if variants else not row.variant)
        ]

    @property
    def widths(self) -> list[Row]:
        """The dense rows of all widths, narrowest first: what a container holds."""
        return [self.row(f'dense_{width}') for width in sorted(self.narrow)] + [self.row('dense')]

    def result_name(self, variants: bool) -> str:
        """Beginning of the names of the result files of ``compared``."""
        return f'{self.name}_variants' if variants else self.name

    def trainings_of(self, name: str) -> list[Row]:
        """A row with all its seeds."""
        return [row for row in self.rows if name in (row.name, row.repeats)]
