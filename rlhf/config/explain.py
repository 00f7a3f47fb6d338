"""Translates pydantic's errors into errors for the user, with location, key, value, expected type and fix."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import reduce
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from rlhf.config.fields import HERE, MOST_WHOLE, RuleError
from rlhf.config.keys import (
    describe,
    fields_of,
    join,
    limit_of,
    named_section_of,
    nearest,
    section_of,
    types_of,
    without_none,
)
from rlhf.config.schema import Recipe
from rlhf.config.source import RecipeText
from rlhf.errors import MOST_PROBLEMS, UserError

MISSING_TEXT = "missing"
"""In place of a required text of the recipe itself, which is its name."""
LOWER_LIMIT, UPPER_LIMIT = ("from", "least", "above", "between", " or "), (" to ", "most", "below", "between", " or ")
"""Words of a field's own limits; without one on a side, that of the number's type is the limit there."""


def explain(refusal: ValidationError, settings: dict[Any, Any], source: RecipeText) -> list[UserError]:
    """One error for each wrong key and broken rule; errors that are not shown have only the key as their text.

    Args:
        refusal: pydantic's exception.
        settings: the settings that it refused.
        source: the recipe's text, for the locations of keys. Finding thousands of them would take minutes.
    """
    problems: list[UserError] = []
    seen: set[str] = set()
    for error in refusal.errors(include_url=False):
        found = _Field(error["loc"])
        if found.key in seen and error["type"] != "value_error":
            continue  # items of one list, or members of one union
        seen.add(found.key)
        enough = len(problems) >= MOST_PROBLEMS
        problems += [UserError(found.key)] if enough else _translate(error, found, settings, source)
    return problems


def without_wrong(refusal: ValidationError, settings: dict[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
    """Settings without the wrong keys, and these keys, with those that unknown ones may be meant for.

    Keys whose values only contradict each other stay; a section that lacks a key is removed, except the recipe itself.
    """
    usable, removed = deepcopy(settings), list[str]()
    for error in refusal.errors(include_url=False):
        found = _Field(error["loc"])
        if isinstance(error.get("ctx", {}).get("error"), RuleError) and section_of(found.kind) and found.is_exact:
            continue
        removed += [found.key, nearest(found.key) or found.key]
        if error["type"] == "missing":
            if found.path[:-1]:
                _remove(usable, found.path[:-1])
            else:
                usable[str(found.path[0])] = MISSING_TEXT
        else:
            _remove(usable, found.path)
    return usable, removed


def _remove(settings: dict[Any, Any], path: Sequence[str | int]) -> None:
    *sections, name = path
    inner: Any = settings
    for part in sections:
        inner = inner.get(part) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner.pop(name, None)


class _Field:
    """The field at an error's location. Items of lists, members of unions and names belong to their field."""

    def __init__(self, location: Sequence[str | int]) -> None:
        parts = location[:-2] if location[-1:] == ("[key]",) else location
        self.kind: Any = Recipe
        self.section: type = Recipe
        self.path: tuple[str | int, ...] = ()
        for part in parts:
            if section := section_of(self.kind):
                self.section, self.kind = section, types_of(section).get(str(part))
            elif named := named_section_of(self.kind):
                self.kind = named
            else:
                break
            self.path = (*self.path, part)
        self.key = reduce(join, map(str, self.path), "")
        self.is_exact = len(self.path) == len(location)


def _translate(
    error: Mapping[str, Any], field: _Field, settings: dict[Any, Any], source: RecipeText
) -> Iterator[UserError]:
    """This project's errors for one of pydantic's, by its type."""
    kind, context = error["type"], error.get("ctx", {})
    place, key = source.place(field.key), field.key
    value = reduce(lambda inner, part: inner.get(part, {}), field.path, settings)
    if isinstance(rule := context.get("error"), RuleError):
        for what, why, fix in (problem.args for problem in rule.problems):
            what = what.replace(HERE, key)
            place = source.place(what.split()[0].rstrip(":,"))
            yield UserError(f"{place}: {what}", why.replace(HERE, key), fix.replace(HERE, key))
    elif kind in ("unexpected_keyword_argument", "invalid_key"):
        yield UserError(f"{place}: there is no key {_shorten(key)}", fix=_other_key(field))
    elif kind == "missing" and field.is_exact:
        section, _, name = key.rpartition(".")
        fix = f"add `{name}: ...` to the file, or {key}=... to the command"
        yield UserError(f"{source.place(section)}: {key} is missing", fix=fix)
    elif kind.startswith(("greater_than", "less_than")):
        (bound,) = context.values()
        limit = limit_of(field.section, str(field.path[-1]))
        ends = UPPER_LIMIT if kind.startswith("less_than") else LOWER_LIMIT
        if abs(bound) >= MOST_WHOLE and not any(end in limit for end in ends):
            limit += f", and not beyond {bound:,}"
        yield UserError(f"{place}: {key} = {_show(value)} is out of range", fix=f"choose a value: {limit}")
    else:
        what = f"{place}: {key} is {_show(value)}, expected {describe(field.kind)}"
        yield UserError(what, fix=_hint(field.kind, value) or (_default_hint(field) if value is None else ""))


def _other_key(field: _Field) -> str:
    """Fix for a key that does not exist."""
    name, colon, value = str(field.path[-1]).partition(":")
    if colon and name in types_of(field.section):
        return f"write {name}: {value}, with a space after the colon"
    guess = nearest(field.key)
    if guess == field.key:
        return "in a file, write one line for each part: the section, a colon, and its keys indented below it"
    section = ".".join(map(str, field.path[:-1])) or "a recipe"
    return f"did you mean {guess}?" if guess else f"keys of {section}: {', '.join(types_of(field.section))}"


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    try:
        return _shorten(reprlib.repr(value))
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return "a number of thousands of digits"


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _default_hint(field: _Field) -> str:
    """Fix for a key without a value."""
    default = getattr(fields_of(field.section).get(str(field.path[-1])), "default", None)
    if not field.is_exact or not isinstance(default, str | int | float):
        return "write a value after it"
    shown = _show(default) if isinstance(default, bool) else default
    return f"write a value after it, such as the default, {field.key}={shown}"


def _hint(kind: Any, value: Any) -> str:
    inner, _ = without_none(kind)
    if get_origin(inner) is Literal and isinstance(value, str):
        close = difflib.get_close_matches(value, [str(option) for option in get_args(inner)], n=3)
        likeness = [difflib.SequenceMatcher(None, option, value).ratio() for option in close]
        alike = [option for option, ratio in zip(close, likeness, strict=True) if ratio > likeness[0] - 0.05]
        return f"did you mean {' or '.join(alike)}?" if alike else ""
    wants_text = inner is str or (get_origin(inner) is Literal and isinstance(get_args(inner)[0], str))
    if wants_text and value is not None and not isinstance(value, (list, dict)):
        return "put the value in quotes: without them YAML reads a number, true or false"
    if inner is bool and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return f"write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}: YAML 1.2 takes {value} for text"
    if inner in (int, float) and isinstance(value, str):
        return "write digits alone, with . for decimals and e for powers of ten: 1000, 0.5, 1e-5"
    return ""
