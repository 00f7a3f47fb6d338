"""Conversations as text: prompt and answer together, by the tokenizer's chat template or as an HH transcript.

What a model is trained on is what the template makes of the whole conversation, cut where generation begins. A template
is a program that its model's authors wrote: nothing is known of it but what it renders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from rlhf.data.control import ControlTokens
from rlhf.data.encode import Encoder, Text
from rlhf.data.records import Message, Messages, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
"""Names of the roles in a transcript, as in HH."""
DATE = "chat_template_date"
"""Entry of a tokenizer's settings, saved with them: the day that its chat template is told, as YYYY-MM-DD."""
ASSISTANT = "assistant"
INSIDE = "the end token stands inside the response"

_MARKS = ("x", "y")
"""Answers that tell where a template writes an answer: what is the same for both is its header."""
_TRACKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_GIVEN_BY_CALL = ("messages", "conversations", "add_generation_prompt", "continue_final_message", "chat_template")
Turn = dict[str, Any]
Variables = Mapping[str, object]


class Unusable(ValueError):
    """A row that no sequence can be made of; the message says why, and is what rows are counted by."""


@dataclass(frozen=True)
class Span:
    """A piece of the text that follows a prompt, and whether it is trained on."""

    text: str
    trained: bool = True


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A prompt, and what follows it up to its end token where the template writes one.

    ``hides``: control tokens of people's texts stand in it as private characters. ``by_template``: the template wrote
    it, the begin token included where there is to be one. ``end``: the token that ends a response which has no end yet.
    """

    prompt: str
    response: tuple[Span, ...] = ()
    hides: bool = False
    by_template: bool = False
    end: int
    remarks: frozenset[str] = frozenset()
    """What is lost or differs from what the model will see when it generates, for the report."""

    @property
    def answer(self) -> str:
        """The whole text after the prompt."""
        return "".join(span.text for span in self.response)


class ChatFormat:
    """How conversations are written for one model: its template, its tokens, and the tokens that end a response."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int] = ()) -> None:
        """Args: ends are the end tokens that the model's settings name; the tokenizer's and template's are added."""
        self.tokenizer = tokenizer
        self.control = ControlTokens(tokenizer)
        self.encoder = Encoder(tokenizer, self.control)
        self._specials = dict(tokenizer.special_tokens_map)
        self._day = template_date(tokenizer) or date.today()
        own = self._template_end()
        self.end = int(tokenizer.eos_token_id) if own is None else own
        """The token that ends an answer in a conversation: the template's own, else the tokenizer's."""
        self.ends = frozenset({int(tokenizer.eos_token_id), self.end, *ends})
        """All tokens that end a response, for data, rewards and rollout alike."""
        self._end_texts = [text for text in map(tokenizer.convert_ids_to_tokens, self.ends) if text]
        self._structural = self._find_structural()

    @property
    def has_template(self) -> bool:
        """Whether messages go through a chat template."""
        return bool(self.tokenizer.chat_template)

    def prompt(self, prompt: Messages | str, variables: Variables) -> Rendered:
        """A prompt to be answered: ``response`` is empty.

        A string is taken as it stands, with or without a chat template: who wants the template gives messages. A last
        turn of the assistant is left open.

        Raises:
            Unusable: the template refuses these turns.
        """
        if isinstance(prompt, str):
            return self._written(prompt)
        turns, variables, hides = self._hidden(prompt, variables)
        if not self.has_template:
            return self._written(transcript(_messages(turns)), hides=hides, remarks=_unseen(prompt, variables))
        opening = self._opening(turns, variables, is_open(turns))
        ignored = self._ignored(turns, variables, lambda t, v: self._opening(t, v, is_open(t)), opening)
        return self._by_template(opening, (), hides, ignored)

    def exchange(self, prompt: Messages | str, answer: Message | str, variables: Variables) -> Rendered:
        """A prompt and its answer; where the prompt ends with an assistant's turn, the answer is the rest of it.

        Raises:
            Unusable: the template refuses these turns, or an end token stands inside the answer.
        """
        if isinstance(prompt, str):
            lost = _unseen([answer], variables) if isinstance(answer, Message) else _unseen([], variables)
            return self._written(prompt, text_of(answer), remarks=lost)
        reply = self._without_end(Message(ASSISTANT, answer) if isinstance(answer, str) else answer)
        turns, variables, hides = self._hidden([*prompt, reply], variables)
        if not self.has_template:
            return self._in_transcript(turns, hides, _unseen([*prompt, reply], variables))
        return self._exchange(turns[:-1], turns[-1], variables, hides, is_open(turns[:-1]))

    def scored(self, prompt: Messages, answer: str, variables: Variables) -> Rendered:
        """A prompt and the answer that a model gave, whatever it is: it may be empty, or have an end token's text.

        Raises:
            Unusable: the template refuses the prompt.
        """
        try:
            return self.exchange(prompt, answer, variables)
        except Unusable:
            turns, variables, _ = self._hidden(prompt, variables)
            text = str(self.control.hide(answer))
            if not self.has_template:
                space = "" if is_open(prompt) else " "
                return self._written(transcript(_messages(turns)), space + text, hides=True)
            header = self._opening(turns, variables, True) if is_open(turns) else self._header(turns, variables)
            return self._by_template(header, (Span(text + self._end_text),), hides=True)

    def opened(self, prompt: Messages, variables: Variables) -> str:
        """The beginning of an answer that the generation prompt writes already, as the opening of a thought."""
        if not self.has_template or is_open(prompt):
            return ""
        try:
            turns, variables, _ = self._hidden(prompt, variables)
            opening, header = self._opening(turns, variables, False), self._header(turns, variables)
        except Unusable:
            return ""
        return opening[len(header) :] if opening.startswith(header) else ""

    def writes_as(self, other: ChatFormat) -> bool:
        """Whether another format writes the same conversations the same."""
        return self.tokenizer.chat_template == other.tokenizer.chat_template and (
            template_date(self.tokenizer) == template_date(other.tokenizer)
        )

    def every_turn(
        self, prompt: Messages, answer: Message | str, variables: Variables
    ) -> tuple[list[Rendered | Unusable], Rendered | None]:
        """The assistant's turns of a conversation, each after what stands before it; and all of them in one sequence.

        The latter is there where each turn is written in the whole conversation as it is when it comes last: not with
        templates that drop earlier reasoning, say, or that end a turn with no token.
        """
        last = Message(ASSISTANT, answer) if isinstance(answer, str) else answer
        whole = [*prompt[:-1], _continued(prompt[-1], last)] if is_open(prompt) else [*prompt, last]
        turns: list[Rendered | Unusable] = []
        for i, turn in enumerate(whole):
            if turn.role != ASSISTANT:
                continue
            try:
                turns.append(self._turn(tuple(whole[:i]), turn, variables))
            except Unusable as problem:
                turns.append(problem)
        return turns, self._join(turns)

    def _turn(self, before: Messages, turn: Message, variables: Variables) -> Rendered:
        turns, variables, hides = self._hidden([*before, self._without_end(turn)], variables)
        if not self.has_template:
            return self._in_transcript(turns, hides, _unseen([*before, turn], variables), continues=False)
        return self._exchange(turns[:-1], turns[-1], variables, hides, continues=False)

    def _join(self, turns: Sequence[Rendered | Unusable]) -> Rendered | None:
        """One sequence of all turns, or None where the last one's text does not have each of the others in it."""
        whole = [turn for turn in turns if isinstance(turn, Rendered)]
        if len(whole) < len(turns) or len(whole) < 2 or not all(self._has_end(turn) for turn in whole):
            return None
        text, spans, position = whole[-1].prompt + whole[-1].answer, [], len(whole[0].prompt)
        for turn in whole:
            if not text.startswith(turn.prompt + turn.answer) or len(turn.prompt) < position:
                return None
            spans += [Span(text[position : len(turn.prompt)], trained=False), *turn.response]
            position = len(turn.prompt) + len(turn.answer)
        remarks = frozenset().union(*(turn.remarks for turn in whole))
        hides = any(turn.hides for turn in whole)
        return replace(whole[0], response=tuple(span for span in spans if span.text), remarks=remarks, hides=hides)

    def _has_end(self, turn: Rendered) -> bool:
        return turn.answer.endswith(tuple(self._end_texts))

    def _written(
        self, prompt: str, answer: str | None = None, hides: bool = False, remarks: frozenset[str] = frozenset()
    ) -> Rendered:
        """Text that no template wrote."""
        response = () if answer is None else (Span(answer),)
        end = int(self.tokenizer.eos_token_id)
        return Rendered(prompt=prompt, response=response, hides=hides, end=end, remarks=remarks)

    def _in_transcript(
        self, turns: Sequence[Turn], hides: bool, lost: frozenset[str], continues: bool | None = None
    ) -> Rendered:
        *before, reply = _messages(turns)
        if not reply.content.strip():
            raise Unusable("the answer has no text, and without a chat template nothing else of it is written")
        if is_open(before) if continues is None else continues:
            return self._written(transcript(tuple(before)), reply.content, hides, lost)
        return self._written(_closed(before) + f"\n\n{NAMES[ASSISTANT]}:", f" {reply.content}", hides, lost)

    def _by_template(
        self, prompt: str, response: tuple[Span, ...], hides: bool, remarks: frozenset[str] = frozenset()
    ) -> Rendered:
        return Rendered(prompt=prompt, response=response, hides=hides, by_template=True, end=self.end, remarks=remarks)

    def _exchange(
        self, before: list[Turn], reply: Turn, variables: Variables, hides: bool, continues: bool
    ) -> Rendered:
        turns = [*before[:-1], _continued_turn(before[-1], reply)] if continues else [*before, reply]
        whole, tracked = self._whole(turns, variables)
        opening = self._opening(before, variables, continues)
        remarks = self._ignored(turns, variables, self._render, whole)
        if continues and not whole.startswith(opening):  # the template changes the turn once it is whole
            rest = str(reply.get("content") or "")
            return self._by_template(opening, (Span(rest + self._end_text),), hides, remarks)
        if whole.startswith(opening):
            prompt, response = opening, self._cut(whole[len(opening) :], reply)
        else:
            prompt, response, more = self._diverging(before, reply, variables, whole, opening)
            remarks |= more
        if not continues and _is_lost(reply, response):
            opened = self._opened_by_answer(before, reply, variables, opening)
            prompt, response = opened or (prompt, response)
            remarks |= frozenset() if opened else {"part of the answer: the chat template leaves it out"}
        if not response.strip() or (response in self._end_texts and not str(reply.get("content") or "").strip()):
            raise Unusable("the chat template writes nothing of the answer")
        return self._by_template(prompt, self._tracked_spans(prompt, response, tracked), hides, remarks)

    def _diverging(
        self, before: list[Turn], reply: Turn, variables: Variables, whole: str, opening: str
    ) -> tuple[str, str, frozenset[str]]:
        """Prompt and response where the generation prompt is no beginning of the whole: it opens a thought, say.

        An answer that brings the thought itself follows the generation prompt. Any other is cut where the template
        begins to write an answer, outside of the thought that it does not have.
        """
        opened = self._opened_by_answer(before, reply, variables, opening)
        if opened is not None:
            return *opened, frozenset()
        header = self._header(before, variables)
        if not whole.startswith(header):
            raise Unusable("the chat template does not show where the answer begins")
        extra = opening[len(os.path.commonprefix([opening, header])) :]
        remark = (
            f"trained without {extra!r} of the generation prompt: the chat template leaves it out before the answer"
        )
        return header, self._cut(whole[len(header) :], reply), frozenset({remark})

    def _opened_by_answer(
        self, before: list[Turn], reply: Turn, variables: Variables, opening: str
    ) -> tuple[str, str] | None:
        """The generation prompt and the rest of an answer that begins with what the generation prompt opens."""
        header, content = self._header(before, variables), str(reply.get("content") or "")
        opened = opening[len(header) :] if opening.startswith(header) else ""
        if not opened.strip() or not content.lstrip().startswith(opened.strip()):
            return None
        after = content.lstrip().removeprefix(opened)
        rest = after if after != content.lstrip() else content.lstrip().removeprefix(opened.strip()).lstrip()
        return opening, rest + self._end_text

    def _header(self, before: list[Turn], variables: Variables) -> str:
        """What the template writes before the text of an answer."""
        probes = [self._render([*before, {"role": ASSISTANT, "content": mark}], variables) for mark in _MARKS]
        return os.path.commonprefix(probes)

    def _cut(self, tail: str, reply: Turn) -> str:
        """What follows a prompt, up to its first end token; the template's white space after an answer is left out.

        Raises:
            Unusable: more than white space and special tokens follow an end token: the model would not write that.
        """
        parts = self.control.split(tail)
        for i in range(1, len(parts), 2):
            if parts[i] in self._end_texts:
                if any(part.strip() for part in parts[i + 1 :: 2]):
                    raise Unusable(INSIDE)
                return "".join(parts[: i + 1])
        content = str(reply.get("content") or "")
        added = (len(tail) - len(tail.rstrip())) - (len(content) - len(content.rstrip()))
        return tail[: len(tail) - added] if added > 0 else tail

    def _tracked_spans(self, prompt: str, response: str, tracked: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
        """The response, divided where the template's ``{% generation %}`` blocks say what the model writes.

        The end token that follows such a block is the model's too: else it would never learn to stop.
        """
        start, size = len(prompt), len(response)
        blocks = [(max(a - start, 0), min(b - start, size)) for a, b in tracked if b > start and a < start + size]
        if not blocks:
            return (Span(response),)
        if response[blocks[-1][1] :] in self._end_texts:
            blocks[-1] = (blocks[-1][0], size)
        spans, position = [], 0
        for a, b in blocks:
            spans += [Span(response[position:a], trained=False), Span(response[a:b])]
            position = b
        return tuple(span for span in spans if span.text)

    def _opening(self, turns: list[Turn], variables: Variables, continues: bool) -> str:
        """The text that generation continues: the turns and what opens an answer, or the last turn left open."""
        if not turns:
            return self._header(turns, variables)
        if not continues:
            return self._render(turns, variables, add_generation_prompt=True)
        try:
            return self._render(turns, variables, continue_final_message=True)
        except Unusable as error:
            if "continue_final_message" not in str(error):
                raise
            raise Unusable("the chat template does not show the turn that is to be continued") from error

    def _render(self, turns: list[Turn], variables: Variables, **options: bool) -> str:
        text, _ = self._rendering(turns, variables, **options)
        return text

    def _whole(self, turns: list[Turn], variables: Variables) -> tuple[str, list[tuple[int, int]]]:
        return self._rendering(turns, variables, return_assistant_tokens_mask=self._is_tracked(variables))

    def _rendering(self, turns: list[Turn], variables: Variables, **options: bool) -> tuple[str, list[tuple[int, int]]]:
        """The template's text and the (begin, end) of its generation blocks.

        Raises:
            Unusable: whatever the template raises: it may divide by zero besides refusing the turns.
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
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Unusable(f"the chat template refuses the turns: {reason[:160]}") from error
        return str(texts[0]), tracked[0] if tracked else []

    def _chosen_template(self, variables: Variables) -> str:
        """The template for a row: a tokenizer may have one of its own for tools."""
        tools = cast("list[dict[str, Any]] | None", variables.get("tools"))
        return str(self.tokenizer.get_chat_template(None, tools))

    def _is_tracked(self, variables: Variables) -> bool:
        return _TRACKED.search(self._chosen_template(variables)) is not None

    def _ignored(
        self, turns: list[Turn], variables: Variables, render: Callable[[list[Turn], Variables], str], whole: str
    ) -> frozenset[str]:
        """A remark for each field and variable that the template makes nothing of."""
        fields = {name for turn in turns for name, value in turn.items() if value} - {"role", "content"}
        lost = set()
        for name in fields:
            without = [{key: value for key, value in turn.items() if key != name} for turn in turns]
            if not self._names(name, variables) or _same(partial(render, without, variables), whole):
                lost.add(name)
        for name, value in variables.items():
            rest = {key: each for key, each in variables.items() if key != name}
            shows = name in ("tools", "documents")  # another may be given at its default, and change nothing
            if value and (not self._names(name, variables) or (shows and _same(partial(render, turns, rest), whole))):
                lost.add(name)
        return frozenset(f"{name}: the chat template ignores it" for name in lost)

    def _names(self, name: str, variables: Variables) -> bool:
        return name in self._chosen_template(variables) and name not in _GIVEN_BY_CALL

    def _hidden(self, turns: Sequence[Message], variables: Variables) -> tuple[list[Turn], Variables, bool]:
        """Turns as templates take them and variables, control tokens in their texts hidden; and whether any were.

        An assistant's turn may bring special tokens that the model writes, as a thought's, but none of those that
        make a conversation.
        """
        given = [turn.as_dict() for turn in turns]
        if not self.control.is_in([given, variables]):
            return given, variables, False
        if self.control.is_ambiguous([given, variables]):
            raise Unusable("a text has control tokens and characters of the private plane 16")
        writes = set(self.control.texts) - self._structural
        hidden = [self.control.hide(turn, writes if turn["role"] == ASSISTANT else ()) for turn in given]
        return cast(list[Turn], hidden), cast(Variables, self.control.hide(variables)), True

    def _without_end(self, answer: Message) -> Message:
        """The answer without the end token that its text may bring: the template writes it.

        Raises:
            Unusable: another end token stands in it.
        """
        content = answer.content
        while content.rstrip().endswith(tuple(self._end_texts)):
            content = next(content.rstrip()[: -len(e)] for e in self._end_texts if content.rstrip().endswith(e))
        if any(end in content for end in self._end_texts):
            raise Unusable(INSIDE)
        return replace(answer, content=content)

    def _find_structural(self) -> set[str]:
        """Control tokens that make a conversation: those of a rendered user's turn, the begin and the end tokens."""
        known = {*self._end_texts, *filter(None, [self.tokenizer.bos_token, self.tokenizer.eos_token])}
        if not self.has_template:
            return known
        try:
            turn = self._render([{"role": "user", "content": "x"}], {})
        except Unusable:
            return set(self.control.texts)
        return known | set(self.control.split(turn)[1::2])

    def _template_end(self) -> int | None:
        """The special token with which the template ends an answer, or None."""
        if not self.has_template:
            return None
        answer = {"role": ASSISTANT, "content": _MARKS[0]}
        try:
            text = self._render([{"role": "user", "content": _MARKS[0]}, answer], {})
        except Unusable:
            return None
        blank, *rest = self.control.split(text.rpartition(_MARKS[0])[2])
        if blank.strip() or not rest:
            return None
        return int(self.tokenizer.convert_tokens_to_ids(rest[0]))

    @cached_property
    def _end_text(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.end))

    def text(self, rendered: Rendered) -> tuple[Text, list[Text]]:
        """Prompt and spans of the response, as the encoder takes them."""
        return Text(rendered.prompt, rendered.hides), [Text(span.text, rendered.hides) for span in rendered.response]


