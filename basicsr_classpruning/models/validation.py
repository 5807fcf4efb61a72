"""Validation of a ClassPruning network: quality beside MACs, routed, at budgets, and pinned to each candidate."""

from __future__ import annotations

import inspect
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.benchmark.metrics import mean_of_finite, shown
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.routing.errors import relative_errors
from basicsr_classpruning.text_table import format_table


@dataclass(frozen=True)
class Row:
    """One way to run the network over a data set."""

    name: str
    """``routed``, ``budget 0.6`` or a candidate such as ``2:4``."""
    metrics: dict[str, float | None]
    """Means over the images whose value is finite; None where none is."""
    equal: dict[str, int]
    """By metric, images left out of its mean because it is infinite: PSNR, where an image is restored exactly."""
    macs: float
    """Average MACs of an image, the classifier's included where it decides."""
    saved: float
    """1 − average MACs / dense MACs."""
    seconds: float
    """Measured time of the network for all images."""
    class_share: tuple[float, ...]
    """Share of the images that each candidate restored, sparsest first."""


@dataclass(frozen=True)
class Report:
    """Validation of one data set."""

    dataset: str
    iteration: int | str
    pictures: int
    macs_dense: float
    """Average MACs of an image through the dense network."""
    candidates: tuple[str, ...]
    rows: tuple[Row, ...]
    """The routed network first, then budgets, then candidates."""

    def table(self) -> str:
        """The report as lines of text."""
        names = list(self.rows[0].metrics)
        header = ['', *names, 'average MACs', 'saved', 'seconds', 'share of ' + ' | '.join(self.candidates)]
        lines = [header]
        for row in self.rows:
            values = [shown(row.metrics[name], row.equal.get(name, 0)) for name in names]
            share = ' | '.join(f'{value:.0%}' for value in row.class_share)
            lines.append(
                [row.name, *values, f'{row.macs / 1e9:.3f} G', f'{row.saved:.1%}', f'{row.seconds:.2f}', share]
            )
        return format_table(lines)

    def to_json(self) -> str:
        """The report as one line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)


@dataclass
class _Image:
    """Measurements of one image, by candidate."""

    pixels: int
    errors: Tensor
    """Relative ones ``(K,)``, predicted."""
    metrics: dict[int, dict[str, float]]
    seconds: dict[int, float]


def evaluate(
    net: ClassPruning,
    batches: Iterable[Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    name: str,
    iteration: int | str,
    budgets: Iterable[float] = (),
    all_candidates: bool = True,
    device: torch.device | str = 'cpu',
    on_result: Callable[[Mapping[str, Any], Any], None] | None = None,
) -> Report:
    """Runs a network over a data set, each image routed as a whole.

    Args:
        net: in eval mode.
        batches: of one image each: ``lq``, ``gt`` ``(1, C, H, W)`` and ``lq_path``.
        metrics: BasicSR's metric options by name.
        name: of the data set.
        iteration: of the training, or the name of the test run.
        budgets: average MACs over the data set to be met, as fractions of the dense MACs.
        all_candidates: whether rows for every pinned candidate are wanted too.
        device: where the network is.
        on_result: is given the batch and the routed network's image, ``(H, W, C)`` uint8 BGR.

    Images are compared in the part that both have, from the upper left corner: a degraded image may have been made
    with sides rounded up. Raises UserError where a metric compares with ``gt`` and a batch has none.
    """
    budgets = tuple(budgets)
    count = len(net.candidates)
    pictures = []
    for batch in batches:
        image = batch['lq'].to(device)
        if 'gt' not in batch and any(map(needs_truth, metrics.values())):
            raise UserError(f'data set {name}: has no clean pictures (gt), with which val.metrics compare')
        truth = tensor2img([batch['gt']]) if metrics and 'gt' in batch else None
        with torch.no_grad():
            errors = relative_errors(net.predicted_errors(image))
        picture = _Image(image.shape[-1] * image.shape[-2], errors[0].float().cpu(), {}, {})
        routed = int(net.route(errors))
        # A budget may send an image to any candidate: that is known only when all images were scored.
        for candidate in range(count) if all_candidates or budgets else (routed,):
            start = time.perf_counter()
            with torch.no_grad():
                output = net.restore_with(image, candidate)
            if image.is_cuda:
                torch.cuda.synchronize()
            picture.seconds[candidate] = time.perf_counter() - start
            restored = tensor2img([output.cpu()])
            if candidate == routed and on_result is not None:
                on_result(batch, restored)
            picture.metrics[candidate] = {
                key: measure(restored, truth, options, batch['lq_path'][0]) for key, options in metrics.items()
            }
        pictures.append((picture, routed))
    return _report(net, pictures, name, iteration, budgets, all_candidates)


def needs_truth(metric: Mapping[str, Any]) -> bool:
    """Whether a metric compares with the clean image; NIQE, for one, does not."""
    return 'img2' in inspect.signature(METRIC_REGISTRY.get(metric['type'])).parameters


def measure(restored: np.ndarray, truth: np.ndarray | None, metric: Mapping[str, Any], path: str) -> float:
    """A metric of BasicSR's registry, of images ``(H, W, C)`` uint8 BGR; NaN, and a warning, where it fails."""
    data = {'img': restored}
    if truth is not None:
        height, width = (min(sides) for sides in zip(restored.shape[:2], truth.shape[:2]))
        data = {'img': restored[:height, :width], 'img2': truth[:height, :width]}
    try:
        with np.errstate(all='ignore'), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # NumPy's, of means over nothing
            value = float(calculate_metric(data, dict(metric)))
    except Exception as error:  # NIQE, for one, needs two blocks of 96 pixels, and fails without in several ways
        get_root_logger().warning(f'{path}: {metric["type"]} cannot be measured ({type(error).__name__}: {error})')
        return math.nan
    if math.isnan(value):
        get_root_logger().warning(f'{path}: {metric["type"]} cannot be measured (it is not a number)')
    return value


