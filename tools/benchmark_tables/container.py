"""A rival in the manner of ClassSR (Kong et al., CVPR 2021): dense networks of several widths and a classifier.

It is given more than ClassSR has: each network is trained for all the steps by itself, and the classifier is the
project's own, fitted to the measured errors of the networks, so that any budget can be met.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from basicsr_classpruning.archs.classifier_arch import BandClassifier
from basicsr_classpruning.archs.forms import as_routed
from basicsr_classpruning.benchmark.models import BenchmarkModel, make_model
from basicsr_classpruning.benchmark.pairs import Pairs
from basicsr_classpruning.benchmark.run import Benchmark, Row, Settings
from basicsr_classpruning.cli.progress import StageBar
from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.data.pictures import Pictures
from basicsr_classpruning.loading import load
from basicsr_classpruning.pruning.classifier import fit_classifier, measure_errors
from basicsr_classpruning.pruning.crops import cut_crops
from basicsr_classpruning.routing.network import ladder_of_networks
from basicsr_classpruning.routing.router import Router

NAME = 'container'
_OVERLAP = 8
_TILE = 96
_CROPS = 400
_STEPS = 3000


def fit(paths: Sequence[Path], degrade: str, calibration: str) -> BenchmarkModel:
    """Fits the classifier of a container on calibration pictures.

    Args:
        paths: checkpoints of dense networks, cheapest first.
        degrade: as for ``classpruning benchmark``.
        calibration: folder of clean pictures.
    """
    degradation = Degradation.parse(degrade)
    networks = [as_routed(load(path)) for path in paths]
    torch.manual_seed(0)  # of the classifier's first weights
    classifier = BandClassifier(networks[-1].channels, len(networks))
    router = Router(classifier, torch.zeros(()))
    container = ladder_of_networks(networks, [path.parts[-3] for path in paths], router)
    crops = cut_crops(
        Pictures(calibration),
        degradation,
        scale=degradation.scale,
        count=_CROPS,
        side=_TILE,
        seed=1,
        step=classifier.stride,
    )
    fit_classifier(router, measure_errors(container, crops, 4), _STEPS, seed=0)
    return make_model(NAME, container, _OVERLAP, 'auto')


def measure(model: BenchmarkModel, degrade: str, gt: str, budgets: Sequence[float]) -> list[Row]:
    """Measures a container on a folder of clean pictures.

    Args:
        model: the container.
        degrade: as for ``classpruning benchmark``.
        gt: folder of clean pictures.
        budgets: as fractions of the dearest network's MACs; those below the cheapest network's are left out.
    """
    settings = Settings(
        tile=_TILE,
        overlap=_OVERLAP,
        budgets=tuple(budget for budget in budgets if model.info.costs[0] <= budget),
        threads=torch.get_num_threads(),
        repeats=1,
    )
    with StageBar() as bar:
        return Benchmark([model], Pairs(gt, None, Degradation.parse(degrade)), settings, bar).run()
