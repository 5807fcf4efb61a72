"""A rival in the manner of ClassSR (Kong et al., CVPR 2021): dense networks of several widths and a classifier.

It is given more than ClassSR has: each network is trained for all the steps by itself, and the classifier is the
project's own, fitted to the measured errors of the networks, so that any budget can be met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from basicsr_classpruning.archs.classifier_arch import DifficultyClassifier
from basicsr_classpruning.cli.progress import StageBar
from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.data.pictures import Pictures
from basicsr_classpruning.inference.benchmark import Benchmark, Row, Settings
from basicsr_classpruning.inference.benchmark_pictures import Pairs
from basicsr_classpruning.inference.contestants import Contestant, enter
from basicsr_classpruning.loading import load
from basicsr_classpruning.pruning.classifier import fit_classifier, measure_errors
from basicsr_classpruning.pruning.crops import cut_crops
from basicsr_classpruning.sparsity.macs import count_by_module

NAME = 'container'
_OVERLAP = 8
_TILE = 96
_CROPS = 400
_STEPS = 3000
_SIZE = (3, 96, 96)


class Container(nn.Module):
    """Dense networks from cheapest to dearest and a classifier; what fitting the classifier wants of a network."""

    def __init__(self, networks: Sequence[nn.Module], scale: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.candidates = tuple(map(str, range(len(networks))))
        self.scale = scale
        self.classifier = DifficultyClassifier(_SIZE[0], len(networks))

    def restore_with(self, x: Tensor, candidate: int) -> Tensor:
        """Restores images ``(B, C, H, W)`` with one of the networks."""
        return self.networks[candidate](x)

    def score_map(self, x: Tensor) -> Tensor:
        """Scores of parts of images, ``(B, K, h, w)``."""
        return self.classifier.score_map(x)


@dataclass
class ContainerContestant(Contestant):
    """The container's networks as the candidates of a benchmark."""

    container: Container | None = None

    def scores(self, x: Tensor) -> Tensor:
        assert self.container is not None
        with torch.inference_mode():
            return self.container.classifier(x)


def fit(paths: Sequence[Path], degrade: str, calibration: str) -> ContainerContestant:
    """Fits the classifier of a container on calibration pictures.

    Args:
        paths: checkpoints of dense networks, cheapest first.
        degrade: as for ``classpruning benchmark``.
        calibration: folder of clean pictures.
    """
    degradation = Degradation.parse(degrade)
    contestants = [enter(path.parts[-3], load(path), _OVERLAP, 'auto') for path in paths]
    torch.manual_seed(0)  # of the classifier's first weights
    container = Container([contestant.net for contestant in contestants], degradation.scale)
    stride = container.classifier.stride
    crops = cut_crops(
        Pictures(calibration), degradation, scale=degradation.scale, count=_CROPS, side=_TILE, seed=1, step=stride
    )
    fit_classifier(container, measure_errors(container, crops, stride, 4), _STEPS, seed=0)  # type: ignore[arg-type]
    dearest = contestants[-1]
    classifier = count_by_module(container.classifier, _SIZE)[''] / (_SIZE[1] * _SIZE[2])
    parameters = tuple(contestant.traits.params_dense for contestant in contestants)
    traits = replace(
        dearest.traits,
        candidates=tuple(contestant.name for contestant in contestants),
        macs=tuple(contestant.traits.macs_dense for contestant in contestants),
        macs_classifier=classifier,
        params_candidates=parameters,
        params_routed=sum(parameters) + sum(p.numel() for p in container.classifier.parameters()),
    )
    variants = [replace(contestant.variants[0], name=contestant.name) for contestant in contestants]
    return ContainerContestant(NAME, dearest.net, traits, variants, container=container.eval())


def measure(entrant: ContainerContestant, degrade: str, gt: str, budgets: Sequence[float]) -> list[Row]:
    """Measures a container on a folder of clean pictures.

    Args:
        entrant: the container.
        degrade: as for ``classpruning benchmark``.
        gt: folder of clean pictures.
        budgets: as fractions of the dearest network's MACs; those below the cheapest network's are left out.
    """
    settings = Settings(
        tile=_TILE,
        overlap=_OVERLAP,
        budgets=tuple(budget for budget in budgets if entrant.traits.costs[0] <= budget),
        threads=torch.get_num_threads(),
        repeats=1,
    )
    with StageBar() as bar:
        return Benchmark([entrant], Pairs(gt, None, Degradation.parse(degrade)), settings, bar).run()
