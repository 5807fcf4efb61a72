"""Shared fixtures: the environment is mended before any test imports BasicSR."""

from basicsr_classpruning import environment

environment.prepare()
