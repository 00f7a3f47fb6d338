"""Loads a typed recipe from a YAML file and overrides, and writes it back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from rlhf.config.explain import explain
from rlhf.config.keys import fields_of, section_of, types_of, without_none
from rlhf.config.schema import Recipe
from rlhf.config.source import Dumper, read_source
from rlhf.errors import UserError, raise_all


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file; absent keys have their defaults.
        overrides: ``key.path=value`` with a YAML value; they take precedence over the file, in their order.

    Raises:
        UserError: lists all problems of the file and the overrides, with lines and similar keys.
    """
    source, problems = read_source(path, overrides), list[UserError]()
    settings = _complete(Recipe, source.settings)
    try:
        recipe = TypeAdapter(Recipe).validate_python(settings)
    except ValidationError as refusal:
        problems = explain(refusal, settings, source)
    raise_all(problems, source.file)
    return recipe


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
