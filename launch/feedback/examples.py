"""The guidelines' HTML, with worked examples: fenced blocks named ``example`` that hold YAML.

A block has the keys ``prompt``, ``a``, ``b``, ``choice`` (a button's name, such as ``a_much`` or ``tie``) and ``why``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import yaml
from markdown_it.token import Token
from markupsafe import Markup

from launch.feedback.choices import BUTTONS
from launch.feedback.markdown import parse, render_tokens, to_html
from launch.feedback.render import render
from launch.feedback.texts import Language
from rlhf.errors import UserError, first_line, raise_all

FENCE = "example"
_KEYS = ("prompt", "a", "b", "choice", "why")


@dataclass(frozen=True, kw_only=True)
class WorkedExample:
    """Two answers, the judgement that the guidelines ask for, and why."""

    prompt: str
    a: str
    b: str
    choice: str
    why: str


@lru_cache(maxsize=16)
def guidelines_html(markdown: str, language: Language) -> Markup:
    """Render guidelines that ``check_guidelines`` has accepted; texts around the examples are in ``language``."""
    parts, rest = [], list[Token]()
    for token in parse(markdown):
        if token.type == "fence" and token.info.strip() == FENCE:
            parts += [render_tokens(rest), _example_html(read_example(token), language)]
            rest = []
        else:
            rest.append(token)
    return Markup("").join([*parts, render_tokens(rest)])


def check_guidelines(markdown: str, name: str) -> None:
    """Check every worked example of guidelines.

    Raises:
        UserError: the text is empty, or an example is not as described above; it names file and line.
    """
    if not markdown.strip():
        raise UserError(f"{name} is empty", "raters would acknowledge nothing", "write the guidelines as Markdown")
    problems = []
    for token in parse(markdown):
        if token.type == "fence" and token.info.strip() == FENCE:
            try:
                read_example(token)
            except ValueError as error:
                line = token.map[0] + 1 if token.map else 0
                problems.append(
                    UserError(f"{name}:{line}: {error}", "", f"give the example the keys {', '.join(_KEYS)}")
                )
    raise_all(problems, name)


def read_example(token: Token) -> WorkedExample:
    """The example of a fenced block.

    Raises:
        ValueError: it is not as described above.
    """
    try:
        fields = yaml.safe_load(token.content)
    except yaml.YAMLError as error:
        raise ValueError(f"the example is not YAML: {first_line(error)}") from error
    if not isinstance(fields, Mapping) or set(fields) != set(_KEYS):
        raise ValueError("the example has missing or unknown keys")
    example = WorkedExample(**{key: str(value) for key, value in fields.items()})
    if example.choice not in BUTTONS:
        raise ValueError(f"choice is {example.choice!r}, and may be {', '.join(BUTTONS)}")
    return example


def _example_html(example: WorkedExample, language: Language) -> Markup:
    shown = {name: to_html(getattr(example, name)) for name in ("prompt", "a", "b", "why")}
    return render("example", language, choice=example.choice, **shown)
