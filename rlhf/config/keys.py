"""Inspects the schema: dotted keys, descriptions of types, and the key most similar to an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from rlhf.config.schema import Recipe

SCALARS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
"""Type of a single value → description in messages and in the reference."""
PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}
CLOSE_ENOUGH = 0.6
"""Smallest similarity (difflib's ratio) at which a key is suggested for an unknown one."""


@cache
def types_of(section: type) -> dict[str, Any]:
    """Field name → resolved type, without limits, of one section of the schema."""
    return get_type_hints(section)


def fields_of(section: type) -> dict[str, FieldInfo]:
    """Field name → pydantic's field: its default, and its docstring as the description."""
    return cast(dict[str, FieldInfo], vars(section)["__pydantic_fields__"])


def limit_of(section: type, name: str) -> str:
    """Description of a number's limits; empty for other fields."""
    return _limit(get_type_hints(section, include_extras=True)[name])


def _limit(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return next((text for text in reversed(kind.__metadata__) if isinstance(text, str)), "")
    return next(filter(None, map(_limit, get_args(kind))), "")


def without_none(kind: Any) -> tuple[Any, bool]:
    """The type without ``None``, and whether ``None`` was allowed."""
    options = get_args(kind)
    if get_origin(kind) is Literal or NoneType not in options:
        return kind, False
    return reduce(or_, [option for option in options if option is not NoneType]), True


def section_of(kind: Any) -> type | None:
    """The section's class if a field is a section, which may be optional, else None."""
    inner, _ = without_none(kind)
    return inner if isinstance(inner, type) and is_dataclass(inner) else None


def named_section_of(kind: Any) -> type | None:
    """The section's class if a field maps user-defined names to sections, else None."""
    return section_of(get_args(kind)[1]) if get_origin(kind) is dict else None


def describe(kind: Any) -> str:
    """Description of a field's type."""
    inner, optional = without_none(kind)
    return _describe(inner) + (" or null" if optional else "")


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):  # with a Literal among its members Python makes the latter
        return " or ".join(map(_describe, arguments))
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(option) for option in arguments)
    if origin is dict:
        return "a mapping of names to sections" if named_section_of(kind) else "a mapping of text to text"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list of {PLURALS[arguments[0]]}"
    if origin is tuple:
        return f"a list of {len(arguments)} {PLURALS[arguments[0]]}"
    return SCALARS.get(kind, "a section")


def sections(section: type = Recipe, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yield every section as (dotted prefix, class), first the recipe itself with an empty prefix."""
    yield prefix, section
    for name, kind in types_of(section).items():
        if inner := section_of(kind):
            yield from sections(inner, join(prefix, name))
        elif named := named_section_of(kind):
            yield from sections(named, join(prefix, f"{name}.<name>"))


def join(prefix: str, name: str) -> str:
    """``prefix.name``, or ``name`` at the top."""
    return f"{prefix}.{name}" if prefix else name


@cache
def all_keys() -> tuple[str, ...]:
    """Every dotted key of a recipe, sections included."""
    return tuple(join(prefix, name) for prefix, section in sections() for name in types_of(section))


def nearest(key: str) -> str | None:
    """The key most similar to an unknown one; None if no key is similar.

    The last part has the largest weight, so that a correct name in the wrong section is found; similar sections alone
    do not suffice."""
    if len(key) > 2 * max(map(len, all_keys())):
        return None
    best = max(all_keys(), key=lambda candidate: _similarity(key, candidate))
    return best if _ratio(_last(key), _last(best)) >= CLOSE_ENOUGH else None


def _similarity(key: str, candidate: str) -> float:
    return _ratio(_last(key), _last(candidate)) + 0.5 * _ratio(key, candidate)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _last(key: str) -> str:
    return key.rpartition(".")[2]
