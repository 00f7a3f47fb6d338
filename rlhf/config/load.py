"""Loads a typed recipe from a YAML file and overrides, and writes it back."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from rlhf.config.explain import explain, without_wrong
from rlhf.config.fields import rules_off
from rlhf.config.keys import fields_of, section_of, types_of, without_none
from rlhf.config.schema import Recipe
from rlhf.config.source import Dumper, read_source
from rlhf.errors import MOST_PROBLEMS, UserError, raise_all

Check = Callable[[Recipe], Iterable[UserError]]
"""Further checks of a recipe, for a command: rules between sections, paths, the machine."""


def load_recipe(path: str | Path, overrides: Sequence[str] = (), check: Check | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file; absent keys have their defaults.
        overrides: ``key.path=value`` with a YAML value; they take precedence over the file, in their order.
        check: asked only if the recipe is refused, about what is left of it without its wrong keys, so that its user
            need not correct a recipe twice.

    Raises:
        UserError: lists all problems of the file and the overrides, with lines and similar keys.
    """
    source, problems = read_source(path, overrides), list[UserError]()
    settings = _complete(Recipe, source.settings)
    try:
        recipe = TypeAdapter(Recipe).validate_python(settings)
    except ValidationError as refusal:
        problems = explain(refusal, settings, source)
        if check is not None and len(problems) < MOST_PROBLEMS:  # others would not be shown
            problems += _further(refusal, settings, check)
    raise_all(problems, source.file)
    return recipe


def _further(refusal: ValidationError, settings: dict[Any, Any], check: Check) -> list[UserError]:
    """Further problems of a refused recipe, except those that its wrong keys may cause."""
    usable, removed = without_wrong(refusal, settings)
    try:
        with rules_off():
            found = list(check(TypeAdapter(Recipe).validate_python(usable)))
    except ValidationError:
        return []  # what is left is no recipe
    return [problem for problem in found if not any(_names(problem, key) for key in removed)]


def _names(problem: UserError, key: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", f"{problem.what} {problem.why}") is not None


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included; ``load_recipe`` restores an equal one."""
    return str(yaml.dump(asdict(recipe), Dumper=Dumper, sort_keys=False, allow_unicode=True))


def recipe_digest(recipe: Recipe, sections: Sequence[str]) -> str:
    """Digest (12 hexadecimal digits) of the values of the given top-level keys.

    Raises:
        KeyError: the recipe has no such key.
    """
    values = asdict(recipe)
    canonical = json.dumps({name: values[name] for name in sections}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _complete(kind: Any, given: Any, factory: Any = None) -> Any:
    """Prepare settings for validation: apply defaults that a parent changes, complete empty sections, convert names to
    text.

    Args:
        kind: type of the field that the settings are for.
        given: its settings.
        factory: creates the default of the section at this place; None if it has no default.
    """
    inner, optional = without_none(kind)
    if get_origin(inner) is dict and isinstance(given, dict):
        named = {_as_text(name): _complete(get_args(inner)[1], value) for name, value in given.items()}
        return named if len(named) == len(given) else given
    section = section_of(kind)
    if given is None and not optional and section:  # a section whose keys are all commented out
        given = {}
    if not isinstance(given, dict) or section is None:
        return given
    tuned = {} if factory in (None, section) else asdict(factory())
    types, fields = types_of(section), fields_of(section)
    own = {
        name: _complete(types[name], value, fields[name].default_factory) if name in types else value
        for name, value in given.items()
    }
    return {**tuned, **own}


def _as_text(name: Any) -> Any:
    """Convert a name in a mapping to text: {1: chosen} and {true: chosen} are labels in data, or names of columns."""
    return str(name).lower() if isinstance(name, bool | int | float) else name
