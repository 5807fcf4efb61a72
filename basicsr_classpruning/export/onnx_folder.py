"""A whole ClassPruning network for ONNX programs: classifier, candidates, and how they belong together."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.export.onnx import INPUT, OUTPUT, Graph, convert, require_onnx
from basicsr_classpruning.routing.network import RoutedNetwork
from basicsr_classpruning.routing.router import Router
from basicsr_classpruning.safe_files import write_atomically

MANIFEST = 'manifest.json'


def export_onnx_folder(network: RoutedNetwork, router: Router, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes ``classifier.onnx``, one file for each candidate, and ``manifest.json``; the folder appears whole or not.

    A program classifies an image (or a tile) as the candidate with the greatest ``score - price * cost``, and restores
    it with that candidate's file.

    Args:
        network: with candidates.
        router: the network's.
        folder: does not exist yet, or is empty.

    Returns:
        The manifest.

    Raises:
        UsageError: there is something of that name.
        UserError: a network cannot be converted, a package is missing, or the folder cannot be written.
    """
    require_onnx()
    with _whole_folder(Path(folder)) as unfinished:
        classifier = convert(router.classifier, network.channels, network.sizes)
        scoring = _write(unfinished / 'classifier.onnx', classifier)
        restoring = []
        for subnetwork, cost in zip(network.subnetworks, network.count_macs().costs):
            graph = convert(subnetwork.net, subnetwork.channels, subnetwork.sizes)
            entry = _write(unfinished / f'candidate_{subnetwork.name.replace(":", "_")}.onnx', graph)
            # Single precision, in which the router weighs costs.
            restoring.append({'candidate': subnetwork.name, 'cost': torch.tensor(cost).item(), **entry})
        options = network.dense.options
        manifest = {
            'format': 'classpruning-onnx',
            'version': 1,
            'network': options.get('architecture', options.get('type')),
            'input': {'name': INPUT, 'channels': network.channels, 'range': [0, 1]},
            'output': {'name': OUTPUT},
            'scale': network.sizes.scale,
            'sides': {'multiple': network.sizes.multiple, 'minimum': network.sizes.minimum},
            'rule': 'candidate with the greatest score - price * cost',
            'price': float(router.log_price.detach().exp()),
            'classifier': scoring,
            'candidates': restoring,
        }
        text = json.dumps(manifest, indent=2, allow_nan=False) + '\n'
        write_atomically(unfinished / MANIFEST, lambda file: file.write(text.encode()))
    return manifest


def _write(path: Path, graph: Graph) -> dict[str, Any]:
    write_atomically(path, lambda file: file.write(graph.content))
    return {
        'file': path.name,
        'sha256': hashlib.sha256(graph.content).hexdigest(),
        'any_batch': graph.any_batch,
        'difference': graph.difference,
    }


@contextlib.contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside the wanted one, which takes its name when the block ends without an error."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f'{path}: exists already; name a new folder')
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp') as temporary:
            unfinished = Path(temporary) / path.name  # made by mkdir, so that it has the usual permissions
            unfinished.mkdir()
            yield unfinished
            unfinished.rename(path)
    except OSError as error:
        raise UserError(f'{path}: could not be written: {error.strerror or error}') from None
