"""Compares networks, candidates, budgets and engines on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch

from basicsr_classpruning.benchmark.metrics import Quality, compare, mean_of_finite
from basicsr_classpruning.benchmark.models import BenchmarkModel, TiledImage
from basicsr_classpruning.benchmark.pairs import Pair, Pairs
from basicsr_classpruning.benchmark.patches import PatchedModel, PatchedRun, errors_of_patches
from basicsr_classpruning.devices import device_of
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.inference.patch_plan import PatchPlan
from basicsr_classpruning.inference.restorer import Restorer
from basicsr_classpruning.inference.shared_budget import share_budget
from basicsr_classpruning.inference.tiling import TileGrid
from basicsr_classpruning.routing.budget import deal_by_chance, least_errors
from basicsr_classpruning.routing.errors import LEAST_ERROR, errors_in_image, expected_errors, reference_errors

Progress = Callable[[str, int, int], None]
"""Is told a stage's name, what is done of it and its total."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how."""

    tile: int = 96
    overlap: int = 8
    patch: int | None = None
    """Side of the patches that get a candidate each in the routed rows, in input pixels; None: whole tiles do."""
    budgets: tuple[float, ...] = ()
    budget_in: str = 'macs'
    """What budgets count: ``macs``, or ``time`` as it is measured on this machine."""
    candidates: tuple[str, ...] = ()
    """With neither budgets nor candidates: all candidates, and the classifier's own choice."""
    backend: str = 'auto'
    threads: int = 1
    repeats: int = 3
    """Measurements of each tile, and of each image that is restored patch by patch; the median counts."""
    seed: int = 0
    """Of the random allocation."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison: one way to run one network on all images."""

    model: str
    kind: str
    """``dense``, ``candidate``, ``routed`` (the classifier alone), ``budget``; ``oracle`` and ``random`` are the
    reference curves: the best allocation at the same budget, knowing the errors, and the budget's shares dealt by
    chance."""
    candidate: str | None
    budget: float | None
    psnr: float | None
    """Mean over the images where it is finite, dB, ``scale`` pixels cropped at the border. None: it is in none."""
    psnr_y: float | None
    ssim: float
    macs: float
    """Average MACs of a tile, the classifier's included where it decides."""
    macs_dense: float
    saved: float
    seconds: float
    """The network's time for all images: the sum of the tiles' median times, of one call a tile."""
    pixels: int
    """Of all restored images."""
    params: int
    """What is multiplied with: a dense network's parameters, a candidate's without its zeros; of a routed network those
    of all candidates and of the classifier."""
    class_share: dict[str, float]
    backend: str
    threads: int
    pictures: int
    patch: int | None = None
    """Side of what got a candidate of its own, in input pixels, where that is less than a tile. Rings and halos are
    then counted in ``macs``."""
    budget_in: str | None = None
    """What the budget counts, ``macs`` or ``time``; None where there is none."""
    enough: bool = False
    """Whether everything got the candidate that is expected to leave the least error: more would not help."""
    equal: dict[str, int] = field(default_factory=dict)
    """By ``psnr`` and ``psnr_y``, images left out of the mean, because they are restored exactly."""


@dataclass(frozen=True)
class Sample:
    """One image as the row of `shown_row` restored it."""

    pair: Pair
    restored: np.ndarray
    """``(H, W, C)`` uint8, of the true image's size."""
    quality: Quality
    grid: TileGrid
    """Tiles, or patches, of the degraded image."""
    candidates: tuple[str, ...]
    """Of the network; none where the row is a dense network's."""
    classes: np.ndarray
    """``(T,)`` index of each tile's candidate."""
    saved: float
    """1 − average MACs / dense MACs, of this image."""


