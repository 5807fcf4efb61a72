"""Clean pictures, degraded on the fly: every ``*_dataset.py`` here is registered in BasicSR's DATASET_REGISTRY."""

import importlib
from pathlib import Path

for _path in sorted(Path(__file__).parent.glob('*_dataset.py')):
    importlib.import_module(f'{__name__}.{_path.stem}')
