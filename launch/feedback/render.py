"""Renders the labelling page's templates. Every string is escaped, except what Markdown was rendered to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from launch.feedback.texts import NAMES, Language, texts
from launch.visible import template_environment

FOLDER = Path(__file__).parent


def render(template: str, language: Language, **values: Any) -> Markup:
    """Fill a template; ``t`` holds the texts of the language."""
    shown = {"language": language, "languages": NAMES, "t": texts(language), "root": "", **values}
    return Markup(_ENVIRONMENT.get_template(f"{template}.jinja").render(shown))


def format_cell(value: object) -> str:
    """A table's cell: three digits of a number, a dash for a missing value."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_ENVIRONMENT = template_environment(FOLDER / "templates")
_ENVIRONMENT.filters |= {"cell": format_cell}
