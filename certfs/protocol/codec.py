"""Frozen values as JSON, and back: everything that the processes of certfs tell each other.

What a reader does not know is left out, and what a writer did not know has its default: the two may be of different
versions, while an upgrade is under way. Paths survive whatever bytes they hold (`os.fsdecode`). Every value is looked
at: a file that was cut off, or that somebody has edited, is one exception and never a value of another type than its
field says, to be found out by whoever uses it.
"""

import json
import math
import types
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: object, *, indent: int | None = None) -> bytes:
    """Return the JSON of an instance of a dataclass, or of None."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(plain, indent=indent).encode()


def from_json(kind: type[T], content: bytes) -> T:
    """Return the ``kind`` that ``content`` describes; ValueError if it does not."""
    value: T = checked(kind, parsed(content))
    return value


def parsed(content: bytes) -> Any:  # noqa: ANN401 - whatever is written there
    """Return what json.loads does; ValueError for all that it cannot read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked(kind: Any, raw: object) -> Any:  # noqa: ANN401 - what the type says
    """Return ``raw``, as json.loads gives it, as a ``kind``: a dataclass, a tuple, a dict, a plain type, a union."""
    if is_dataclass(kind):
        return _dataclass(kind, raw)
    origin = get_origin(kind)
    if origin in {Union, types.UnionType}:
        return _any_of(get_args(kind), raw)
    if origin is tuple and isinstance(raw, list):
        element, _ = get_args(kind)
        return tuple(checked(element, each) for each in raw)
    if origin is dict and isinstance(raw, dict):
        _, values = get_args(kind)  # keys of JSON are strings
        return {key: checked(values, each) for key, each in raw.items()}
    if kind is float and type(raw) in {int, float}:
        return _finite(raw)
    # Exactly: a bool is an int to isinstance.
    if raw in get_args(kind) if origin is Literal else type(raw) is kind:
        return raw
    raise ValueError(f"not a {kind}: {str(raw)[:40]!r}")


def _finite(number: Any) -> float:  # noqa: ANN401 - int or float
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):  # JSON has no NaN, but json.loads has
        raise ValueError(f"not a finite number: {str(number)[:40]!r}")
    return value


def _any_of(kinds: tuple[Any, ...], raw: object) -> Any:  # noqa: ANN401 - what the type says
    for kind in kinds:
        try:
            return checked(kind, raw)
        except ValueError:
            continue
    raise ValueError(f"none of {kinds}: {str(raw)[:40]!r}")


def _dataclass(kind: Any, raw: object) -> Any:  # noqa: ANN401 - what the type says
    match raw:
        case dict():
            hints = _hints(kind)
            known = {each.name for each in fields(kind)} & raw.keys()
            try:
                return kind(**{name: checked(hints[name], raw[name]) for name in known})
            except TypeError as error:  # a field is missing
                raise ValueError(str(error)) from None
    raise ValueError(f"not a {kind.__name__}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
