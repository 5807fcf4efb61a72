"""Turns what pydantic found wrong into one line that names the key and says what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from basicsr_classpruning.config.fields import Section
from basicsr_classpruning.config.places import Place, follow, members
from basicsr_classpruning.config.wording import allowed, printable, shown, suggestion
from basicsr_classpruning.errors import UsageError


@dataclass
class Problem(Exception):
    """A key of an options file that is not as it should be."""

    key: str
    """Dotted key, e.g. `train.budget_opt.target`; '' for the file as a whole."""
    text: str
    """What is wrong and what is allowed."""

    def as_error(self, source: str) -> UsageError:
        """The one line for the user; ``source`` is the name of the file."""
        return UsageError(printable(': '.join(part for part in (source, self.key, self.text) if part)))


def _nowhere(location: tuple[int | str, ...]) -> str:
    return ''


def first_problem(
    error: ValidationError, model: type[Section], belongs: Callable[[tuple[int | str, ...]], str] = _nowhere
) -> Problem:
    """The most telling of the problems: a wrong `type` explains other keys; a misspelt key is missing as well.

    Args:
        error: what pydantic found.
        model: the schema.
        belongs: says of the place of an unknown key where it would be read; '' where it never is.
    """
    details = min(error.errors(include_url=False), key=_rank)
    place = follow(details['loc'], model)
    return Problem(
        under(place.dotted, details.get('ctx', {}).get('key', '')), _text(details, place, belongs(details['loc']))
    )


def _rank(details: ErrorDetails) -> int:
    if details['type'] == 'literal_error' and details['loc'][-1] in ('type', 'model_type'):
        return 0
    return 1 if details['type'] == 'extra_forbidden' else 2


def under(key: str, rest: str) -> str:
    """The dotted key of ``rest`` inside ``key``; either may be '', and ``rest`` may begin with an index."""
    separator = '.' if key and rest and not rest.startswith('[') else ''
    return f'{key}{separator}{rest}'


def _text(details: ErrorDetails, place: Place, belongs: str) -> str:
    if details['type'] == 'option':
        return details['ctx']['text']
    if details['type'] == 'extra_forbidden':
        return f'unknown key; {belongs or _meant(place)}'
    wanted = allowed(place.annotation, place.metadata)
    if details['type'] == 'missing':
        return f'is missing; {wanted}'
    if details['loc'] and details['loc'][-1] == '[key]':
        return f'{shown(details["input"])} is not allowed as a key; text'
    return f'{shown(details["input"])} is not allowed; {wanted}'


def _meant(place: Place) -> str:
    """What an unknown key may have been meant for."""
    names = [name for section in members(place.annotation) for name in getattr(section, 'model_fields', ())]
    return suggestion(str(place.parts[-1]), names)