def _report(
    net: ClassPruning,
    pictures: list[tuple[_Image, int]],
    name: str,
    iteration: int | str,
    budgets: tuple[float, ...],
    all_candidates: bool,
) -> Report:
    reference = net.reference_macs
    area = reference.size[1] * reference.size[2]
    pixels = torch.tensor([float(picture.pixels) for picture, _ in pictures])
    mean_pixels = float(pixels.mean())
    dense = reference.dense * mean_pixels / area

    def row(title: str, classes: list[int], classified: bool) -> Row:
        extra = reference.classifier if classified else 0
        macs = sum(
            (reference.candidates[k] + extra) * picture.pixels / area for (picture, _), k in zip(pictures, classes)
        ) / len(pictures)
        measured = [picture.metrics[k] for (picture, _), k in zip(pictures, classes)]
        values = {key: [metrics[key] for metrics in measured] for key in measured[0]}
        return Row(
            name=title,
            metrics={key: mean_of_finite(of_pictures) for key, of_pictures in values.items()},
            equal={key: sum(map(math.isinf, of_pictures)) for key, of_pictures in values.items()},
            macs=macs,
            saved=1 - macs / dense,
            seconds=sum(picture.seconds[k] for (picture, _), k in zip(pictures, classes)),
            class_share=tuple(classes.count(k) / len(classes) for k in range(len(net.candidates))),
        )

    rows = [row('routed', [routed for _, routed in pictures], classified=True)]
    errors = torch.stack([picture.errors for picture, _ in pictures]).double().numpy()
    costs = np.array(reference.costs)
    for budget in budgets:
        # Another network's options must not stop a training: the nearest budget that this one can meet.
        nearest = min(max(budget, costs[0]), costs[-1])
        classes = net.router.solve(errors, costs, pixels.double().numpy(), nearest)
        rows.append(row(f'budget {budget:g}', classes.tolist(), classified=True))
    if all_candidates:
        rows += [row(candidate, [k] * len(pictures), classified=False) for k, candidate in enumerate(net.candidates)]
    return Report(name, iteration, len(pictures), dense, net.candidates, tuple(rows))
