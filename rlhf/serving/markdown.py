"""Text of others inside Markdown: it can neither style a page, nor link, nor hold HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from rlhf.tracking.console import one_line

_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~])")


def escape_markdown(value: object) -> str:
    """Any value as plain text on one line of Markdown, also inside a table."""
    return _MARKS.sub(r"\\\1", html.escape(one_line(value), quote=False)).replace("://", ":\u200b//")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; names and cells are escaped."""
    lines = [[escape_markdown(name) for name in head], ["---"] * len(head)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text += ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in rows]
    return "\n".join(text) + "\n"
