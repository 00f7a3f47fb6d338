"""The prompt: passages and a question in one text. Training, evaluation and serving render it by the same template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlhf.config.schema import RetrievalConfig
from rlhf.errors import UserError, first_line
from rlhf.retrieval.answers import ANSWER, BEGIN_QUOTE, END_QUOTE
from rlhf.retrieval.passages import Passage

BUILT_IN = f"""{{% for passage in passages -%}}
[{{{{ loop.index }}}}] {{% if passage.title %}}{{{{ passage.title }}}}: {{% endif %}}{{{{ passage.text }}}}
{{% endfor -%}}
Quote the words that answer the question between {BEGIN_QUOTE} and {END_QUOTE}, then write {ANSWER} and the answer.
Question: {{{{ question }}}}
Answer:"""
_SAMPLE = Passage(id="a", text="A text.", title="A title", document="a")
_FIX = "write a Jinja template with the variables passages (each has title and text) and question"
_ENVIRONMENT = ImmutableSandboxedEnvironment(trim_blocks=False, keep_trailing_newline=False, undefined=StrictUndefined)
"""As for chat templates, code in a template cannot reach Python; an unknown variable is an error."""


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """A Jinja template, and the form of the prompts that it renders."""

    source: str
    is_message: bool = False
    """Whether a prompt is one user message instead of plain text."""

    @classmethod
    def of(cls, config: RetrievalConfig) -> PromptTemplate:
        """The template of a recipe.

        Raises:
            UserError: it cannot be read, or does not render passages and question.
        """
        template = cls(source=_read(config.template), is_message=config.messages)
        template.check(f"retrieval.template = {config.template!r}")
        return template

    @property
    def digest(self) -> str:
        """Digest (12 hexadecimal digits) of template and form; it identifies the prompts' format."""
        form = "message" if self.is_message else "text"
        return sha256(f"{form}\n{self.source}".encode()).hexdigest()[:12]

    @cached_property
    def _compiled(self) -> Template:
        return _ENVIRONMENT.from_string(self.source)

    def text(self, question: str, passages: Sequence[Passage]) -> str:
        """The prompt as text.

        Raises:
            UserError: the template fails on these passages.
        """
        return self._render("retrieval.template", question, passages)

    def _render(self, name: str, question: str, passages: Sequence[Passage]) -> str:
        shown = [{"title": passage.title, "text": passage.text} for passage in passages]
        try:
            return self._compiled.render(passages=shown, question=question)
        except Exception as error:  # expressions of a template raise any type, such as that of 1 / 0
            raise UserError(f"{name} cannot be rendered", first_line(error), _FIX) from error

    def prompt(self, question: str, passages: Sequence[Passage]) -> str | list[dict[str, str]]:
        """The prompt as a data row has it: text, or one user message."""
        text = self.text(question, passages)
        return [{"role": "user", "content": text}] if self.is_message else text

    def check(self, name: str) -> None:
        """Render a sample.

        Raises:
            UserError: the template is malformed, or leaves out a passage's text or the question.
        """
        shown = self._render(name, "A question?", [_SAMPLE])
        missing = [part for part in (_SAMPLE.text, "A question?") if part not in shown]
        if missing:
            left = "the question" if missing[0] == "A question?" else "the passages' text"
            raise UserError(f"{name} leaves out {left}", "the model would have to answer without it", _FIX)


def require_template(found: str, template: PromptTemplate, name: str) -> None:
    """Check that a dataset or an index was made with this template.

    Args:
        found: digest in its manifest.
        name: what was made, for the message: ``the index 'folder'``.

    Raises:
        UserError: it was made with another one.
    """
    if found != template.digest:
        raise UserError(
            f"{name} was made with the prompt template {found}, and the recipe's is {template.digest}",
            "training, evaluation and serving must show a model the same prompts",
            "set retrieval.template and retrieval.messages to those that it was made with, or make it again",
        )


def _read(path: str | None) -> str:
    if path is None:
        return BUILT_IN
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"retrieval.template = {path!r} cannot be read", first_line(error), _FIX) from error
