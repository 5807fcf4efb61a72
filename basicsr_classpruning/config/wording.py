"""Says in words what an option may be, for error messages and for the options reference."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from basicsr_classpruning.config.fields import Allowed, Registered, Section

_SHOWN = 60  # characters of a value that a message repeats


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value of this type may be: 'a number above 0 and at most 1', "'cpu', 'cuda' or null"."""
    annotation, metadata = unwrap(annotation, metadata)
    for item in metadata:
        if isinstance(item, Allowed):
            return item.text
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return listed([literal(value) for value in args])
    if origin in (Union, types.UnionType):
        return _union(args)
    if origin is list:
        return f'a list of {_length(metadata)}{_plural(args[0])}'
    if origin is dict:
        return 'a mapping'
    if isinstance(annotation, type) and issubclass(annotation, Registered):
        return 'a mapping with a type and its arguments'
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f'a mapping with the keys {", ".join(annotation.model_fields)}'
    names = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text', type(None): 'null'}
    return names.get(annotation, 'a value') + _bounds(metadata)


def allowed_in(field: FieldInfo) -> str:
    """What the value of a field may be."""
    return allowed(field.annotation, field.metadata)


def unwrap(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[Any, list[Any]]:
    """Splits ``Annotated[T, ...]`` into T and its metadata, behind ``metadata``."""
    found = list(metadata)
    while typing.get_origin(annotation) is Annotated:
        annotation, *more = typing.get_args(annotation)
        found += more
    return annotation, found


def listed(words: list[str], last: str = 'or') -> str:
    """'a', 'a or b', 'a, b or c'."""
    return words[0] if len(words) == 1 else f'{", ".join(words[:-1])} {last} {words[-1]}' if words else 'nothing'


def literal(value: Any) -> str:
    """A value as one would write it in YAML."""
    if value is None:
        return 'null'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def shown(value: Any) -> str:
    """A value for a message: on one line and not longer than a few words."""
    if isinstance(value, dict):
        return 'a mapping'
    try:
        text = literal(value)
    except ValueError:  # a whole number of more digits than Python prints
        return 'a number this large'
    return text if len(text) <= _SHOWN else f'{text[: _SHOWN - 1]}…'


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of the names that look like ``name``, the likeliest first."""
    by_lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower()[:_SHOWN], by_lower, n=3, cutoff=0.6)
    return [by_lower[lower] for lower in found]


def suggestion(name: str, names: Iterable[str]) -> str:
    """'did you mean …?', or all that is allowed where nothing looks like ``name``."""
    names = sorted(names)
    near = nearest(name, names)
    if near:
        return f'did you mean {listed([repr(other) for other in near])}?'
    return f'allowed are {", ".join(names)}' if names else 'no key is allowed here'


def printable(text: str) -> str:
    """The text on one line: control characters are shown as escapes."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def _plural(annotation: Any) -> str:
    inner, metadata = unwrap(annotation)
    words = {int: 'whole numbers', float: 'numbers', str: 'texts', bool: 'true or false'}
    for item in metadata:
        if isinstance(item, Allowed):
            return f'{item.text.split(" ", 1)[-1]}s'
    return words.get(inner, 'values') + _bounds(metadata)


def _bounds(metadata: Iterable[Any]) -> str:
    words = []
    for item in metadata:
        if isinstance(item, Gt):
            words.append(f'above {item.gt}')
        elif isinstance(item, Ge):
            words.append(f'of at least {item.ge}')
        elif isinstance(item, Lt):
            words.append(f'below {item.lt}')
        elif isinstance(item, Le):
            words.append(f'at most {item.le}')
    return f' {listed(words, "and")}' if words else ''


def _length(metadata: Iterable[Any]) -> str:
    low, high = 0, None
    for item in metadata:
        if isinstance(item, (Len, MinLen)):
            low = item.min_length
        if isinstance(item, (Len, MaxLen)):
            high = item.max_length
    if high is not None:
        return f'{low} ' if low == high else f'{low} to {high} '
    return f'{low} or more ' if low else ''


def _union(members: tuple[Any, ...]) -> str:
    """Alternatives, null last."""
    words: list[str] = []
    for member in members:
        inner, metadata = unwrap(member)
        values = (
            (True, False) if inner is bool else typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
        )
        words += [literal(value) for value in values] or [allowed(inner, metadata)]
    return listed(sorted(dict.fromkeys(words), key=lambda word: word == 'null'))
