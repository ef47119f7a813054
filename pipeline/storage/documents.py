"""JSON documents as the dataclasses that they stand for: whatever is missing, unknown or of another kind is said in words."""

import functools
import json
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

Kind = TypeVar("Kind")


def parsed(content: str | bytes) -> Any:
    """The JSON value. Raises ValueError."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def typed(kind: type[Kind], document: Any, *, complete: bool = True) -> Kind:
    """A JSON value as what it stands for, a dataclass or whatever pydantic knows; only whole numbers become floats.

    complete: entries that the class does not know are refused; else they are left out. Raises ValueError in words: "fitted_on has
    date missing or unknown", "quality.ece is 'low'"; numbers that are not finite are refused too.
    """
    try:
        return _reader(kind, complete).validate_json(json.dumps([document]))[0]  # type: ignore[arg-type] # a class has a hash
    except ValidationError as error:
        raise ValueError(_in_words(error, document)) from None


@functools.cache
def _reader(kind: Any, complete: bool) -> TypeAdapter[Any]:
    config = ConfigDict(strict=True, extra="forbid" if complete else "ignore", allow_inf_nan=False)
    return TypeAdapter(tuple[kind], config=config)  # a dataclass takes no configuration but that of what it lies in


def _in_words(error: ValidationError, document: Any) -> str:
    faults = [(fault, fault["loc"][1:]) for fault in error.errors(include_url=False)]
    named = [steps for fault, steps in faults if fault["type"] in ("missing", "unexpected_keyword_argument")]
    if named:
        names = sorted(str(steps[-1]) for steps in named if steps[:-1] == named[0][:-1])
        return f"{_place(named[0][:-1], document) or 'it'} has {', '.join(names)} missing or unknown"
    fault, steps = faults[0]
    raised = fault.get("ctx", {}).get("error")  # what the class itself says of its values
    return str(raised) if isinstance(raised, ValueError) else f"{_place(steps, document) or 'it'} is {fault['input']!r}"


def _place(steps: tuple[str | int, ...], document: Any) -> str:
    """Where a fault is, as "quality.reliability[0]": as far as there is such a place in the document."""
    place, value = "", document
    for step in steps:
        if isinstance(value, list) and isinstance(step, int):
            place, value = f"{place}[{step}]", value[step]
        elif isinstance(value, dict) and step in value and not isinstance(step, int):
            place, value = f"{place}.{step}".lstrip("."), value[step]
        else:
            break
    return place
