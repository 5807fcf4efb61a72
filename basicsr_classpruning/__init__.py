"""ClassPruning for BasicSR. Importing this package registers its networks, losses, data sets and models."""

from basicsr_classpruning import environment

environment.prepare()
