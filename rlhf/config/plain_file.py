"""Reads YAML files other than recipes, such as a comparison or a gate, into a section, and explains what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rlhf.config.fields import HERE, RuleError
from rlhf.errors import UserError, raise_all

T = TypeVar("T")


def validate_settings(kind: type[T], settings: Mapping[Any, Any], *, file: str, subject: str, page: str) -> T:
    """Make a section of settings.

    Args:
        file: the file's name, for messages.
        subject: what the file is: "comparison".
        page: page of the documentation that lists the keys.

    Raises:
        UserError: lists all that is wrong.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(settings))
    except ValidationError as refusal:
        errors = refusal.errors(include_url=False)
        raise_all([each for error in errors for each in _translate(error, subject, page)], file)
        raise AssertionError("a refusal has an error") from refusal


def _translate(error: Any, subject: str, page: str) -> Iterator[UserError]:
    """One of pydantic's errors with its key; several if the rules between keys find several."""
    key = ".".join(map(str, error["loc"])) or f"the {subject}"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        yield UserError(f"{key} is no key of a {subject}", fix=f"{page} lists the keys")
    elif isinstance(rule := error.get("ctx", {}).get("error"), RuleError):
        yield from (UserError(*(part.replace(HERE, key) for part in problem.args)) for problem in rule.problems)
    else:
        yield UserError(f"{key}: {error['msg']}", fix=f"{page} lists the keys and their values")
