#!/usr/bin/env python
"""Measures how much of the oracle's gain knowing the candidates' outputs, but not the truth, would give.

    python tools/routing_by_distance.py zoo/edsr_x2_32_layers.pth --gt datasets/BSD100 --degrade bicubic2 --json FILE

The error that a candidate leaves is that of the densest one, plus how far it is from the densest one's output, plus
twice the product of the two. The first does not matter; the second depends on the input alone; the third depends on
what the densest candidate could not restore, and so on the truth, which no classifier knows. So tiles are routed to
each budget three times: by the classifier's scores, by the candidates' true distances from the densest one's output,
and by their true errors (the oracle).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr_classpruning import load
from basicsr_classpruning.archs.forms import as_routed
from basicsr_classpruning.benchmark.models import BenchmarkModel, TiledImage, make_model
from basicsr_classpruning.benchmark.pairs import Pairs
from basicsr_classpruning.cli.common import write_json
from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.machine import describe_machine
from basicsr_classpruning.routing.budget import solve_budget
from basicsr_classpruning.routing.errors import errors_in_image, reference_errors
from basicsr_classpruning.routing.router import Router
from tools.pages.routing import table

BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8)
TILE, OVERLAP = 96, 8


@dataclass(frozen=True)
class Tiles:
    """One picture's tiles, all relative to the error of the reference candidate in the picture."""

    errors: np.ndarray
    """``(T, K)``, adding up to the picture's squared error."""
    distances: np.ndarray
    """``(T, K)``: squared, from the densest candidate's output."""
    predicted: np.ndarray
    """Errors ``(T, K)``, the classifier's."""
    sizes: np.ndarray
    """``(T,)`` input pixels."""


def look_at(model: BenchmarkModel, pairs: Pairs, index: int) -> Tiles:
    """Restores a picture's tiles with every candidate."""
    pair = pairs.pair(index, model.info.channels, model.info.scale)
    tiled = TiledImage(model, pair.degraded, TILE, OVERLAP)
    outputs, _ = tiled.measure(list(range(model.candidates)), 1)
    errors = np.stack([tiled.squared_errors(tiles, pair.truth) for tiles in outputs.values()], axis=1)
    densest = outputs[model.candidates - 1].clip(0, 1)
    squares = [np.square(tiles.clip(0, 1) - densest).sum(axis=1) for tiles in outputs.values()]
    apart = [[tiled.weighted_sum(number, tile) for number, tile in enumerate(tiles)] for tiles in squares]
    predicted, _ = tiled.predict(1)
    reference = reference_errors(errors).sum()
    sizes = np.full(len(errors), float(tiled.pixels))
    return Tiles(errors / reference, np.stack(apart, axis=1) / reference, errors_in_image(predicted), sizes)


def mean_psnr(pictures: list[Tiles], classes: np.ndarray) -> float:
    """Relative to the reference candidate, in dB; mean over the pictures."""
    cuts = np.cumsum([len(tiles.errors) for tiles in pictures])[:-1]
    left = [
        np.take_along_axis(tiles.errors, chosen[:, None], axis=1).sum()
        for tiles, chosen in zip(pictures, np.split(classes, cuts))
    ]
    return float(np.mean(-10 * np.log10(left)))


def gains(pictures: list[Tiles], router: Router, costs: np.ndarray, budget: float) -> dict[str, float]:
    """What each kind of routing gains over a random mix of fixed candidates of the same cost, in dB."""
    sizes = np.concatenate([tiles.sizes for tiles in pictures])
    weighed = {
        # A tile's share of its picture; pictures count alike, whatever their size.
        'classifier': np.concatenate([tiles.predicted / len(tiles.predicted) for tiles in pictures]),
        'distances': np.concatenate([tiles.distances for tiles in pictures]),
        'oracle': np.concatenate([tiles.errors for tiles in pictures]),
    }
    fixed = [mean_psnr(pictures, np.full(len(sizes), candidate)) for candidate in range(len(costs))]
    found = {}
    for name, errors in weighed.items():
        solve = router.solve if name == 'classifier' else solve_budget
        classes = solve(errors, costs, sizes, budget)
        cost = (sizes * costs[classes]).sum() / sizes.sum()
        found[name] = mean_psnr(pictures, classes) - float(np.interp(cost, costs, fixed))
    return found


def measure(checkpoint: str, gt: str, degrade: str, path: Path) -> None:
    """Measures one network on the pictures of a folder, and keeps the result."""
    model = make_model(Path(checkpoint).stem, as_routed(load(checkpoint)), OVERLAP, 'auto')
    if model.candidates < 2:
        raise UserError(f'{checkpoint}: there is nothing to choose')
    pairs = Pairs(gt, None, Degradation.parse(degrade))
    pictures = [look_at(model, pairs, index) for index in tqdm(range(len(pairs)))]
    router = model.network.router
    assert router is not None
    rows = [{'budget': budget, **gains(pictures, router, model.info.costs, budget)} for budget in BUDGETS]
    command = f'python tools/routing_by_distance.py {checkpoint} --gt {gt} --degrade {degrade} --json {path}'
    report = {
        'model': checkpoint,
        'gt': gt,
        'degrade': degrade,
        'pictures': len(pairs),
        'rows': rows,
        'command': command,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json({**report, 'machine': describe_machine()}, str(path))
    print(table([report]))


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='a network of several candidates')
    parser.add_argument('--gt', metavar='DIR', required=True, help='clean pictures')
    parser.add_argument('--degrade', metavar='HOW', required=True, help='as in `classpruning benchmark`')
    parser.add_argument('--json', type=Path, metavar='FILE', required=True, help='where the result is kept')
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        measure(args.model, args.gt, args.degrade, args.json)
    except UserError as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
