"""ClassPruning for BasicSR: importing this package registers its networks, losses, data sets and models."""

from basicsr_classpruning import environment

environment.prepare()

from basicsr_classpruning import archs, data, losses, models  # noqa: E402, F401 — registers them
from basicsr_classpruning.errors import UsageError, UserError  # noqa: E402
from basicsr_classpruning.loading import load  # noqa: E402
from basicsr_classpruning.version import __version__  # noqa: E402

__all__ = ['UsageError', 'UserError', '__version__', 'load']
