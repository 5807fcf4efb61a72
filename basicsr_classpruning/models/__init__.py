"""Training and validation: every ``*_model.py`` here is registered."""

import importlib
from pathlib import Path

for _path in sorted(Path(__file__).parent.glob('*_model.py')):
    importlib.import_module(f'{__name__}.{_path.stem}')
