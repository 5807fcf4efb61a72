"""Harnesses that try to lose, corrupt, crash and break in: tests that take long. ``python tools/reliability/run.py``."""
