"""Scripts for those who work on the project: they measure, train, try to break, and write what the documentation shows.

``python tools/NAME.py`` and ``python -m tools.NAME`` are the same, from the repository's root. What measures leaves
result files in ``docs/results``; ``tools/pages`` writes the documentation from them.
"""
