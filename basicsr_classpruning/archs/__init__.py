"""ClassPruning, the classifier, and base networks that BasicSR lacks: every ``*_arch.py`` here is registered."""

import importlib
from pathlib import Path

for _path in sorted(Path(__file__).parent.glob('*_arch.py')):
    importlib.import_module(f'{__name__}.{_path.stem}')
