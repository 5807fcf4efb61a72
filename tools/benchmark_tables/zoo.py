"""Keeps the trained networks that the repository ships: zoo/*.pth and zoo/index.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from basicsr_classpruning.checkpoint import read_checkpoint, write_checkpoint
from basicsr_classpruning.safe_files import write_atomically
from tools.benchmark_tables import instances
from tools.benchmark_tables.options import checkpoint
from tools.benchmark_tables.plan import Row, Table

ZOO = Path('zoo')
_RECOMMENDED_BUDGET = 0.6
_LICENCE = 'Apache-2.0'
_GREATEST_BYTES = 4 * 2**20  # of a network; the repository stays small


def write() -> None:
    """Copies the dense and the ClassPruning network of every table that the index names and whose networks are trained
    here and small, averaged weights only.
    """
    index_file = ZOO / 'index.json'
    index = json.loads(index_file.read_text())
    entries = {entry['model'] or entry['dense']: entry for entry in index}
    for table in instances.TABLES:
        if f'{table.name}.pth' not in entries:
            continue
        files = {name: checkpoint(table, table.row(name)) for name in ('classpruning', 'dense')}
        if all(path.is_file() and path.stat().st_size <= _GREATEST_BYTES for path in files.values()):
            model, dense = ZOO / f'{table.name}.pth', ZOO / f'{table.name}_dense.pth'
            _copy(files['classpruning'], model)
            _copy(files['dense'], dense)
            entries[model.name] = _entry(table, table.row('classpruning'), model, dense)
    content = json.dumps(list(entries.values()), indent=2, ensure_ascii=False) + '\n'
    write_atomically(index_file, lambda file: file.write(content.encode()))


def _copy(source: Path, target: Path) -> None:
    found = read_checkpoint(source)
    write_checkpoint(target, {'params': found.params('params_ema')}, found.network_g)


def _entry(table: Table, row: Row, model: Path, dense: Path) -> dict[str, object]:
    return {
        'model': model.name,
        'dense': dense.name,
        'task': table.title,
        'scale': table.task.scale,
        'degrade': table.task.degrade,
        'recommended_budget': _RECOMMENDED_BUDGET,
        'candidates': row.network['candidates'],
        'training_pictures': 'BSDS500, train and test',
        'command': f'python tools/reproduce_tables.py {table.name}',
        'licence': _LICENCE,
        'sha256': {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (model, dense)},
    }
