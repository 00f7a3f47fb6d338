"""Text that HTML can hold, and the templates of pages: control characters and lone surrogates become visible signs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlhf.unicode import encodable

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_CONTROL_PICTURES = 0x2400
"""Unicode's visible signs for ASCII control characters, which HTML cannot contain, start here."""


def make_visible(text: str) -> str:
    """Replace characters that HTML or UTF-8 cannot contain; line breaks become ``\\n``."""
    plain = encodable(text).replace("\r\n", "\n")
    return _CONTROL.sub(lambda found: chr(0x2421 if found[0] == "\x7f" else _CONTROL_PICTURES + ord(found[0])), plain)


def template_environment(folder: Path) -> jinja2.Environment:
    """Templates of HTML in a folder: every string is escaped and made visible, but for ``Markup``."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def _finalize(value: Any) -> Any:
    return make_visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
