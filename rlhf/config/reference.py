"""Writes ``docs/configuration.md`` from the schema: ``python -m rlhf.config.reference``."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from rlhf.config.keys import describe, fields_of, join, limit_of, named_section_of, section_of, sections, types_of
from rlhf.config.schema import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Generated from rlhf/config/schema.py by `python -m rlhf.config.reference`; change the fields there. -->

A recipe is one YAML file. Only `name`, the model and the data have no default; `recipes/` holds files to start from.
On the command line `key.path=value` changes any key for one run, for example

    rlhf ppo recipes/quickstart.yaml ppo.steps=50 placement.policy.ranks=2

A key that does not exist, a value of the wrong type and a combination that cannot work are refused before anything
starts. The resolved recipe, defaults included, is kept as `config.yaml` in the run's folder.
"""


@dataclass(frozen=True)
class PageSection:
    """One section of the page: a dataclass, and the dotted prefixes under which it stands in a recipe."""

    section: type
    prefixes: tuple[str, ...]
    defaults: tuple[Any, ...]
    """The default instance under each prefix; ``None`` where the recipe has none."""
    purposes: tuple[str, ...]
    """What the section is for under each prefix, from the field that holds it; may be empty."""


def render() -> str:
    """The page in Markdown."""
    page = "\n".join([INTRODUCTION, *(_render_block(block) for block in _blocks())])
    return page.replace("\n\n\n", "\n\n")


def _blocks() -> list[PageSection]:
    """Sections in the schema's order; one that stands in several places, such as the optimizer, comes once."""
    places: dict[type, list[str]] = {}
    purposes: dict[str, str] = {}
    for prefix, section in sections():
        places.setdefault(section, []).append(prefix)
        purposes |= {join(prefix, name): field.description or "" for name, field in fields_of(section).items()}
    return [
        PageSection(
            section=section,
            prefixes=tuple(prefixes),
            defaults=tuple(_default_at(prefix) for prefix in prefixes),
            purposes=tuple(purposes.get(prefix, "") for prefix in prefixes),
        )
        for section, prefixes in places.items()
    ]


def _default_at(prefix: str) -> Any:
    instance: Any = Recipe(name="")
    for part in prefix.split(".") if prefix else ():
        instance = getattr(instance, part, None)  # none inside an optional section, or one that the user names
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
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _heading(block: PageSection) -> str:
    return ", ".join(f"`{prefix}`" for prefix in block.prefixes) if block.prefixes != ("",) else "Top level"


def _key(block: PageSection, name: str) -> str:
    """The dotted key; the common end of it where the section stands in several places."""
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
