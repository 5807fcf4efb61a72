"""Reads and checks options: YAML files, the command line of training and testing, networks named by the user."""

from basicsr_classpruning.config.loading import load_network_options, load_options, parse_options
from basicsr_classpruning.config.registries import import_modules
from basicsr_classpruning.config.validation import validate, validate_network

__all__ = ['import_modules', 'load_network_options', 'load_options', 'parse_options', 'validate', 'validate_network']
