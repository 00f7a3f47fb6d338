"""Reads a recipe as untyped settings: the YAML file, the overrides, and the location of each key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import UserError, raise_all

OVERRIDE_FIX = "write key.path=value, for example ppo.steps=50"
LONGEST_RECIPE = 2**20
"""Characters; many times the longest recipe, and quickly read if the path is that of another file."""
MOST_PARTS = 16
"""Largest number of parts of an override's key; several times that of the deepest key."""
MOST_MERGED = 10_000
"""Largest number of keys that ``<<`` may copy: nested merges can double a file at every line."""
CORE: Mapping[str, str] = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": r"<<",
}
"""Plain scalars that are not text: YAML 1.2's core schema (10.3.2) and the merge key of YAML 1.1."""
NUMBER = re.compile(CORE["float"])


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which reads YAML 1.1, with four changes.

    Scalars follow YAML 1.2: 010 is ten; 1:30, 1_000, yes and dates are text. Duplicate keys are refused, errors of
    invalid values have a position, and the number of merged keys is limited.
    """

    merged = 0

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        text = node.value
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)

    def construct_core_float(self, node: yaml.ScalarNode) -> float:
        text = node.value.lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; a key that is set twice is an error."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} is set twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Copy the keys that ``<<`` merges into a mapping; more than ``MOST_MERGED`` in a document are an error."""
        before = len(node.value)
        super().flatten_mapping(node)
        self.merged += max(len(node.value) - before, 0)
        if self.merged > MOST_MERGED:
            raise yaml.constructor.ConstructorError(None, None, "<< merges too many keys", node.start_mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a node's value; an invalid value is an error with its position."""
        # For values such as 2024-13-45 PyYAML passes on the exceptions of int(), date() and its own lookups.
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(None, None, f"impossible value: {error}", node.start_mark) from None


class Dumper(yaml.SafeDumper):
    """Writes YAML that all readers understand alike: text that YAML 1.1 or 1.2 would not read as text is quoted."""


_Loader.yaml_implicit_resolvers = {}  # instead of YAML 1.1's; the dumper has both
for _kind, _pattern in CORE.items():
    for _side in (_Loader, Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})\\Z"), None)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_core_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_core_float)


@dataclass(frozen=True)
class RecipeText:
    """Untyped settings of one run.

    ``settings`` is the file's mapping with the overrides applied; ``root`` is the parsed file, with line numbers;
    ``overridden`` are the keys set on the command line.
    """

    file: str
    root: yaml.Node
    settings: dict[Any, Any]
    overridden: tuple[str, ...]

    def place(self, key: str) -> str:
        """Location of a dotted key: ``file:line``, or the command line."""
        if any(f"{key}.".startswith(f"{given}.") for given in self.overridden):
            return "command line"
        if line := _line(self.root, key.split(".")):
            return f"{self.file}:{line}"
        made = any(given.startswith(f"{key}.") for given in self.overridden)  # a section that only an override names
        return "command line" if made else self.file


def read_source(path: str | Path, overrides: Sequence[str], subject: str = "recipe") -> RecipeText:
    """Read a recipe and apply ``key.path=value`` overrides, in order.

    Args:
        subject: what the file is, in messages; others than recipes are read by the same rules.

    Raises:
        UserError: the file cannot be read or is not a YAML mapping, or overrides are malformed; all are listed.
    """
    root, settings = _parse_file(path, subject)
    problems: list[UserError] = []
    given: list[str] = []
    for override in overrides:
        try:
            key, value = _parse_override(override)
            settings = _set(settings, key.split("."), value, override)
            given.append(key)
        except UserError as problem:
            problems.append(problem)
    raise_all(problems, "command line")
    return RecipeText(file=str(path), root=root, settings=settings, overridden=tuple(given))


def _parse_file(path: str | Path, subject: str) -> tuple[yaml.Node, dict[Any, Any]]:
    try:
        root, settings = _parse(_read_text(path, subject))
    except yaml.YAMLError as error:
        what = f"{path}{_position(error)}: not valid YAML: {_reason(error)}"
        raise UserError(what, fix=f"correct it there, or start from one of the files in {_home(subject)}") from None
    if root is None or settings is None:
        raise UserError(f"{path} is empty", fix=f"start from one of the files in {_home(subject)}")
    if not isinstance(settings, dict):
        raise UserError(
            f"{path} holds {type(settings).__name__} at the top, not a mapping",
            fix=f"write one `key: value` a line, as the files in {_home(subject)} do",
        )
    return root, settings


def _read_text(path: str | Path, subject: str) -> str:
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            text = file.read(LONGEST_RECIPE + 1)
    except FileNotFoundError:
        raise UserError(f"there is no {subject} at {path}", fix=_similar_files(Path(path), subject)) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a {subject}", fix=_files_in(Path(path), subject)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: {error.reason} at byte {error.start}", fix="save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(f"cannot read {path}: {error}", fix=f"name a {subject} that you may read") from None
    if len(text) > LONGEST_RECIPE:
        raise UserError(f"{path} is longer than {LONGEST_RECIPE:,} characters", f"no {subject} is", f"name a {subject}")
    return text


def _home(subject: str) -> str:
    """Folder with files of a subject to start from."""
    return "recipes/" if subject == "recipe" else "examples/travel/"


def _files_in(folder: Path, subject: str) -> str:
    """Fix that names the files of a folder."""
    try:
        found = sorted(file.name for file in folder.glob("*.y*ml"))
    except (OSError, ValueError):
        found = []
    shown = f"YAML files in that folder: {', '.join(found[:8])}"
    return shown if found else f"check the path; shipped {subject}s are in {_home(subject)}"


def _similar_files(path: Path, subject: str) -> str:
    """Fix that names the files with a similar name, in the same folder or among the shipped ones."""
    places = {path.parent, Path(_home(subject))}
    try:
        found = {file.stem: str(file) for place in places for file in place.glob("*.y*ml")}
    except (OSError, ValueError):
        found = {}
    close = get_close_matches(path.stem, sorted(found), n=3)
    if close:
        return f"did you mean {' or '.join(found[name] for name in close)}?"
    return f"check the path; shipped {subject}s are in {_home(subject)}"


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _position(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _reason(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or len(parts) > MOST_PARTS or not all(part.strip() == part and part for part in parts):
        raise UserError(f"command line: cannot read the override {override!r}", fix=OVERRIDE_FIX)
    try:
        return key, _parse(text)[1]
    except yaml.YAMLError as error:
        raise UserError(
            f"command line: the value of {override!r} is not valid YAML: {_reason(error)}",
            fix="put a value with special characters in double quotes inside single ones: '" + key + '="value"\'',
        ) from None


def _set(settings: dict[Any, Any], parts: list[str], value: Any, override: str) -> dict[Any, Any]:
    """Return a copy with one key set; a copy because two sections may share one mapping through a YAML anchor."""
    head, *rest = parts
    if not rest:
        return {**settings, head: value}
    inner = settings.get(head)
    if inner is not None and not isinstance(inner, dict):
        raise UserError(
            f"command line: cannot apply {override!r}", f"{head} is a single value, not a section", OVERRIDE_FIX
        )
    return {**settings, head: _set(inner or {}, rest, value, override)}


def _line(node: yaml.Node, parts: list[str]) -> int | None:
    """Line of a key in the file; None if the file does not have it."""
    if not isinstance(node, yaml.MappingNode):
        return None
    head, *rest = parts
    for key, value in node.value:
        if key.value == head:
            return _line(value, rest) if rest else key.start_mark.line + 1
    return None
