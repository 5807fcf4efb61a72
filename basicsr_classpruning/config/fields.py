"""Building blocks of the options' schema: the section class, value types, and how a check refuses a value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_serializer
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Allowed:
    """What a value may be, in words, where its type does not say it."""

    text: str


class Section(BaseModel):
    """A mapping of an options file. Unknown keys are refused; values are taken as written, never converted."""

    model_config = ConfigDict(
        extra='forbid', strict=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


class SparseSection(Section):
    """A section whose result holds only what the file says, and the defaults that are not null.

    BasicSR asks of some mappings whether a key is there at all.
    """

    @model_serializer(mode='wrap')
    def _without_unset(self, handler: Any) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if v is not None or k in self.model_fields_set}


class Registered(SparseSection):
    """Something found in a BasicSR registry by its ``type``; all other keys go to its constructor."""

    model_config = ConfigDict(extra='allow')

    type: str
    """Name in BasicSR's registry; names from `custom_imports` count."""


def refuse(key: str, text: str) -> PydanticCustomError:
    """The error to raise from a validator of a section: ``key`` is relative to the section ('' for itself)."""
    return PydanticCustomError('option', '{text}', {'text': text, 'key': key})


def _as_whole(value: Any) -> Any:
    """5000.0 counts as 5000: BasicSR's own files write ``!!float 5e3``."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _as_regex(value: Any) -> Any:
    if isinstance(value, str):
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise refuse('', f'{value!r} is not allowed; a regular expression ({error})') from None
    return value


Whole = Annotated[int, BeforeValidator(_as_whole)]
Count = Annotated[Whole, Ge(1)]
CountOrZero = Annotated[Whole, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Rate = Annotated[float, Gt(0), Le(1_000_000)]
Ratio = Annotated[float, Gt(0), Le(1)]
RatioBelowOne = Annotated[float, Ge(0), Lt(1)]
Regex = Annotated[str, BeforeValidator(_as_regex), Allowed('a regular expression')]
