"""What the benchmark tables compare: ``plan`` says what a table is, ``instances`` which there are.

``python tools/reproduce_tables.py`` trains and measures them; ``tools/pages/benchmarks.py`` writes their page.
"""
