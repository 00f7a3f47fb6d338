"""Writes ``docs/configuration.md`` from the schema: ``python -m rlhf.config.reference``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from rlhf.config.keys import describe, fields_of, join, limit_of, named_section_of, section_of, sections, types_of
from rlhf.config.schema import ALGORITHM_DEFAULTS, AlgorithmConfig, Recipe

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Generated from rlhf/config/schema.py by `python -m rlhf.config.reference`; change the fields there. -->

A recipe is one YAML file. Only `name`, the model and the data have no default; `recipes/` holds files to start from.
On the command line `key.path=value` changes any key for one run, for example

    rlhf ppo recipes/quickstart.yaml ppo.steps=50 placement.policy.ranks=2

A key that does not exist, a value of the wrong type and a combination that cannot work are refused before anything
starts. The resolved recipe, defaults included, is stored as `config.yaml` in the run's folder.
"""


@dataclass(frozen=True)
class PageSection:
    """One section of the page: a section's class, and its dotted prefixes in a recipe."""

    section: type
    prefixes: tuple[str, ...]
    defaults: tuple[Any, ...]
    """The default instance under each prefix; None if the recipe has none."""
    purposes: tuple[str, ...]
    """Description of the section under each prefix, from the docstring of its field; may be empty."""


def render() -> str:
    """Render the page in Markdown."""
    page = "\n".join([INTRODUCTION, *(_render_block(block) for block in _blocks())])
    return page.replace("\n\n\n", "\n\n")


def _blocks() -> list[PageSection]:
    """Sections in the schema's order; one with several prefixes, such as the optimizer, is included once."""
    prefixes: dict[type, list[str]] = {}
    purposes: dict[str, str] = {}
    for prefix, section in sections():
        prefixes.setdefault(section, []).append(prefix)
        purposes |= {join(prefix, name): field.description or "" for name, field in fields_of(section).items()}
    return [
        PageSection(
            section=section,
            prefixes=tuple(own),
            defaults=tuple(_default_at(prefix) for prefix in own),
            purposes=tuple(purposes.get(prefix, "") for prefix in own),
        )
        for section, own in prefixes.items()
    ]


def _default_at(prefix: str) -> Any:
    instance: Any = Recipe(name="")
    for part in prefix.split(".") if prefix else ():
        instance = getattr(instance, part, None)  # None inside an optional or a user-named section
    return instance


def _render_block(block: PageSection) -> str:
    lines = [f"## {_heading(block)}", "", _one_line(inspect.getdoc(block.section) or ""), ""]
    lines += [
        f"- `{prefix}`: {_one_line(text)}" for prefix, text in zip(block.prefixes, block.purposes, strict=True) if text
    ]
    lines += ["", "| key | what | default | limits | meaning |", "|---|---|---|---|---|"]
    for name, field in fields_of(block.section).items():
        kind = types_of(block.section)[name]
        if section_of(kind) or named_section_of(kind):
            continue
        cells = [f"`{_key(block, name)}`", describe(kind), _default(block, name, field)]
        cells += [limit_of(block.section, name), _one_line(field.description or "")]
        lines.append(_row(cells))
    if block.section is AlgorithmConfig:
        lines += ["", *_algorithm_defaults()]
    return "\n".join(lines) + "\n"


def _algorithm_defaults() -> list[str]:
    """A table of the keys whose defaults depend on ``algorithm.name``."""
    keys = [key for key in fields_of(AlgorithmConfig) if any(key in each for each in ALGORITHM_DEFAULTS.values())]
    lines = ["Defaults of each algorithm; a dash is null: no limit, or for `clip_range_high` that of `clip_range`.", ""]
    lines += [_row(["`algorithm.name`", *(f"`{key}`" for key in keys)]), "|---" * (1 + len(keys)) + "|"]
    for name in ALGORITHM_DEFAULTS:
        values = [getattr(AlgorithmConfig(name=name), key) for key in keys]
        lines.append(_row([f"`{name}`", *("–" if value is None else f"`{json.dumps(value)}`" for value in values)]))
    return lines


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _heading(block: PageSection) -> str:
    return ", ".join(f"`{prefix}`" for prefix in block.prefixes) if block.prefixes != ("",) else "Top level"


def _key(block: PageSection, name: str) -> str:
    """The dotted key; only its end if the section has several prefixes."""
    return join(block.prefixes[0], name) if len(block.prefixes) == 1 else f"….{name}"


def _default(block: PageSection, name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    own = field.get_default(call_default_factory=True, validated_data={})
    shown = [f"`{json.dumps(getattr(instance, name, own))}`" for instance in block.defaults]
    if len(set(shown)) == 1:
        return shown[0]
    return ", ".join(f"{value} in `{prefix}`" for value, prefix in zip(shown, block.prefixes, strict=True))


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
