"""Conversations as text: prompt and answer together, by the tokenizer's chat template or as an HH transcript.

What a model is trained on is what the template makes of the whole conversation, cut where generation begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

from rlhf.data.control import ControlTokens
from rlhf.data.encode import Encoder, Text
from rlhf.data.forms import form_of
from rlhf.data.template import ASSISTANT, Template, Turn, Unusable, Variables, given_names
from rlhf.records import Message, Messages, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
"""Names of the roles in a transcript, as in HH."""
OTHER_NAMES = {
    **dict.fromkeys(("observation", "function", "ipython", "environment"), "tool"),
    "developer": "system",
}
"""Roles that most templates have another name for; one that a template knows keeps its name."""
INSIDE = "the end token stands inside the response"

_MARK = "◆"
"""A text that no template has."""
_LONGEST_HEADER = 200
"""Characters of what a template writes at the beginning of a turn, at most."""


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
        self.template = Template(tokenizer)
        self.control = ControlTokens(tokenizer, ends)
        own = self._template_end()
        self.end = int(tokenizer.eos_token_id) if own is None else own
        """The token that ends an answer in a conversation: the template's own, else the tokenizer's."""
        self.ends = frozenset({int(tokenizer.eos_token_id), self.end, *ends})
        """All tokens that end a response, for data, rewards and rollout alike."""
        self.control = ControlTokens(tokenizer, self.ends)
        self.encoder = Encoder(tokenizer, self.control)
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
        turns = self._asked(turns, variables)
        opening = self.template.opening(turns, variables, is_open(turns))
        ignored = self.template.ignored(turns, variables, lambda t, v: self.template.opening(t, v, is_open(t)), opening)
        return self._by_template(opening, (), hides, ignored | self._require_written(turns, variables, opening))

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
        return self._exchange(turns, variables, hides, is_open(turns[:-1]))

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
            turns = self._asked(turns, variables)
            header = (
                self.template.opening(turns, variables, True)
                if is_open(turns)
                else self.template.header(turns, variables)
            )
            return self._by_template(header, (Span(text + self._end_text),), hides=True)

    def opened(self, prompt: Messages, variables: Variables) -> str:
        """The beginning of an answer that the generation prompt writes already, as the opening of a thought."""
        if not self.has_template or is_open(prompt):
            return ""
        try:
            turns, variables, _ = self._hidden(prompt, variables)
            turns = self._asked(turns, variables)
            opening, header = self.template.opening(turns, variables, False), self.template.header(turns, variables)
        except Unusable:
            return ""
        return opening[len(header) :] if opening.startswith(header) else ""

    def writes_as(self, other: ChatFormat) -> bool:
        """Whether another format writes the same conversations the same."""
        return self.template.is_as(other.template)

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
            if turn.role != ASSISTANT or not turn.trained:
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
        return self._exchange(turns, variables, hides, continues=False)

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

    def _asked(self, turns: list[Turn], variables: Variables) -> list[Turn]:
        """The turns of a prompt in the form that the template takes."""
        return form_of(turns, lambda form: self.template.opening(form, variables, is_open(form)))

    def _exchange(self, given: list[Turn], variables: Variables, hides: bool, continues: bool) -> Rendered:
        *before, reply = form_of(given, lambda form: self.template.render(_whole(form, continues), variables))
        turns = _whole([*before, reply], continues)
        whole, tracked = self.template.whole(turns, variables)
        opening = self.template.opening(before, variables, continues)
        remarks = self.template.ignored(turns, variables, self.template.render, whole)
        if continues and not whole.startswith(opening):  # the template changes the turn once it is whole
            rest = str(reply.get("content") or "")
            return self._by_template(opening, (Span(rest + self._end_text),), hides, remarks)
        if whole.startswith(opening):
            prompt, response = opening, self._cut(whole[len(opening) :], reply)
        else:
            prompt, response, more = self._diverging(before, reply, variables, whole, opening)
            remarks |= more
        if _is_lost(reply, response):
            opened = None if continues else self._opened_by_answer(before, reply, variables, opening)
            if opened is None:
                raise Unusable("the chat template leaves out part of the answer")
            prompt, response = opened
        if not str(reply.get("content") or "").strip() and self.template.is_unwritten(turns, variables, whole):
            raise Unusable("the chat template writes nothing of the answer")
        remarks |= self._require_written(before, variables, prompt)
        return self._by_template(prompt, self._tracked_spans(prompt, response, tracked), hides, remarks)

    def _require_written(self, turns: list[Turn], variables: Variables, prompt: str) -> frozenset[str]:
        """A remark where the prompt lacks what the assistant said beside a call: the call itself is written.

        Raises:
            Unusable: it lacks a turn: the model would learn to answer what it does not see.
        """
        if not turns:
            return frozenset()
        lost = self.template.lost(turns, lambda form: self.template.opening(form, variables, is_open(form)), prompt)
        for turn in lost:
            if turn["role"] != ASSISTANT or not turn.get("tool_calls"):
                raise Unusable(f"the chat template leaves out the turn of role {turn['role']}")
        return frozenset({"content beside tool_calls: the chat template ignores it"} if lost else ())

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
        header, asked = (
            self.template.header(before, variables),
            self.template.render(before, variables) if before else "",
        )
        if not whole.startswith(asked):
            return self._moved(asked, opening, os.path.commonprefix([header, whole]), whole, reply)
        prompt = header if whole.startswith(header) else asked
        extra = opening[len(os.path.commonprefix([opening, prompt])) :]
        remark = f"trained without {extra!r} of the generation prompt: before the answer the template leaves it out"
        return prompt, self._cut(whole[len(prompt) :], reply), frozenset({remark})

    def _moved(self, asked: str, opening: str, header: str, whole: str, reply: Turn) -> tuple[str, str, frozenset[str]]:
        """Prompt and response where the turns before an answer are written otherwise once there is one.

        Mistral's system prompt stands in the last turn if that is the user's, and nowhere else. What is ``asked`` is
        known from the generation prompt; in the whole, the answer's turn begins where it resembles the end of that.
        """
        ends = range(max(0, len(header) - _LONGEST_HEADER), len(header) + 1)
        begin = max(ends, key=lambda end: _common_end(asked, header[:end]))
        generation = opening.removeprefix(asked)
        if not _common_end(asked, header[:begin]) or not whole[begin:].startswith(generation):
            raise Unusable("the chat template does not show where the answer begins")
        remark = "the chat template writes a prompt otherwise once it is answered: trained as it is before the answer"
        return opening, self._cut(whole[begin + len(generation) :], reply), frozenset({remark})

    def _opened_by_answer(
        self, before: list[Turn], reply: Turn, variables: Variables, opening: str
    ) -> tuple[str, str] | None:
        """The generation prompt and the rest of an answer that begins with what the generation prompt opens."""
        header, content = self.template.header(before, variables), str(reply.get("content") or "")
        opened = opening[len(header) :] if opening.startswith(header) else ""
        if not opened.strip() or not content.lstrip().startswith(opened.strip()):
            return None
        after = content.lstrip().removeprefix(opened)
        rest = after if after != content.lstrip() else content.lstrip().removeprefix(opened.strip()).lstrip()
        return opening, rest + self._end_text

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

    def _hidden(self, turns: Sequence[Message], variables: Variables) -> tuple[list[Turn], Variables, bool]:
        """Turns as templates take them and variables, control tokens in their texts hidden; and whether any were.

        An assistant's turn may bring special tokens that the model writes, as a thought's, but none of those that
        make a conversation.
        """
        given = [{**turn.as_dict(), "role": self._role(turn.role, variables)} for turn in turns]
        if not self.control.is_in([given, variables]):
            return given, variables, False
        if self.control.is_ambiguous([given, variables]):
            raise Unusable("a text has control tokens and characters of the private plane 16")
        others = [turn for turn in given if turn["role"] != ASSISTANT]
        if name := self.control.unwritable_in([others, variables]):
            raise Unusable(f"a text has {name}, which the tokenizer cannot write as text")
        writes = set(self.control.texts) - self._structural
        hidden = [self.control.hide(turn, writes if turn["role"] == ASSISTANT else ()) for turn in given]
        return cast(list[Turn], hidden), cast(Variables, self.control.hide(variables)), True

    def _role(self, role: str, variables: Variables) -> str:
        """The role under the name that the template has for it."""
        if role not in OTHER_NAMES or (self.has_template and self.template.knows_role(role, variables)):
            return role
        return OTHER_NAMES[role]

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
            turn = self.template.render([{"role": "user", "content": "x"}], {})
        except Unusable:
            return set(self.control.texts)
        return known | set(self.control.split(turn)[1::2])

    def _template_end(self) -> int | None:
        """The special token with which the template ends an answer, or None."""
        if not self.has_template:
            return None
        answer = {"role": ASSISTANT, "content": _MARK}
        try:
            text = self.template.render([{"role": "user", "content": _MARK}, answer], {})
        except Unusable:
            return None
        blank, *rest = self.control.split(text.rpartition(_MARK)[2])
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


def _closed(turns: Sequence[Message]) -> str:
    return "".join(f"\n\n{NAMES.get(turn.role, turn.role.capitalize())}: {turn.content}" for turn in turns)


def is_open(turns: Sequence[Message] | Sequence[Turn]) -> bool:
    """Whether the last turn is the assistant's: it is to be continued."""
    if not turns:
        return False
    last = turns[-1]
    return (last.role if isinstance(last, Message) else last["role"]) == ASSISTANT


