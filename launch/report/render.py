"""Renders the page's templates. Every string of a run is escaped; a template marks the few exceptions with ``safe``."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from launch.visible import template_environment


def render(template: str, **values: Any) -> Markup:
    """Fill a template of this folder."""
    return Markup(_ENVIRONMENT.get_template(f"{template}.jinja").render(values))


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


_ENVIRONMENT = template_environment(Path(__file__).parent)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
_ENVIRONMENT.filters |= {"format_value": format_value, "source_hash": source_hash}
