"""Renders the page's templates. Every string of a run is escaped; a template marks the few exceptions with ``safe``."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_CONTROL_PICTURES = 0x2400
"""Unicode's visible signs for ASCII control characters, which HTML cannot contain, start here."""


def render(template: str, **values: Any) -> Markup:
    """Fill a template of this folder."""
    return Markup(_ENVIRONMENT.get_template(f"{template}.jinja").render(values))


def _make_visible(value: Any) -> Any:
    """Replace characters that HTML cannot contain, in text that comes from a run."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    # backslashreplace: JSON can contain lone surrogates, which UTF-8 cannot encode
    plain = value.encode(errors="backslashreplace").decode().replace("\r\n", "\n")
    return _CONTROL.sub(lambda found: chr(0x2421 if found[0] == "\x7f" else _CONTROL_PICTURES + ord(found[0])), plain)


def format_value(value: Any) -> str:
    """Format a value for the page: four digits of a number, a dash for a missing value."""
    if value is None:
        return "\u2013"
    return f"{value:,.0f}" if _is_count(value) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_count(value: object) -> bool:
    whole = isinstance(value, int) or isinstance(value, float) and value.is_integer()
    return whole and not isinstance(value, bool) and abs(value) < 1e15  # type: ignore[arg-type]


def source_hash(source: str) -> str:
    """The hash by which a Content-Security-Policy allows an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=_make_visible,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
_ENVIRONMENT.filters |= {"format_value": format_value, "source_hash": source_hash}