@dataclass
class _Line:
    """A row in the making: which variant restores each tile of each image."""

    model: BenchmarkModel
    kind: str
    candidate: str | None
    budget: float | None
    backend: str
    choices: list[np.ndarray]
    classified: bool
    qualities: list[Quality] = field(default_factory=list)
    tile_pixels: list[np.ndarray] = field(default_factory=list)
    """Of the restored images' tiles, in the order of ``choices``."""
    seconds: float = 0.0
    shown: bool = False
    patched: bool = False
    """Whether ``choices`` speak of patches."""
    enough: bool = False
    spent: list[float] = field(default_factory=list)
    """Of each image restored patch by patch: its MACs, as a fraction of the dense ones times its input pixels."""


@dataclass(frozen=True)
class _Survey:
    """One image's tiles, seen by a classifier, and restored with every candidate."""

    predicted: np.ndarray
    """Errors ``(T, K)``, relative to the image's."""
    errors: np.ndarray
    """Measured ones ``(T, K)``: a tile's part in the image's squared error, in units of the reference candidate's."""
    pixels: int
    """Of one tile."""
    plan: PatchPlan | None = None
    """Where patches are routed: the rows above speak of them."""
    routed: np.ndarray | None = None
    """Classes of the patches without a budget."""


class Benchmark:
    """Runs models over images.

    Args:
        models: all of one scale.
        pairs: the images.
        settings: what is measured.
        progress: is told how far it is.
        show: is given each image as the row of `shown_row` restored it.

    Raises:
        UsageError: a budget that a network with several candidates cannot meet, a candidate that none has, or images
            of another scale than the networks'.
        UserError: the first image cannot be read.
    """

    def __init__(
        self,
        models: Sequence[BenchmarkModel],
        pairs: Pairs,
        settings: Settings,
        progress: Progress,
        show: Callable[[Sample], object] | None = None,
    ) -> None:
        self._models, self._pairs, self._settings, self._progress = models, pairs, settings, progress
        self._show = show
        for name, wanted in (('budgets', settings.budgets), ('candidates', settings.candidates)):
            if wanted and not any(model.candidates for model in models):
                raise UsageError('none of the networks has candidates', key=name)
        for model in models:
            pairs.pair(0, model.info.channels, model.info.scale)
        known = {name for model in models for name in model.info.candidates}
        for candidate in settings.candidates:
            if candidate not in known:
                have = '; '.join(f'{c.name} has {", ".join(c.info.candidates)}' for c in models if c.candidates)
                raise UsageError(f'{candidate}: {have}', key='candidates')
        patch = settings.patch
        if patch is not None and not any(model.candidates > 1 for model in models):
            raise UsageError(f'{patch}: none of the networks has candidates', key='patch')
        restorers = {model.name: _restorer(model, settings) for model in models if model.candidates > 1}
        self._prices = {name: restorer.prices for name, restorer in restorers.items()}
        for prices in self._prices.values():
            for budget in settings.budgets:
                prices.check(budget, patch is not None)
        self._patched = {name: PatchedModel(restorer) for name, restorer in restorers.items() if patch is not None}
        self._warm: set[tuple[str, tuple[int, int], bool]] = set()
        """Models and sizes of tiles that ran before they are timed, and whether in patches."""

    def run(self) -> list[Row]:
        """Measures everything. Raises UserError if an image cannot be read."""
        surveys = {c.name: self._survey(c) for c in self._models if c.candidates > 1 and self._routes}
        lines = [line for c in self._models for line in self._lines(c, surveys.get(c.name))]
        lines[shown_row([line.kind for line in lines])].shown = True
        pixels = 0
        for index in range(len(self._pairs)):
            for model in self._models:
                own = [line for line in lines if line.model is model]
                pixels_here = self._restore(model, own, index)
            pixels += pixels_here
            self._progress('restoring', index + 1, len(self._pairs))
        return [self._row(line, pixels) for line in lines]

    @property
    def _all(self) -> bool:
        return not self._settings.budgets and not self._settings.candidates

    @property
    def _routes(self) -> bool:
        return bool(self._settings.budgets) or self._all

    # ------------------------------------------------------------------------------------------------- what is run

    def _open(self, model: BenchmarkModel, index: int) -> tuple[Pair, TiledImage]:
        pair = self._pairs.pair(index, model.info.channels, model.info.scale)
        tiled = TiledImage(model, pair.degraded, self._settings.tile, self._settings.overlap)
        key = (model.name, tiled.grid.tile_size, False)
        if key not in self._warm:
            self._warm.add(key)
            tiled.warm_up(list(range(len(model.variants))))
        return pair, tiled

    def _survey(self, model: BenchmarkModel) -> list[_Survey]:
        """Scores and errors of all images' tiles: a budget is solved over all of them together.

        Nothing is timed here: a machine may be slower by then than when the other models have their turn.
        """
        surveys = []
        for index in range(len(self._pairs)):
            pair, tiled = self._open(model, index)
            outputs, _ = tiled.measure(list(range(model.candidates)), 1)
            if model.name in self._patched:
                surveys.append(self._survey_patches(model, pair, tiled, outputs))
                self._progress(f'surveying {model.name}', index + 1, len(self._pairs))
                continue
            predicted, _ = tiled.predict(1)
            errors = np.stack([tiled.squared_errors(outputs[k], pair.truth) for k in outputs], axis=1)
            # PSNR counts an image's error relative to itself; see `routing.errors`.
            errors /= max(reference_errors(errors).sum(), LEAST_ERROR)
            surveys.append(_Survey(errors_in_image(predicted), errors, tiled.pixels))
            self._progress(f'surveying {model.name}', index + 1, len(self._pairs))
        return surveys

    def _survey_patches(
        self, model: BenchmarkModel, pair: Pair, tiled: TiledImage, outputs: dict[int, np.ndarray]
    ) -> _Survey:
        restoration = self._patched[model.name].start(pair.degraded)
        plan = restoration.plan
        restored = [tiled.blend(outputs, np.full(len(tiled.grid), k)) for k in range(model.candidates)]
        errors = errors_of_patches(plan, restored, pair.truth, model.info.scale)
        errors /= max(reference_errors(errors).sum(), LEAST_ERROR)
        return _Survey(errors_in_image(restoration.errors), errors, tiled.pixels, plan, restoration.classes)

    def _lines(self, model: BenchmarkModel, surveys: list[_Survey] | None) -> list[_Line]:
        pictures, lines = len(self._pairs), []
        for index, variant in enumerate(model.variants):
            everywhere = [np.full(1, index)] * pictures  # stretched to the image's tiles when they are known
            if index >= max(model.candidates, 1) or not model.candidates:
                lines.append(_Line(model, 'dense', None, None, variant.name, everywhere, False))
            elif self._all or model.candidates == 1 or variant.name in self._settings.candidates:
                backend = self._settings.backend
                lines.append(_Line(model, 'candidate', variant.name, None, backend, everywhere, False))
        for budget in self._settings.budgets if surveys else ():
            lines += self._budget_lines(model, surveys or [], budget)
        if surveys and self._all and model.name in self._patched:
            found = [survey.routed for survey in surveys if survey.routed is not None]
            lines.append(self._routed_line(model, 'routed', None, np.concatenate(found), surveys))
        elif surveys and self._all:
            router, wanted = model.network.router, model.network.budget
            assert router is not None
            predicted = torch.from_numpy(np.concatenate([survey.predicted for survey in surveys]))
            where = device_of(model.network.module)
            classes = router.route(predicted.to(where), model.info.costs.tolist(), wanted).cpu().numpy()
            lines.append(self._routed_line(model, 'routed', None, classes, surveys))
        return lines

    def _budget_lines(self, model: BenchmarkModel, surveys: list[_Survey], budget: float) -> list[_Line]:
        # A tile's share of its image; images count alike, whatever their size.
        prices = self._prices[model.name]
        predicted = [
            expected_errors(survey.predicted, prices.of_tiles, prices.runs_base) / len(survey.errors)
            for survey in surveys
        ]
        errors = [survey.errors for survey in surveys]
        classes, best = (self._solve(model, surveys, each, budget) for each in (predicted, errors))
        dealt = deal_by_chance(classes, np.random.default_rng(self._settings.seed))
        lines = [
            self._routed_line(model, kind, budget, chosen, surveys)
            for kind, chosen in (('budget', classes), ('oracle', best), ('random', dealt))
        ]
        for line, chosen, weighed in zip(lines, (classes, best), (predicted, errors)):
            line.enough = bool((chosen == least_errors(np.concatenate(weighed), prices.of_tiles)).all())
        return lines

    def _solve(
        self, model: BenchmarkModel, surveys: list[_Survey], errors: list[np.ndarray], budget: float
    ) -> np.ndarray:
        """Classes of all tiles, or patches, of all images, which share a budget."""
        plans = [survey.plan for survey in surveys if survey.plan is not None]
        pixels = [survey.pixels for survey in surveys]
        return np.concatenate(share_budget(errors, pixels, plans, self._prices[model.name], budget))

    def _routed_line(
        self, model: BenchmarkModel, kind: str, budget: float | None, classes: np.ndarray, surveys: list[_Survey]
    ) -> _Line:
        cuts = np.cumsum([len(survey.errors) for survey in surveys])[:-1]
        choices = np.split(classes, cuts)
        patched = model.name in self._patched
        return _Line(model, kind, None, budget, self._settings.backend, choices, True, patched=patched)

    # ------------------------------------------------------------------------------------------- restoring, rows

    def _restore(self, model: BenchmarkModel, lines: list[_Line], index: int) -> int:
        """Restores one image in all ways that the lines need; returns its pixels."""
        pair, tiled = self._open(model, index)
        self._restore_patches([line for line in lines if line.patched], pair, tiled, index)
        lines = [line for line in lines if not line.patched]
        for line in lines:
            line.choices[index] = np.broadcast_to(line.choices[index], len(tiled.grid))
        needed = sorted({int(variant) for line in lines for variant in np.unique(line.choices[index])})
        repeats = self._settings.repeats
        outputs, seconds = tiled.measure(needed, repeats)
        classifying = float(tiled.predict(repeats)[1].sum()) if any(line.classified for line in lines) else 0.0
        # By choice: of an image with few tiles, many lines restore the same.
        found: dict[bytes, tuple[np.ndarray, Quality]] = {}
        for line in lines:
            choice = line.choices[index]
            tiles = np.arange(len(choice))
            line.seconds += float(np.median(seconds[:, choice, tiles], axis=0).sum())
            if line.classified:
                line.seconds += classifying
            key = choice.tobytes()
            if key not in found:
                restored = tiled.blend(outputs, choice)
                found[key] = restored, compare(restored, pair.truth, model.info.scale)
            restored, quality = found[key]
            line.qualities.append(quality)
            line.tile_pixels.append(np.full(len(choice), tiled.pixels))
            if line.shown and self._show is not None:
                saved = 1 - self._macs(line, choice).mean() / model.info.macs_dense
                names = tuple(model.info.candidates) if line.kind != 'dense' else ()
                self._show(Sample(pair, restored, line.qualities[-1], tiled.grid, names, choice, float(saved)))
        return pair.truth.shape[0] * pair.truth.shape[1]

    def _restore_patches(self, lines: list[_Line], pair: Pair, tiled: TiledImage, index: int) -> None:
        """Restores one image patch by patch, as the lines of one model say, which take turns."""
        if not lines:
            return
        model = lines[0].model
        patched = self._patched[model.name]
        key = (model.name, tiled.grid.tile_size, True)
        if key not in self._warm:  # the first time, kernels are chosen, and memory is new
            self._warm.add(key)
            patched.restore(pair.degraded, lines[0].choices[index])
        seconds: list[list[float]] = [[] for _ in lines]
        for number in range(self._settings.repeats):
            for line, own in zip(lines, seconds):
                run = patched.restore(pair.degraded, line.choices[index])
                own.append(run.seconds)
                if number == 0:
                    self._take(line, run, pair, tiled, index)
        for line, own in zip(lines, seconds):
            line.seconds += median(own)

    def _take(self, line: _Line, run: PatchedRun, pair: Pair, tiled: TiledImage, index: int) -> None:
        """Takes down what an image restored patch by patch cost, and how good it is."""
        model, classes = line.model, line.choices[index]
        line.spent.append(run.spent * run.plan.pixels)
        line.tile_pixels.append(np.full(len(tiled.grid), tiled.pixels))
        line.qualities.append(compare(run.restored, pair.truth, model.info.scale))
        if line.shown and self._show is not None:
            names, saved = tuple(model.info.candidates), 1 - run.spent
            self._show(Sample(pair, run.restored, line.qualities[-1], run.plan.parts, names, classes, saved))

    @staticmethod
    def _macs(line: _Line, choice: np.ndarray) -> np.ndarray:
        """MACs of each tile for each of its pixels, ``(T,)``."""
        macs = np.array([variant.macs for variant in line.model.variants])[choice]
        return macs + line.model.info.macs_classifier if line.classified else macs

    def _row(self, line: _Line, pixels: int) -> Row:
        info = line.model.info
        choice, size = np.concatenate(line.choices), np.concatenate(line.tile_pixels)
        dense = float((info.macs_dense * size).mean())
        if line.patched:
            macs = dense * sum(line.spent) * info.scale**2 / pixels
        else:
            macs = float((self._macs(line, choice) * size).mean())
        shares = np.bincount(choice, minlength=len(line.model.variants)) / len(choice)
        routed = line.kind != 'dense'
        psnr = {key: [getattr(quality, key) for quality in line.qualities] for key in ('psnr', 'psnr_y')}
        return Row(
            model=line.model.name,
            kind=line.kind,
            candidate=line.candidate,
            budget=line.budget,
            psnr=mean_of_finite(psnr['psnr']),
            psnr_y=mean_of_finite(psnr['psnr_y']),
            ssim=float(np.mean([quality.ssim for quality in line.qualities])),
            macs=macs,
            macs_dense=dense,
            saved=1 - macs / dense,
            seconds=line.seconds,
            pixels=pixels,
            params=_params(line),
            class_share=dict(zip(info.candidates, shares.tolist())) if routed else {},
            backend=line.backend,
            threads=self._settings.threads,
            pictures=len(line.qualities),
            patch=self._settings.patch if line.patched else None,
            budget_in=None if line.budget is None else self._settings.budget_in,
            enough=line.enough,
            equal={key: sum(map(math.isinf, values)) for key, values in psnr.items()},
        )


def _restorer(model: BenchmarkModel, settings: Settings) -> Restorer:
    """What restores patches as the settings say, and knows what candidates cost.

    Raises UsageError where the network cannot be patched, or not like this.
    """
    return Restorer(
        model.network,
        tile=settings.tile,
        overlap=settings.overlap,
        patch=settings.patch,
        budget_in=settings.budget_in,
        backend=settings.backend,
        threads=settings.threads,
        device=str(device_of(model.network.module)),
    )


def _params(line: _Line) -> int:
    info = line.model.info
    if line.kind == 'dense':
        return info.params_dense
    if line.candidate is not None:
        return info.params[info.candidates.index(line.candidate)]
    return info.params_routed


def shown_row(kinds: Sequence[str]) -> int:
    """Index of the row whose images are shown: the first that the classifier routes, or the first of all."""
    return next((index for index, kind in enumerate(kinds) if kind in ('budget', 'routed')), 0)


def to_json(row: Row) -> dict[str, Any]:
    """A row as in the JSON file."""
    return asdict(row)
