"""One tokenizer's chat template, run on conversations.

A template is a program that its model's authors wrote: nothing is known of it but what it renders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import date
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from rlhf.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "assistant"
DATE = "chat_template_date"
"""Entry of a tokenizer's settings, saved with them: the date given to its chat template, as YYYY-MM-DD."""

_MARKS = ("◆", "◇")
"""Probe answers: the common prefix of their renderings is the header of an answer."""
_TRACKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_COMPARED = r"""role\b\W{{0,4}}(?:[!=]=|in\b)\s*[\[(]?(?:\s*['"]\w+['"]\s*,)*\s*['"]{role}['"]"""
"""A comparison of a turn's role with one or several names."""
_TELLING = 20
"""Length from which a text does not occur in another by chance, in characters."""
_GIVEN_BY_CALL = ("messages", "conversations", "add_generation_prompt", "continue_final_message", "chat_template")

Turn = dict[str, Any]
Variables = Mapping[str, object]


class Unusable(ValueError):
    """A row cannot be made into a sequence; the message is the reason by which rows are counted."""


class Template:
    """A chat template that is always rendered with the same date."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._specials = dict(tokenizer.special_tokens_map)
        self._day = template_date(tokenizer) or date.today()

    def is_as(self, other: Template) -> bool:
        """Whether another template and its date are the same."""
        same = self.tokenizer.chat_template == other.tokenizer.chat_template
        return same and template_date(self.tokenizer) == template_date(other.tokenizer)

    def render(self, turns: list[Turn], variables: Variables, **options: bool) -> str:
        """Render the turns."""
        text, _ = self._run(turns, variables, **options)
        return text

    def whole(self, turns: list[Turn], variables: Variables) -> tuple[str, list[tuple[int, int]]]:
        """Render the turns; returns the text and the (begin, end) of its ``{% generation %}`` blocks."""
        return self._run(turns, variables, return_assistant_tokens_mask=self._is_tracked(variables))

    def _run(self, turns: list[Turn], variables: Variables, **options: bool) -> tuple[str, list[tuple[int, int]]]:
        """Implementation of ``whole``.

        Raises:
            Unusable: on any error of the template, which may be unrelated to the turns.
            UserError: the template is no valid Jinja.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        given = {name: value for name, value in variables.items() if name not in _GIVEN_BY_CALL}
        try:
            texts, tracked = render_jinja_template(
                conversations=[turns],
                chat_template=self._chosen_template(variables),
                **options,
                **{"strftime_now": self._day.strftime, **self._specials, **given},
            )
        except Exception as error:
            raise _failure(error) from error
        return str(texts[0]), tracked[0] if tracked else []

    def _chosen_template(self, variables: Variables) -> str:
        """The template for a row: a tokenizer may have a separate one for tools.

        Raises:
            Unusable: it has several templates, and none for this row.
        """
        tools = cast("list[dict[str, Any]] | None", variables.get("tools"))
        try:
            return str(self.tokenizer.get_chat_template(None, tools))
        except ValueError as error:
            raise Unusable(f"no chat template for the row: {str(error)[:160]}") from error

    def _is_tracked(self, variables: Variables) -> bool:
        return _TRACKED.search(self._chosen_template(variables)) is not None

    def ignored(
        self, turns: list[Turn], variables: Variables, render: Callable[[list[Turn], Variables], str], whole: str
    ) -> frozenset[str]:
        """Remarks on the fields and variables that the template ignores."""
        fields = {name for turn in turns for name in given_names(turn)} - {"role", "content"}
        lost = set()
        for name in fields:
            without = [{key: value for key, value in turn.items() if key != name} for turn in turns]
            if not self._names(name, variables) or _same(partial(render, without, variables), whole):
                lost.add(name)
        for name in given_names(variables):
            rest = {key: each for key, each in variables.items() if key != name}
            shows = name in ("tools", "documents")  # other variables may be given at their default, without effect
            if not self._names(name, variables) or (shows and _same(partial(render, turns, rest), whole)):
                lost.add(name)
        return frozenset(f"{name}: the chat template ignores it" for name in lost)

    def knows_role(self, role: str, variables: Variables) -> bool:
        """Whether the template compares a turn's role with this name."""
        compared = _COMPARED.format(role=re.escape(role))
        return re.search(compared, self._chosen_template(variables)) is not None

    def lost(self, turns: list[Turn], render: Callable[[list[Turn]], str], text: str) -> list[Turn]:
        """The turns whose content the template omits, or writes without its beginning or end.

        A long content is searched in the text. Templates may transform content, and short content may occur by chance:
        then marks are added around all contents. For assistant turns the mark at the beginning may be missing, because
        templates drop thoughts.
        """
        position = 0
        for content in map(_said, turns):
            found = text.find(content, position) if len(content) >= _TELLING else -1
            if content and found < 0:
                break
            position = max(position, found + len(content))
        else:
            return []
        try:
            marked = render([_marked(turn, i) for i, turn in enumerate(turns)])
        except Unusable:  # for example, if the template parses the content
            return []
        return [turn for i, turn in enumerate(turns) if _said(turn) and not all(m in marked for m in _marks(turn, i))]

    def _names(self, name: str, variables: Variables) -> bool:
        return name in self._chosen_template(variables) and name not in _GIVEN_BY_CALL

    def opening(self, turns: list[Turn], variables: Variables, continues: bool) -> str:
        """The text that generation continues: the turns and the opening of an answer, or the last turn left open."""
        if not turns:
            return self.header(turns, variables)
        if not continues:
            return self.render(turns, variables, add_generation_prompt=True)
        try:
            return self.render(turns, variables, continue_final_message=True)
        except Unusable as error:
            if "continue_final_message" not in str(error):
                raise
            raise Unusable("the chat template does not show the turn that is to be continued") from error

    @cached_property
    def lacks_opening(self) -> bool:
        """Whether the template ignores ``add_generation_prompt`` and writes a header before an answer."""
        turns = [{"role": "user", "content": _MARKS[0]}]
        try:
            opening, header = self.opening(turns, {}, False), self.header(turns, {})
            is_ignored = self.render(turns, {}) == opening
        except Unusable:
            return False
        return is_ignored and header.startswith(opening) and bool(header[len(opening) :].strip())

    def header(self, before: list[Turn], variables: Variables) -> str:
        """The text that the template writes before the text of an answer."""
        probes = [self.render([*before, {"role": ASSISTANT, "content": mark}], variables) for mark in _MARKS]
        return os.path.commonprefix(probes)

    def is_unwritten(self, turns: list[Turn], variables: Variables, whole: str) -> bool:
        """Whether an answer without text is rendered like an empty answer."""
        bare = {"role": ASSISTANT, "content": turns[-1].get("content")}
        return _same(partial(self.render, [*turns[:-1], bare], variables), whole)


