"""Testing, started as in every BasicSR descendant: ``python basicsr_classpruning/test.py -opt FILE``."""

import sys

from basicsr_classpruning.cli import main

if __name__ == '__main__':
    sys.exit(main(['test', *sys.argv[1:]]))
