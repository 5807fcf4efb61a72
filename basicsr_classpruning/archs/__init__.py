"""ClassPruning, the classifier, and base networks that BasicSR lacks: every ``*_arch.py`` here is registered.

So is every ``*_adapter.py``: what an architecture needs before it can be pruned.
"""

import importlib
from pathlib import Path

for _kind in ('adapter', 'arch'):
    for _path in sorted(Path(__file__).parent.glob(f'*_{_kind}.py')):
        importlib.import_module(f'{__name__}.{_path.stem}')
