"""Checks that the fields of a decoded record have the types that its class declares; JSON may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from rlhf.data.turns import require_unicode

MOST_WHOLE = 2**63
"""Whole numbers in SQLite are smaller."""


def require_types(record: Any) -> None:
    """Check a dataclass and the dataclasses in it.

    Raises:
        TypeError: a field has another type, or holds a number that SQLite or JSON cannot hold.
        RowError: a text is no Unicode.
    """
    hints = get_type_hints(type(record))
    for field in fields(record):
        value = getattr(record, field.name)
        if not _has_type(value, hints[field.name]):
            raise TypeError(f"{field.name} is {value!r:.40}")
        if isinstance(value, (str, Mapping)):
            require_unicode(value, field.name)


def _has_type(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_has_type(value, each) for each in get_args(hint))
    if hint in (int, float):
        is_number = type(value) in ((int,) if hint is int else (int, float))
        return is_number and math.isfinite(value) and abs(value) < MOST_WHOLE
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and _have_types(value, get_args(hint))
    if get_origin(hint) is Mapping:
        return isinstance(value, Mapping)
    if hint is None or hint is type(None):
        return value is None
    if not (type(value) is hint or isinstance(value, Enum) and isinstance(value, hint)):
        return False
    if is_dataclass(value):
        require_types(value)
    return True


def _have_types(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    if hints[-1] is ...:
        return all(_has_type(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(map(_has_type, values, hints))
