"""Follows the place of an error through the schema, to say what is allowed there."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Any, Union

from pydantic import Tag

from basicsr_classpruning.config.fields import Section
from basicsr_classpruning.config.wording import unwrap

_KEY = '[key]'  # pydantic's last part of a place where the key itself is wrong


@dataclass(frozen=True)
class Place:
    """A place in an options file."""

    parts: tuple[str | int, ...]
    """Keys and indices, as in the file."""
    known: bool
    """Whether the schema has the last of them."""
    annotation: Any
    """Type of the value there; where it is not known, of the section around it."""
    metadata: tuple[Any, ...]
    """What `Annotated` says of that type."""

    @property
    def dotted(self) -> str:
        """`('network_g', 'candidates', 0)` as `network_g.candidates[0]`."""
        return ''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in self.parts).lstrip('.')


def follow(location: tuple[Any, ...], model: type[Section]) -> Place:
    """The place that pydantic calls ``location`` in a file of this schema.

    In a union the location has one part more than the file, which says what member pydantic tried.
    """
    parts: list[str | int] = []
    annotation, metadata = unwrap(model)
    for part in location:
        if part == _KEY:
            break
        if len(members(annotation)) > 1:
            annotation = _tagged(annotation, part)
            continue
        parts.append(part)
        step = _step(annotation, part)
        if step is None:
            return Place(tuple(parts), False, annotation, tuple(metadata))
        annotation, metadata = unwrap(*step)
    return Place(tuple(parts), True, annotation, tuple(metadata))


def members(annotation: Any) -> list[Any]:
    """The members of a union but null (one, where it is none), without their metadata."""
    annotation, _ = unwrap(annotation)
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [member for arg in typing.get_args(annotation) for member in members(arg)]
    return [] if annotation is type(None) else [annotation]


def _tagged(annotation: Any, tag: Any) -> Any:
    """The member of a union with this tag, or the union itself where none has it."""
    for arg in typing.get_args(unwrap(annotation)[0]):
        inner, metadata = unwrap(arg)
        if any(isinstance(item, Tag) and item.tag == tag for item in metadata):
            return inner
    return annotation


def _step(annotation: Any, part: str | int) -> tuple[Any, list[Any]] | None:
    for member in members(annotation):
        args = typing.get_args(member)
        if typing.get_origin(member) is dict:
            return args[1], []
        if typing.get_origin(member) is list:
            return args[0], []
        fields = getattr(member, 'model_fields', {})
        if part in fields:
            return fields[part].annotation, list(fields[part].metadata)
    return None
