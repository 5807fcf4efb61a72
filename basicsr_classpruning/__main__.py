"""``python -m basicsr_classpruning`` is the ``classpruning`` command."""

import sys

from basicsr_classpruning.cli import main

sys.exit(main())