def transcript(prompt: Messages | str) -> str:
    r"""Plain text of a prompt, the same for every tokenizer: ``\n\nHuman: ...\n\nAssistant:`` for messages.

    It names a prompt where the text for a model would not do: a split by it holds for all models. A last turn of the
    assistant is left open.
    """
    if isinstance(prompt, str):
        return prompt
    return _closed(prompt) + ("" if is_open(prompt) else f"\n\n{NAMES[ASSISTANT]}:")


def template_date(tokenizer: PreTrainedTokenizerBase) -> date | None:
    """The day that the tokenizer's chat template is told, where it was kept."""
    kept = tokenizer.init_kwargs.get(DATE)
    return date.fromisoformat(kept) if isinstance(kept, str) else None


def _closed(turns: Sequence[Message]) -> str:
    return "".join(f"\n\n{NAMES.get(turn.role, turn.role.capitalize())}: {turn.content}" for turn in turns)


def is_open(turns: Sequence[Message] | Sequence[Turn]) -> bool:
    """Whether the last turn is the assistant's: it is to be continued."""
    if not turns:
        return False
    last = turns[-1]
    return (last.role if isinstance(last, Message) else last["role"]) == ASSISTANT


def _continued(turn: Message, rest: Message) -> Message:
    return Message(turn.role, turn.content + rest.content, {**turn.fields, **rest.fields})


def _continued_turn(turn: Turn, rest: Turn) -> Turn:
    return {**turn, **rest, "content": str(turn.get("content") or "") + str(rest.get("content") or "")}


def _messages(turns: Sequence[Turn]) -> Messages:
    return tuple(Message(str(turn["role"]), str(turn.get("content") or "")) for turn in turns)


def _unseen(turns: Iterable[Message], variables: Variables) -> frozenset[str]:
    """Remarks on what has no place where no template writes the conversation."""
    names = {name for turn in turns for name, value in turn.fields.items() if value}
    names |= {name for name, value in variables.items() if value}
    return frozenset(f"{name}: only a chat template writes it" for name in names)


def _same(render: Callable[[], str], whole: str) -> bool:
    try:
        return render() == whole
    except Unusable:  # the template wants the field
        return False


def _is_lost(reply: Turn, response: str) -> bool:
    """Whether some of the answer's text is missing in its rendering, white space aside."""
    content, written = ("".join(text.split()) for text in (str(reply.get("content") or ""), response))
    return content not in written
