"""What a user would otherwise run a dense network with on a CPU: every ``*_rival.py`` here is found and registered.

Programs that are not installed are named as missing, with the reason.
"""

import importlib
from pathlib import Path

from basicsr_classpruning.benchmark.rivals.registry import (
    RIVALS,
    Conditions,
    Rival,
    calibration_inputs,
    make_rivals,
    register_rival,
)

__all__ = ['RIVALS', 'Conditions', 'Rival', 'calibration_inputs', 'make_rivals', 'register_rival']

for _path in sorted(Path(__file__).parent.glob('*_rival.py')):
    importlib.import_module(f'{__name__}.{_path.stem}')
