"""Per-layer N: each layer of a candidate keeps as much as it is worth, at the candidate's MACs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.optimize import Bounds, LinearConstraint, milp

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.progress import Progress, untold
from basicsr_classpruning.pruning.crops import Crops
from basicsr_classpruning.routing.errors import LEAST_ERROR
from basicsr_classpruning.sparsity.calibration import CalibrationOptions
from basicsr_classpruning.sparsity.pattern import Pattern
from basicsr_classpruning.sparsity.second_order import errors_of_single_layers

_MEASURED = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # densities at which a layer's error is measured
_ROUNDS = 1  # of mask improvement: layers are compared, not pruned for good


def allocate_layers(net: ClassPruning, crops: Crops, progress: Progress = untold) -> dict[str, list[str]]:
    """Chooses N for every layer of every candidate, such that a candidate N:M keeps the MACs of N:M in all layers.

    Each layer is pruned by itself, with data, to a few densities, and the network's output says what that costs. Errors
    of small changes in several layers add up nearly, as they are hardly correlated; so each candidate is the choice of
    least total error whose MACs are not above those of N:M. A layer never keeps more in a sparser candidate.

    Args:
        net: a network whose candidates have one pattern in all layers. It is not changed.
        crops: calibration inputs; with clean images, errors count relative to the dense network's in each crop, as
            PSNR does.
        progress: is told how many layers are done.

    Returns:
        What ``network_g.layers`` takes: for each pruned layer, by a regular expression for its name, its ladder.
    """
    macs = {layer.name: layer.dense for layer in net.reference_macs.layers if layer.pruned and layer.dense}
    channels = {choice.name: choice.channels for choice in net.choices}
    general = next(choice.patterns for choice in net.choices if choice.patterns)
    m = general[0].m
    allowed, errors = _layer_errors(net, list(macs), general, crops, progress)
    shares = np.array(list(macs.values())) / sum(macs.values())

    def cost(n: int) -> np.ndarray:
        """MACs of each layer at N, as a share of all these layers' dense ones."""
        return shares * [replace(general[0], n=n).kept(channels[name]) / channels[name] for name in macs]

    costs = np.stack([cost(n) for n in allowed], axis=1)
    columns: list[np.ndarray] = []
    most = np.full(len(macs), allowed[-1])
    for pattern in reversed(general):
        if pattern.is_dense:
            columns.append(np.full(len(macs), m))
        else:
            most = _least_error(errors, np.array(allowed), costs, most, float(cost(pattern.n).sum()))
            columns.append(most)
    ladders = np.stack(columns[::-1], axis=1).tolist()
    return {f'^{re.escape(name)}$': [f'{n}:{m}' for n in ladder] for name, ladder in zip(macs, ladders)}


def _least_error(
    errors: np.ndarray, allowed: np.ndarray, costs: np.ndarray, most: np.ndarray, budget: float
) -> np.ndarray:
    """N of every layer, at most ``most``, with the least sum of ``errors`` and costs of at most ``budget``.

    Errors and costs are ``(L, N)``.

    One binary number says whether a layer has an N: the multiple-choice knapsack problem.
    """
    layers, choices = errors.shape
    one_each = LinearConstraint(np.kron(np.eye(layers), np.ones(choices)), 1, 1)
    average = LinearConstraint(costs.reshape(1, -1), -np.inf, budget * (1 + 1e-9))
    possible = (allowed[None] <= most[:, None]).ravel()
    found = milp(
        (errors / max(errors.mean(), 1e-30)).ravel(),
        integrality=np.ones(errors.size),
        bounds=Bounds(0, possible),
        constraints=(one_each, average),
        options={'mip_rel_gap': 1e-3},
    )
    return allowed[found.x.reshape(layers, choices).argmax(axis=1)]


def _layer_errors(
    net: ClassPruning, names: Sequence[str], general: Sequence[Pattern], crops: Crops, progress: Progress
) -> tuple[list[int], np.ndarray]:
    """The N that a layer of a sparse candidate may have, and its error at each, ``(L, N)``."""
    unit, m = general[0].unit, general[0].m
    # The sparsest candidate needs some layers below its own N.
    least = max(unit, min(general[0].n - unit, _in_units(m * _MEASURED[0], unit)))
    measured = sorted({least, *(n for n in (_in_units(m * density, unit) for density in _MEASURED) if least < n < m)})
    patterns = [replace(general[0], n=n) for n in measured]
    dense = net.dense.net
    batches = list(crops.lq.split(8))
    importance = torch.ones(len(crops), device=crops.lq.device)
    if crops.gt is not None:
        with torch.no_grad():
            outputs = torch.cat([dense(batch) for batch in batches]).clamp(0, 1)
        importance = 1 / (outputs - crops.gt).square().mean((1, 2, 3)).clamp(min=LEAST_ERROR)
    found = errors_of_single_layers(
        dense, dict.fromkeys(names, patterns), batches, importance, CalibrationOptions(rounds=_ROUNDS), progress
    )
    # M is left out: so every layer of a sparse candidate has weights of its own, and one less costs next to nothing.
    allowed = list(range(measured[0], m, unit))
    # Its root falls nearly linearly in N, to nothing at M. A curve without kinks does not favour what was measured.
    between = [PchipInterpolator([*measured, m], [*np.sqrt(found[name]), 0.0])(allowed) for name in names]
    return allowed, np.square(np.array(between))


def _in_units(n: float, unit: int) -> int:
    """The multiple of the unit that is nearest."""
    return round(n / unit) * unit
