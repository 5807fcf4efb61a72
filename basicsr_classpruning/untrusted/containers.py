"""Finds the weights among all that a stranger's file holds, and the names that they have without a wrapper's prefix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

ORDINARY = ('params_ema', 'params-ema', 'params', 'state_dict')
"""Containers of BasicSR and of most published files, the best first."""
# Put before every key by DataParallel, DistributedDataParallel and torch.compile.
_WRAPPERS = re.compile(r'\A(?:module\.|_orig_mod\.)+')
_DEEPEST = 3  # dictionaries, or prefixes, inside each other that are looked into
_MOST_GROUPS = 8  # networks in one state dict that are told apart by their prefix


def weights_at(content: Mapping[Any, Any]) -> dict[str, dict[str, Tensor]]:
    """All dictionaries of tensors in a file, by the keys that lead to them, joined by dots.

    A file that is one itself has it under ``params``. Numbers and texts among the tensors are left out: counters and
    settings. Optimisers' and schedulers' tensors are no network's.
    """
    if is_state_dict(content):
        return {'params': plain_names(content)}
    return {name: plain_names(found) for name, found in _found(content, '', 1)}


def _found(content: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping):
            continue
        if key.startswith(('optim', 'sched', 'packed')):
            continue
        if is_state_dict(value):
            yield f'{path}{key}', value
        elif depth < _DEEPEST:
            yield from _found(value, f'{path}{key}.', depth + 1)


def is_state_dict(value: object) -> bool:
    """Whether this is a dictionary of tensors, of which at least one is no single number."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) and not isinstance(item, (Mapping, list, tuple)) for key, item in value.items())
        and any(isinstance(item, Tensor) and item.ndim > 0 for item in value.values())
    )


def plain_names(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, without the prefixes that wrappers put before every name."""
    tensors = {key: value for key, value in state_dict.items() if isinstance(value, Tensor)}
    return {_WRAPPERS.sub('', key, count=1): value for key, value in tensors.items()}


def choose(names: Iterable[str]) -> str | None:
    """Which of a file's dictionaries of tensors holds the network; None where that cannot be told.

    The ordinary containers come first, then averaged weights, then whatever is the only one.
    """
    names = list(names)
    for name in ORDINARY:
        if name in names:
            return name
    averaged = [name for name in names if 'ema' in name.lower().replace('-', '_').replace('.', '_').split('_')]
    for some in (averaged, [name for name in names if name not in averaged]):
        if len(some) == 1:
            return some[0]
        if some:
            return None
    return None


def variants(params: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A state dict as it is, then under the names that it may have had before something was wrapped around it.

    Lightning and others put ``model.``, ``net_g.``, ``generator.`` before all names, or keep several networks side by
    side. That cannot be told from a network whose only part is called ``model``: the caller has to try.
    """
    current = dict(params)
    yield current
    bare = {key: value for key, value in current.items() if value.ndim > 0 or '.' in key}  # counters beside the weights
    if bare and len(bare) < len(current):
        yield bare
    groups = _by_first_part(bare)
    for _ in range(_DEEPEST):
        if len(groups) != 1:
            break
        bare = next(iter(groups.values()))
        yield bare
        groups = _by_first_part(bare)
    if len(groups) <= _MOST_GROUPS:
        # Averaged weights first.
        yield from (groups[name] for name in sorted(groups, key=lambda name: 'ema' not in name.lower()))


def _by_first_part(params: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in params.items():
        first, _, rest = key.partition('.')
        if rest:
            groups.setdefault(first, {})[rest] = value
    return groups
