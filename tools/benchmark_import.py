"""Measures how much longer ``import basicsr_classpruning`` takes than importing BasicSR's own registries.

Each import runs in a process of its own, in turn. Processor time is measured: importing keeps one core busy, so on an
idle machine it is the wall clock's, and on a busy one it still says the same. The medians count. The environment's
mends are in both, because without them BasicSR may not import at all. Prints one JSON object; exit status 1 where the
limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_ENVIRONMENT = _ROOT / 'basicsr_classpruning' / 'environment.py'

# The environment's file is run by itself: as a part of its package it would bring the package along.
_BASICSR = f"""
import runpy, sys, types
errors = types.ModuleType('basicsr_classpruning.errors')
errors.UserError = RuntimeError
sys.modules['basicsr_classpruning.errors'] = errors
runpy.run_path({str(_ENVIRONMENT)!r})['prepare']()
import basicsr.archs, basicsr.data, basicsr.losses, basicsr.metrics, basicsr.models
"""
_PACKAGE = 'import basicsr_classpruning'


def seconds(code: str) -> float:
    """Processor time of a Python process that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    variables = {**os.environ, 'PYTHONPATH': str(_ROOT), 'OMP_NUM_THREADS': '1'}
    subprocess.run([sys.executable, '-c', code], check=True, env=variables)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measures, prints and returns the exit status."""
    parser = argparse.ArgumentParser(description='Measures the time that importing the package adds to BasicSR.')
    parser.add_argument('--repeats', type=int, default=7, help='processes of each kind')
    parser.add_argument('--limit', type=float, default=0.5, help='seconds that the package may add')
    args = parser.parse_args()
    times: dict[str, list[float]] = {_BASICSR: [], _PACKAGE: []}
    for code in (_BASICSR, _PACKAGE):
        seconds(code)  # warms the file cache
    for _ in range(args.repeats):
        for code, measured in times.items():
            measured.append(seconds(code))
    basicsr, package = (statistics.median(measured) for measured in times.values())
    added = package - basicsr
    result = {'basicsr_seconds': basicsr, 'package_seconds': package, 'added_seconds': added, 'limit': args.limit}
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))
    return 0 if added <= args.limit else 1


if __name__ == '__main__':
    sys.exit(main())
