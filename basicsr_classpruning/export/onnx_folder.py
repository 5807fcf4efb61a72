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

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.export.onnx import INPUT, OUTPUT, Graph, convert, require_onnx
from basicsr_classpruning.export.static import take_candidate
from basicsr_classpruning.safe_files import write_atomically

MANIFEST = 'manifest.json'


def export_onnx_folder(network: ClassPruning, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes ``classifier.onnx``, one file for each candidate, and ``manifest.json``; the folder appears whole or not.

    A program classifies an image (or a tile) as the candidate with the greatest ``score - price * cost``, and restores
    it with that candidate's file.

    Args:
        network: in eval mode.
        folder: does not exist yet, or is empty.

    Returns:
        The manifest.

    Raises:
        UsageError: there is something of that name.
        UserError: a network cannot be converted, a package is missing, or the folder cannot be written.
    """
    require_onnx()
    with _whole_folder(Path(folder)) as unfinished:
        classifier = convert(network.classifier, network.num_in_ch, network.sizes)
        scoring = _write(unfinished / 'classifier.onnx', classifier)
        restoring = []
        for name, cost in zip(network.candidates, network.costs().tolist()):
            static = take_candidate(network, name)
            graph = convert(static.net, static.channels, static.sizes)
            entry = _write(unfinished / f'candidate_{name.replace(":", "_")}.onnx', graph)
            restoring.append({'candidate': name, 'cost': cost, **entry})
        manifest = {
            'format': 'classpruning-onnx',
            'version': 1,
            'network': static.options.get('architecture', static.options.get('type')),
            'input': {'name': INPUT, 'channels': network.num_in_ch, 'range': [0, 1]},
            'output': {'name': OUTPUT},
            'scale': network.scale,
            'sides': {'multiple': network.sizes.multiple, 'minimum': network.sizes.minimum},
            'rule': 'candidate with the greatest score - price * cost',
            'price': float(network.log_price.detach().exp()),
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
