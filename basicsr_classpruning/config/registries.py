"""Checks names against BasicSR's registries, and keys against the signatures of what is registered."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from basicsr_classpruning.config.problems import Problem, under
from basicsr_classpruning.config.wording import literal, shown, suggestion

_MODULE = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*')


@dataclass(frozen=True)
class Kind:
    """One of BasicSR's registries."""

    word: str
    """What its entries are called in messages."""
    registry: str
    """Name in `basicsr.utils.registry`."""
    package: str
    """Importing it fills the registry with BasicSR's own entries."""
    supplied: frozenset[str] = frozenset()
    """Arguments that the options do not give."""


NETWORK = Kind('network', 'ARCH_REGISTRY', 'basicsr.archs')
LOSS = Kind('loss', 'LOSS_REGISTRY', 'basicsr.losses')
METRIC = Kind('metric', 'METRIC_REGISTRY', 'basicsr.metrics', frozenset({'img', 'img2', 'better'}))
DATASET = Kind('data set', 'DATASET_REGISTRY', 'basicsr.data')
MODEL = Kind('model', 'MODEL_REGISTRY', 'basicsr.models')


def import_modules(names: Iterable[str], source: str = '') -> None:
    """Imports the user's modules, so that what they register is found. The current folder is searched last.

    ``source`` names the options file in errors. Raises UsageError where a module cannot be imported.
    """
    try:
        for i, name in enumerate(names):
            _import(name, f'custom_imports[{i}]' if source else '')
    except Problem as problem:
        raise problem.as_error(source) from None


def _import(name: str, key: str) -> None:
    if not _MODULE.fullmatch(name):
        raise Problem(key, f'{shown(name)} is not allowed; the name of a module, e.g. my_project.my_arch')
    if os.getcwd() not in sys.path and '' not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever the user's module raises is reported to the user
        raise Problem(key, f'{name} cannot be imported: {type(error).__name__}: {error}') from None


def find(kind: Kind, name: str, key: str) -> Any:
    """What is registered under ``name``. Raises Problem with the nearest names where nothing is."""
    importlib.import_module(kind.package)
    registry = getattr(importlib.import_module('basicsr.utils.registry'), kind.registry)
    for candidate in (name, f'{name}_basicsr'):  # BasicSR's own fallback
        if candidate in registry:
            return registry.get(candidate)
    raise Problem(key, f'unknown {kind.word} {shown(name)}; {suggestion(name, registry.keys())}')


def check_registered(kind: Kind, options: dict[str, Any], key: str) -> None:
    """Checks ``options['type']`` and, against the signature of what it names, all other keys."""
    entry = find(kind, options['type'], under(key, 'type'))
    given = {name: value for name, value in options.items() if name != 'type'}
    check_arguments(entry, given, key, kind.supplied)


def check_arguments(
    entry: Callable, given: dict[str, Any], key: str, supplied: frozenset[str], may_lack: bool = False
) -> None:
    """Refuses arguments that ``entry`` does not take, lacks or cannot mean.

    ``supplied`` are arguments given by the caller; with ``may_lack`` all others may come from him, too. A callable
    with ``**kwargs`` takes any key, except BasicSR's own, which swallow misspelt ones without a word.
    """
    try:
        parameters = inspect.signature(entry).parameters
    except (TypeError, ValueError):  # written in C, or with a signature of its own making
        return
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_all or entry.__module__.startswith('basicsr.'):
        for name in given:
            if name not in named and name not in supplied:
                text = f'unknown key of {entry.__name__}; {suggestion(name, set(named) - supplied)}'
                raise Problem(under(key, name), text)
    for name, parameter in named.items():
        if name in given:
            _check_kind_of_value(parameter.default, given[name], under(key, name))
        elif parameter.default is parameter.empty and name not in supplied and not may_lack:
            raise Problem(under(key, name), f'is missing; {entry.__name__} needs it')


def _check_kind_of_value(default: Any, value: Any, key: str) -> None:
    """Refuses text where the default is a number or a flag, a number where it is text, a mapping in place of either.

    More is not known of a constructor's arguments: a default of 0 may well stand for fractions.
    """
    if isinstance(default, (bool, int, float)) and isinstance(value, (str, dict)):
        wanted = 'true or false' if isinstance(default, bool) else 'a number'
        raise Problem(key, f'{shown(value)} is not allowed; {wanted} (default: {literal(default)})')
    if isinstance(default, str) and isinstance(value, (bool, int, float, dict)):
        raise Problem(key, f'{shown(value)} is not allowed; text (default: {literal(default)})')
