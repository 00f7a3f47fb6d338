"""Writes the table of the gateway's keys into ``docs/serving.md``: ``python -m rlhf.serving.gateway_reference``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from rlhf.config.keys import fields_of, join, limit_of, section_of, types_of
from rlhf.serving.gateway_config import GatewayConfig

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
BEGIN, END = "<!-- keys: python -m rlhf.serving.gateway_reference -->\n", "<!-- end of keys -->\n"


def render() -> str:
    """The table in Markdown."""
    rows = "".join(
        f"| `{key}` | {default} | {limits} | {text} |\n" for key, default, limits, text in _rows(GatewayConfig)
    )
    return f"| key | default | limits | meaning |\n|---|---|---|---|\n{rows}"


def with_table(page: str) -> str:
    """A page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + render() + END + rest.partition(END)[2]


def _rows(section: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in fields_of(section).items():
        kind, key = types_of(section)[name], join(prefix, name)
        inner = section_of(kind)
        text = " ".join((field.description or "").replace("``", "`").split())
        if (
            inner is None
            or not field.is_required()
            and field.get_default(call_default_factory=True, validated_data={}) is None
        ):
            yield key, _default(field), limit_of(section, name), text
        if inner is not None:
            yield from _rows(inner, key)
        elif get_origin(kind) is tuple and is_dataclass(get_args(kind)[0]):
            yield from _rows(get_args(kind)[0], f"{key}[]")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    plain = [asdict(each) if is_dataclass(each) else each for each in value] if isinstance(value, tuple) else value  # type: ignore[arg-type]
    return f"`{json.dumps(plain)}`"


def main() -> None:
    """Write the page."""
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
