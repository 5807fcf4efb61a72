"""What candidates take on this machine: measured once, and kept in a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.inference.prices import Prices
from basicsr_classpruning.machine import describe_machine
from basicsr_classpruning.routing.network import RoutedNetwork
from basicsr_classpruning.safe_files import write_atomically

_WAY = 4  # of measuring: what was kept of another one is measured again
_ROUNDS = 7  # all that is measured takes turns
_RUNNING = (0.15, 0.35, 0.7)  # shares of the patches that run, in maps like those of photographs
_SMOOTH = 0.6  # patches

Seconds = Callable[[], float]


def cache_folder() -> Path:
    """Where measured times are kept: in the user's cache folder."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'basicsr-classpruning' / 'times'


def conditions_of(network: RoutedNetwork, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that measured times depend on: weights, candidates, machine and libraries, and how tiles are run."""
    digest = hashlib.sha256()
    for name, value in sorted(network.module.state_dict().items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    machine = describe_machine()
    known = {'way': _WAY, 'weights': digest.hexdigest(), 'candidates': network.candidates, 'machine': machine}
    return {**known, **settings}


def kept_or_measured(conditions: Mapping[str, Any], measure: Callable[[], Prices]) -> Prices:
    """Prices in seconds as they were measured under these conditions before, or measured now, and kept.

    A file that cannot be read or written is as good as none.
    """
    text = json.dumps(conditions, sort_keys=True)
    path = cache_folder() / f'{hashlib.sha256(text.encode()).hexdigest()}.json'
    kept = _read(path, len(conditions['candidates']))
    if kept is not None:
        return kept
    prices = measure()
    content = {
        'candidates': prices.candidates.tolist(),
        'runs_base': prices.runs_base.tolist(),
        'classifier': prices.classifier,
        'dense': prices.dense,
        'ring': prices.ring,
        'conditions': conditions,
    }
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(json.dumps(content, indent=2).encode()))
    return prices


def _read(path: Path, candidates: int) -> Prices | None:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        runs = np.array([bool(value) for value in content['runs_base']])
        seconds = np.array([float(value) for value in content['candidates']])
        classifier, dense, ring = (float(content[name]) for name in ('classifier', 'dense', 'ring'))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    sound = np.isfinite(seconds).all() and (seconds >= 0).all() and len(seconds) == len(runs) == candidates
    if not sound or not 0 <= classifier < math.inf or not 0 < dense < math.inf or not 1 <= ring < math.inf:
        return None
    return Prices(seconds, runs, classifier, dense, 'time', ring)


def settle() -> None:
    """Waits until no other thread of this process is busy, at most half a second.

    Some engines' threads, ONNX Runtime's above all, wait busily for more work for tens of milliseconds, and take a core
    from what is measured next.
    """
    for _ in range(200):
        before = time.process_time()
        time.sleep(0.002)
        if time.process_time() - before < 0.0005:
            return


def in_turn(ways: Mapping[str, Seconds]) -> dict[str, float]:
    """Seconds of each of several ways, which take turns, so that another program's load meets all of them.

    What interrupts a run makes it longer, never shorter: the lower quartile counts.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_ROUNDS + 1):
        for name, seconds in ways.items():
            elapsed = seconds()
            if number > 0:  # the first one warms up
                found[name].append(elapsed)
    return {name: float(np.quantile(values, 0.25)) for name, values in found.items()}


def usual_maps(shape: tuple[int, int], running: np.ndarray, bypass: int) -> list[np.ndarray]:
    """Candidates of patches as photographs have them: what is difficult lies together, and is surrounded by what is
    less so.

    Args:
        shape: rows and columns of patches.
        running: candidates that run layers of the base network, sparsest first.
        bypass: one that does not.

    Returns:
        Of maps in which more and more patches run, their classes ``(T,)``.
    """
    noise = np.random.default_rng(0).normal(size=shape)
    difficulty = cv2.GaussianBlur(noise, (0, 0), _SMOOTH).ravel()
    order = np.argsort(np.argsort(difficulty)) / difficulty.size  # 0 for the easiest patch, almost 1 for the hardest
    maps = []
    for share in _RUNNING:
        place = (order - (1 - share)) / share * len(running)
        maps.append(np.where(place < 0, bypass, running[place.astype(int).clip(0)]))
    return maps


def prices_of(
    routed: np.ndarray, routing: float, dense: float, runs_base: np.ndarray, halo: float, patches: bool
) -> Prices:
    """Prices in seconds, from those of an input pixel of images that one candidate restores.

    Args:
        routed: ``(K,)``, of each candidate everywhere, routing included.
        routing: of routing alone.
        dense: of the dense network, of a pixel of a tile.
        runs_base: ``(K,)``, see ``Prices``.
        halo: pixels of the image's tiles, relative to the image's.
        patches: whether patches are routed, and not whole tiles.
    """
    alone = (routed - routing).clip(0)
    if patches:
        everywhere = alone[~runs_base].sum()
        alone = np.where(runs_base, (alone - everywhere).clip(0), alone)
    return Prices(alone / halo, runs_base, routing / halo, dense, 'time')
