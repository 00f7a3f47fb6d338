"""From a YAML file and overrides to a typed recipe, and back."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import yaml

from rlhf.config.keys import describe, join, nearest, section_of, types_of, without_none
from rlhf.config.problems import MOST_SHOWN, raise_all
from rlhf.config.schema import Recipe
from rlhf.config.source import NUMBER, Dumper, Source, read_source
from rlhf.errors import UserError


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file; keys that it leaves out keep their defaults.
        overrides: ``key.path=value``, the value read as YAML; they win over the file, the later over the earlier.

    Raises:
        UserError: everything that is wrong with the file and the overrides, with line and nearest key.
    """
    source = read_source(path, overrides)
    reader = _Reader(source)
    recipe = reader.section(Recipe, source.settings, Recipe(name=""), "")
    if "name" not in source.settings:
        reader.problems.append(UserError(f"{source.file}: name is missing", fix="add `name: ...`, a name for the run"))
    raise_all(reader.problems, source.file)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults included; ``load_recipe`` reads it back to an equal one."""
    return str(yaml.dump(asdict(recipe), Dumper=Dumper, sort_keys=False, allow_unicode=True))


def recipe_digest(recipe: Recipe, sections: Sequence[str]) -> str:
    """Twelve hexadecimal digits that change when, and only when, one of the named top-level keys changes.

    Raises:
        KeyError: the recipe has no such key.
    """
    values = asdict(recipe)
    canonical = json.dumps({name: values[name] for name in sections}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class _Reader:
    """Gives untyped settings their types, and goes on after a mistake so that all of them are reported."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[UserError] = []

    def section(self, cls: type, settings: Any, default: Any, key: str) -> Any:
        """An instance of ``cls``. What the settings leave out comes from ``default``, which a parent may have tuned.

        One that no parent tuned is made anew, since one value may decide the default of another.
        """
        if settings is None:  # a section whose keys are all commented out
            settings = {}
        if not isinstance(settings, dict):
            return self.wrong(key, settings, cls)
        untuned = default is None or (key != "" and default == cls())
        default = cls() if default is None else default
        types, values, wrong = types_of(cls), {}, len(self.problems)
        for name, value in settings.items():
            inner_key = join(key, str(name))
            if name in types:
                values[name] = self.value(types[name], value, getattr(default, name), inner_key)
            else:
                self.unknown(inner_key, key, types)
        if len(self.problems) > wrong:
            return default  # a section may count on its values, and the recipe is refused anyway
        return cls(**values) if untuned else replace(default, **values)

    def value(self, kind: Any, value: Any, default: Any, key: str) -> Any:
        inner, optional = without_none(kind)
        if section := section_of(kind):
            return None if optional and value is None else self.section(section, value, default, key)
        if value is None:
            return None if optional else self.wrong(key, value, kind)
        if get_origin(inner) is tuple:
            return self.items(inner, value, key)
        if get_origin(inner) is dict:
            return self.mapping(inner, value, key)
        converted = _convert(inner, value)
        return self.wrong(key, value, kind) if converted is None else converted

    def items(self, kind: Any, value: Any, key: str) -> Any:
        arguments = get_args(kind)
        fixed = arguments[-1] is not Ellipsis
        if not isinstance(value, list) or (fixed and len(value) != len(arguments)):
            return self.wrong(key, value, kind)
        converted = tuple(_convert(arguments[0], item) for item in value)
        return self.wrong(key, value, kind) if None in converted else converted

    def mapping(self, kind: Any, value: Any, key: str) -> Any:
        named = {_as_name(name): inner for name, inner in value.items()} if isinstance(value, dict) else {}
        if not isinstance(value, dict) or len(named) < len(value) or not all(isinstance(name, str) for name in named):
            return self.wrong(key, value, kind)
        if section := section_of(get_args(kind)[1]):
            return {name: self.section(section, inner, None, join(key, name)) for name, inner in named.items()}
        return named if all(isinstance(text, str) for text in named.values()) else self.wrong(key, value, kind)

    def wrong(self, key: str, value: Any, kind: Any) -> None:
        if self.enough(key):
            return
        what = f"{self.source.place(key)}: {key} is {_show(value)}, expected {describe(kind)}"
        self.problems.append(UserError(what, fix=_hint(kind, value)))

    def enough(self, key: str) -> bool:
        """Whether one more mistake is only counted: to find the places of thousands takes minutes."""
        if is_enough := len(self.problems) >= MOST_SHOWN:
            self.problems.append(UserError(key))
        return is_enough

    def unknown(self, key: str, section: str, known: Collection[str]) -> None:
        if self.enough(key):
            return
        guess = nearest(key)
        if guess == key:
            fix = "in a file, write one line for each part: the section, a colon, and its keys indented below it"
        elif guess:
            fix = f"did you mean {guess}?"
        else:
            fix = f"keys of {section or 'a recipe'}: {', '.join(known)}"
        self.problems.append(UserError(f"{self.source.place(key)}: there is no key {_shorten(key)}", fix=fix))


def _as_name(key: Any) -> Any:
    """A key of a mapping as text: {1: chosen} and {true: chosen} mean labels in data, or names of columns."""
    if isinstance(key, bool):
        return str(key).lower()
    return str(key) if isinstance(key, int | float) else key


def _convert(kind: Any, value: Any) -> Any:
    """The value as ``kind``, or ``None`` when it is something else. A boolean is not a number."""
    if get_origin(kind) is Literal:
        if value is False and "off" in get_args(kind):  # YAML 1.1 reads a bare off so
            return "off"
        return next((option for option in get_args(kind) if type(option) is type(value) and option == value), None)
    if get_origin(kind) is UnionType:
        return next((value for option in get_args(kind) if _convert(option, value) is not None), None)
    if kind is float:
        return _number(value)
    return value if type(value) is kind else None


def _number(value: Any) -> float | None:
    """A finite float from a number, or from one in quotes."""
    if type(value) not in (int, float) and not (type(value) is str and NUMBER.fullmatch(value)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _shorten(reprlib.repr(value))


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _hint(kind: Any, value: Any) -> str:
    inner, _ = without_none(kind)
    if get_origin(inner) is Literal and isinstance(value, str):
        close = difflib.get_close_matches(value, [str(option) for option in get_args(inner)], n=1)
        return f"did you mean {close[0]}?" if close else ""
    wants_text = inner is str or (get_origin(inner) is Literal and isinstance(get_args(inner)[0], str))
    if wants_text and value is not None and not isinstance(value, (list, dict)):
        return "put the value in quotes: without them YAML reads a number, true or false"
    if inner is bool and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return f"write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}: YAML 1.2 takes {value} for text"
    if inner in (int, float) and isinstance(value, str):
        return "write digits alone, with . for decimals and e for powers of ten: 1000, 0.5, 1e-5"
    return ""
