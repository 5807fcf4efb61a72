"""Harnesses that try to lose, corrupt, crash and break in, as tests that take long; ``run.py`` runs them."""
