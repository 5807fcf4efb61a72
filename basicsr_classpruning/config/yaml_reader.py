"""Reads YAML from strangers: plain values only, no Python objects, and no file that grows while it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from basicsr_classpruning.config.problems import Problem
from basicsr_classpruning.config.wording import shown

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32
MAX_VALUES = 10_000
"""Values after repeating what aliases (``*name``) stand for."""

_PLAIN = 'tag:yaml.org,2002:'
_SCALARS = ('str', 'null', 'bool', 'int', 'float')
_FLOAT = re.compile(
    r'[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$'
)
_INT = re.compile(r'[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$')


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with today's rules for numbers.

    YAML 1.1 takes ``1e-4`` for text, and ``2:4`` and ``2024-01-01`` for a number in base 60 and a date.
    """

    depth = 0
    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Node | None:
        self.depth += 1
        self.nodes += 1
        line = self.peek_event().start_mark.line
        if self.depth > MAX_DEPTH:
            raise _at(line, f'more than {MAX_DEPTH} levels deep, which no options file is')
        if self.nodes > 2 * MAX_VALUES:  # keys count here, too
            raise _at(line, f'more than {MAX_VALUES} values, which no options file has')
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0].removeprefix(_PLAIN) not in ('int', 'float', 'timestamp')]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f'{_PLAIN}int', _INT, list('-+0123456789'))
_Loader.add_implicit_resolver(f'{_PLAIN}float', _FLOAT, list('-+.0123456789'))


def read_yaml(path: str) -> Any:
    """The values in a YAML file. Raises UsageError, naming the file and the line."""
    try:
        if not Path(path).is_file():
            raise Problem('', 'no such file; an options file in YAML')
        with open(path, 'rb') as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise Problem('', f'larger than {MAX_BYTES // 1024} KiB, which no options file is')
        return _parse(data.decode('utf-8-sig'))
    except UnicodeDecodeError:
        raise Problem('', 'is not UTF-8 text; an options file in YAML').as_error(str(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise Problem('', f'cannot be read: {getattr(error, "strerror", None) or error}').as_error(str(path)) from None
    except Problem as problem:
        raise problem.as_error(str(path)) from None


def parse_value(text: str) -> Any:
    """The value that a text stands for in YAML. Raises Problem."""
    if len(text) > MAX_BYTES:
        raise Problem('', 'is too long')
    return _parse(text)


def _parse(text: str) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Builder(loader).value(node, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _at(mark.line if mark else 0, f'is not YAML: {error.problem or error.context}') from None
    except yaml.YAMLError as error:
        raise Problem('', f'is not YAML: {str(error).splitlines()[0]}') from None


def _at(line: int, text: str) -> Problem:
    return Problem(f'line {line + 1}', text)


class _Builder:
    """Builds plain values from YAML's nodes: every alias becomes a copy of its own."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.values = 0

    def value(self, node: Node, depth: int) -> Any:
        line = node.start_mark.line
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise _at(line, f'aliases (*name) that stand for more than {MAX_VALUES} values')
        kind = node.tag.removeprefix(_PLAIN)
        if isinstance(node, MappingNode) and kind == 'map':
            return self._mapping(node, depth)
        if isinstance(node, SequenceNode) and kind == 'seq':
            return [self.value(item, depth + 1) for item in node.value]
        if isinstance(node, ScalarNode) and kind in _SCALARS:
            return self._scalar(node, kind, line)
        tag = node.tag.replace(_PLAIN, '!!')
        raise _at(line, f'the tag {shown(tag)} is not allowed; only plain text, numbers, lists and mappings')

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line
            if key_node.tag == f'{_PLAIN}merge':
                merged = {**self._merge(value_node, depth), **merged}
                continue
            if not isinstance(key_node, ScalarNode) or key_node.tag.removeprefix(_PLAIN) not in _SCALARS:
                raise _at(line, 'a key is plain text')
            key = key_node.value
            if key in result:
                raise _at(line, f'the key {shown(key)} is there twice')
            result[key] = self.value(value_node, depth + 1)
        return {**merged, **result}

    def _merge(self, node: Node, depth: int) -> dict[str, Any]:
        """What ``<<: *name`` or ``<<: [*name, *other]`` brings in; earlier ones win."""
        merged: dict[str, Any] = {}
        value = self.value(node, depth + 1)
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                raise _at(node.start_mark.line, '<< is for mappings')
            merged = {**part, **merged}
        return merged

    def _scalar(self, node: ScalarNode, kind: str, line: int) -> Any:
        text = node.value
        try:
            if kind == 'str':
                return text
            if kind == 'int':
                return _whole(text)
            return self.loader.construct_object(node)
        except (ValueError, KeyError, OverflowError):
            raise _at(line, f'{shown(text)} is not a value of type {kind}') from None


def _whole(text: str) -> int:
    digits = text.replace('_', '').lower().lstrip('+-')
    base = {'0x': 16, '0o': 8, '0b': 2}.get(digits[:2], 10)
    return (-1 if text.startswith('-') else 1) * int(digits[2:] if base != 10 else digits, base)
