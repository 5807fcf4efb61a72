"""Where the example options files are."""

from __future__ import annotations

from pathlib import Path


def options_folder() -> Path:
    """The folder of the example options files, ``train/*.yml`` and ``test/*.yml``."""
    package = Path(__file__).resolve().parent
    installed = package / 'options'
    return installed if installed.is_dir() else package.parent / 'options'  # in a clone of the repository