def _failure(error: Exception) -> Exception:
    """The error to raise for an error of a template: by its own refusal of turns, its syntax, or while it runs."""
    from jinja2 import TemplateError, TemplateSyntaxError

    why = first_line(error)[:160]
    if isinstance(error, TemplateSyntaxError):
        return UserError(
            f"the chat template is not valid Jinja: line {error.lineno}: {why}",
            "no conversation can be written with it",
            "correct the template: the file in model.chat_template, or chat_template in the model's folder",
        )
    if type(error) is TemplateError:  # raised by the template's raise_exception
        return Unusable(f"the chat template refuses the turns: {why}")
    return Unusable(f"the chat template fails: {type(error).__name__}: {why}")


def template_date(tokenizer: PreTrainedTokenizerBase) -> date | None:
    """The stored date for the tokenizer's chat template, or None.

    Raises:
        UserError: it is no date.
    """
    kept = tokenizer.init_kwargs.get(DATE)
    if kept is None:
        return None
    try:
        return date.fromisoformat(kept)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{DATE} = {kept!r:.40} in tokenizer_config.json of {tokenizer.name_or_path!r} is no date",
            "the chat template writes it into every prompt",
            "write the date as YYYY-MM-DD, or delete the entry: the date of the first command is then used",
        ) from error


def given_names(values: Mapping[str, object]) -> list[str]:
    """Names of the values that are not empty."""
    return [name for name, value in values.items() if value not in (None, "", [], {})]


def _said(turn: Turn) -> str:
    """The visible content of a turn: for the assistant, the text after its thought."""
    content = str(turn.get("content") or "")
    return (content.rpartition("</think>")[2] if turn["role"] == ASSISTANT else content).strip()


def _marks(turn: Turn, i: int) -> list[str]:
    return [f"qzx{i}e"] if turn["role"] == ASSISTANT else [f"qzx{i}b", f"qzx{i}e"]


def _marked(turn: Turn, i: int) -> Turn:
    if not _said(turn):
        return turn
    *begin, end = _marks(turn, i)
    return {**turn, "content": "".join([*begin, str(turn["content"]), end])}


def _same(render: Callable[[], str], whole: str) -> bool:
    try:
        return render() == whole
    except Unusable:  # the template requires the field
        return False
