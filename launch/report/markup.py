"""Builds HTML. All content of a run must pass through ``text`` or ``script_json``, which escape it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_CONTROL_PICTURES = 0x2400
"""Unicode's visible signs for ASCII control characters, which HTML cannot contain, start here."""


class Markup(str):
    """HTML that is written unescaped; every other string is text."""


Cell = Markup | str | float | int | None


def text(value: object) -> Markup:
    """Escape ``value`` for the inside of an element or of a quoted attribute."""
    # backslashreplace: JSON can contain lone surrogates, which UTF-8 cannot encode
    plain = str(value).encode(errors="backslashreplace").decode().replace("\r\n", "\n")
    return Markup(html.escape(_CONTROL.sub(_picture, plain)))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return "\u2421" if code == 0x7F else chr(_CONTROL_PICTURES + code)


def element(tag: str, content: Cell, **attributes: object) -> Markup:
    """Render ``<tag attribute="...">content</tag>``; ``class_`` stands for ``class``, ``data_x`` for ``data-x``."""
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{text(value)}"' for name, value in attributes.items())
    return Markup(f"<{tag}{given}>{content if isinstance(content, Markup) else text(shown(content))}</{tag}>")


def shown(value: Cell) -> str:
    """Format a value for the page: four digits of a number, a dash for a missing value."""
    if value is None:
        return "\u2013"
    return f"{value:,.0f}" if _is_count(value) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_count(value: object) -> bool:
    whole = isinstance(value, int) or isinstance(value, float) and value.is_integer()
    return whole and not isinstance(value, bool) and abs(value) < 1e15  # type: ignore[arg-type]


def joined(parts: Sequence[str]) -> Markup:
    """Join markup with newlines."""
    return Markup("\n".join(parts))


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, label: str) -> Markup:
    """Render a table that the page's script can sort by any column. ``label`` describes its content."""
    heads = [element("th", element("button", name, type="button"), scope="col") for name in columns]
    body = [Markup(f"<tr>{''.join(map(_data, row))}</tr>") for row in rows]
    inner = Markup(f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{joined(body)}\n</tbody>")
    # a wide table scrolls in its own box, also by keyboard; the page does not
    return element(
        "div", element("table", inner, class_="sortable"), class_="box", tabindex=0, role="region", aria_label=label
    )


def _data(cell: Cell) -> Markup:
    if isinstance(cell, (int, float)) and not isinstance(cell, bool):
        return element("td", cell, class_="number", data_value=repr(cell))
    return element("td", cell if isinstance(cell, Markup) else element("div", cell, class_="text", dir="auto"))


def folded(title: str, content: Markup) -> Markup:
    """Render content that is hidden until the reader opens it."""
    return Markup(f"<details>{element('summary', title)}{content}</details>")


def script_json(value: Any) -> Markup:
    """Encode JSON for a ``<script>`` element, without ``<``, which could end the element or open a comment."""
    plain = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def source_hash(source: str) -> str:
    """The hash by which a Content-Security-Policy allows an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
