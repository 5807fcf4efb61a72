"""Result files, as the pages read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_result(path: Path) -> dict[str, Any]:
    """A result file."""
    return json.loads(path.read_text(encoding='utf-8'))


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All result files of a folder, by their names without the ending, in order."""
    return {path.stem: read_result(path) for path in sorted(folder.glob('*.json'))}


def versions_of(machine: Mapping[str, Any]) -> str:
    """Names and versions of what was installed on the machine that a result is from."""
    return ', '.join(f'{name} {version}' for name, version in machine['versions'].items() if version)
