"""Fills in single sections of options for models, wherever their options come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from basicsr_classpruning.config.fields import Section
from basicsr_classpruning.config.problems import first_problem, under


def filled_in(schema: type[Section], options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The options of a section, checked and with the schema's defaults, which are written nowhere else.

    ``classpruning train`` has done so before; BasicSR's own ``train.py``, and models that inherit from this package's,
    have not. Keys that the schema does not know stay as they are: they may be the model's own. ``key`` is the section's
    place in the options file. Raises UsageError.
    """
    known = {name: value for name, value in options.items() if name in schema.model_fields}
    try:
        result = schema.model_validate(known).model_dump()
    except ValidationError as error:
        problem = first_problem(error, schema)
        problem.key = under(key, problem.key)
        raise problem.as_error('') from None
    return {**options, **result}