def _continued(turn: Message, rest: Message) -> Message:
    return replace(rest, role=turn.role, content=turn.content + rest.content, fields={**turn.fields, **rest.fields})


def _continued_turn(turn: Turn, rest: Turn) -> Turn:
    return {**turn, **rest, "content": str(turn.get("content") or "") + str(rest.get("content") or "")}


def _whole(turns: list[Turn], continues: bool) -> list[Turn]:
    """A prompt's turns and the answer as one conversation, in which a continued turn is one."""
    return [*turns[:-2], _continued_turn(turns[-2], turns[-1])] if continues else turns


def _messages(turns: Sequence[Turn]) -> Messages:
    return tuple(Message(str(turn["role"]), str(turn.get("content") or "")) for turn in turns)


def _unseen(turns: Iterable[Message], variables: Variables) -> frozenset[str]:
    """Remarks on what has no place where no template writes the conversation."""
    names = {name for given in (variables, *(turn.fields for turn in turns)) for name in given_names(given)}
    return frozenset(f"{name}: only a chat template writes it" for name in names)


def _common_end(one: str, other: str) -> int:
    """Characters that both texts end with."""
    return len(os.path.commonprefix([one[::-1], other[::-1]]))


def _is_lost(reply: Turn, response: str) -> bool:
    """Whether some of the answer's text is missing in its rendering, white space aside."""
    content, written = ("".join(text.split()) for text in (str(reply.get("content") or ""), response))
    return content not in written
