"""The schema as data: its dotted keys, its types in words, and the key nearest to one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from rlhf.config.schema import Recipe

SCALARS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
"""Types of single values → their names in messages and in the reference."""
PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}
CLOSE_ENOUGH = 0.6
"""Smallest similarity (difflib's ratio) at which a key is offered in place of an unknown one."""


@cache
def types_of(section: type) -> dict[str, Any]:
    """Field name → resolved type of one section of the schema, without limits."""
    return get_type_hints(section)


def fields_of(section: type) -> dict[str, FieldInfo]:
    """Field name → pydantic's record of it: default, and the docstring under it as description."""
    return cast(dict[str, FieldInfo], vars(section)["__pydantic_fields__"])


def limit_of(section: type, name: str) -> str:
    """The limit of a number in words; empty for a field that holds no number."""
    return _limit(get_type_hints(section, include_extras=True)[name])


def _limit(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return next((text for text in reversed(kind.__metadata__) if isinstance(text, str)), "")
    return next(filter(None, map(_limit, get_args(kind))), "")


def without_none(kind: Any) -> tuple[Any, bool]:
    """The type without ``None``, or a union of those that are left, and whether ``None`` was allowed."""
    options = get_args(kind)
    if get_origin(kind) is Literal or NoneType not in options:
        return kind, False
    return reduce(or_, [option for option in options if option is not NoneType]), True


def section_of(kind: Any) -> type | None:
    """The dataclass when a field holds a section (possibly none), otherwise ``None``."""
    inner, _ = without_none(kind)
    return inner if isinstance(inner, type) and is_dataclass(inner) else None


def named_section_of(kind: Any) -> type | None:
    """The dataclass when a field maps names of the user's own to sections, otherwise ``None``."""
    return section_of(get_args(kind)[1]) if get_origin(kind) is dict else None


def describe(kind: Any) -> str:
    """A field's type in words."""
    inner, optional = without_none(kind)
    return _describe(inner) + (" or null" if optional else "")


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(map(_describe, arguments))
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if origin is dict:
        return "a mapping of names to sections" if named_section_of(kind) else "a mapping of text to text"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list of {PLURALS[arguments[0]]}"
    if origin is tuple:
        return f"a list of {len(arguments)} {PLURALS[arguments[0]]}"
    return SCALARS.get(kind, "a section")


def sections(section: type = Recipe, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Every section as (dotted prefix, dataclass), the recipe itself first under the empty prefix."""
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
    """The existing key that an unknown one most likely means.

    The last part of the key counts most, so that a right name in the wrong section is found where it belongs; where
    nothing is called like it, resembling sections alone make no guess.
    """
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
