"""Conversations as text: prompt and answer rendered together, by the tokenizer's chat template or as an HH transcript.

Training text is the template's rendering of the whole conversation, cut where generation begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import regex

from rlhf.data.control import ControlTokens
from rlhf.data.encode import Encoder, Text
from rlhf.data.forms import form_of
from rlhf.data.template import ASSISTANT, Template, Turn, Unusable, Variables, given_names
from rlhf.records import Message, Messages, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
"""Speaker names of the roles in a transcript, as in HH."""
OTHER_NAMES = {
    **dict.fromkeys(("observation", "function", "ipython", "environment"), "tool"),
    "developer": "system",
}
"""Roles that most templates name differently; a role that the template knows keeps its name."""
INSIDE = "the end token stands inside the response"

_NO_OPENING = (
    "the chat template ignores add_generation_prompt: the header of an answer is trained and generated as part of it"
)
_NO_SPACE = (
    "no white space between prompt and answer, which are joined as they stand: begin the answer with a space, or end "
    "the prompt with a newline"
)
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
"""Scripts without spaces between words."""
_ENDS_A_WORD = regex.compile(rf"(?![{_UNSPACED}\u3000-\u303f\uff00-\uffef])[\p{{L}}\p{{N}}\p{{Pe}}\p{{Pf}}.,:;?!%]\Z")
_BEGINS_A_WORD = regex.compile(rf"(?![{_UNSPACED}])\p{{L}}")
_MARK = "◆"
"""A text that occurs in no template."""
_LONGEST_HEADER = 200
"""Longest text, in characters, that a template writes at the beginning of a turn."""


@dataclass(frozen=True)
class TextSpan:
    """A piece of the text after a prompt, and whether it is trained on."""

    text: str
    trained: bool = True


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A prompt and the text after it, up to its end token if the template writes one.

    ``hides``: control tokens from user texts are replaced by private characters. ``by_template``: a template rendered
    it, with the begin token if it has one. ``end``: the token to append to a response without an end token.
    """

    prompt: str
    response: tuple[TextSpan, ...] = ()
    hides: bool = False
    by_template: bool = False
    end: int
    remarks: frozenset[str] = frozenset()
    """Remarks for the report on text that is lost or differs from the text at generation."""

    @property
    def answer(self) -> str:
        """The whole text after the prompt."""
        return "".join(span.text for span in self.response)


class ChatFormat:
    """The text format of conversations for one model: its template, its tokens, and the tokens that end a response."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int] = ()) -> None:
        """Find the control tokens and end tokens of the format.

        Args:
            ends: end tokens of the model's settings; the tokenizer's and the template's are added.
        """
        self.tokenizer = tokenizer
        self.template = Template(tokenizer)
        self.control = ControlTokens(tokenizer, ends)
        own = self._template_end()
        self.end = int(tokenizer.eos_token_id) if own is None else own
        """The token that ends an answer: the template's own, else the tokenizer's."""
        self.ends = frozenset({int(tokenizer.eos_token_id), self.end, *ends})
        """All tokens that end a response, for data, rewards and rollout."""
        self.control = ControlTokens(tokenizer, self.ends)
        self.encoder = Encoder(tokenizer, self.control)
        self._end_texts = [text for text in map(tokenizer.convert_ids_to_tokens, self.ends) if text]
        self._structural = self._find_structural()

    @property
    def has_template(self) -> bool:
        """Whether messages go through a chat template."""
        return bool(self.tokenizer.chat_template)

    def prompt(self, prompt: Messages | str, variables: Variables) -> Rendered:
        """Render a prompt to be answered: ``response`` is empty.

        A string is used verbatim, with or without a chat template; only messages go through the template. A final
        assistant turn is left open.

        Raises:
            Unusable: the template refuses these turns.
        """
        if isinstance(prompt, str):
            return self._as_text(prompt)
        turns, variables, hides = self._hide_control(prompt, variables)
        if not self.has_template:
            return self._as_text(transcript(_messages(turns)), hides=hides, remarks=_template_only(prompt, variables))
        turns = self._accepted_form(turns, variables)
        opening = self.template.opening(turns, variables, is_open(turns))
        ignored = self.template.ignored(turns, variables, lambda t, v: self.template.opening(t, v, is_open(t)), opening)
        remarks = ignored | self._require_written(turns, variables, opening) | self._unopened(is_open(turns))
        return self._by_template(opening, (), hides, remarks)

    def exchange(self, prompt: Messages | str, answer: Message | str, variables: Variables) -> Rendered:
        """Render a prompt and its answer; if the prompt ends with an assistant turn, the answer continues it.

        Raises:
            Unusable: the template refuses these turns, or the answer contains an end token.
        """
        if isinstance(prompt, str):
            lost = _template_only([answer], variables) if isinstance(answer, Message) else _template_only([], variables)
            return self._as_text(prompt, text_of(answer), remarks=lost | _joined(prompt, text_of(answer)))
        reply = self._without_end(Message(ASSISTANT, answer) if isinstance(answer, str) else answer)
        turns, variables, hides = self._hide_control([*prompt, reply], variables)
        if not self.has_template:
            return self._in_transcript(turns, hides, _template_only([*prompt, reply], variables))
        return self._exchange(turns, variables, hides, is_open(turns[:-1]))

    def scored(self, prompt: Messages, answer: str, variables: Variables) -> Rendered:
        """Render a prompt and any answer of a model: it may be empty, or contain the text of an end token.

        Raises:
            Unusable: the template refuses the prompt.
        """
        try:
            return self.exchange(prompt, answer, variables)
        except Unusable:
            turns, variables, _ = self._hide_control(prompt, variables)
            text = str(self.control.hide(answer))
            if not self.has_template:
                space = "" if is_open(prompt) else " "
                return self._as_text(transcript(_messages(turns)), space + text, hides=True)
            turns = self._accepted_form(turns, variables)
            header = (
                self.template.opening(turns, variables, True)
                if is_open(turns)
                else self.template.header(turns, variables)
            )
            return self._by_template(header, (TextSpan(text + self._end_text),), hides=True)

    def opened(self, prompt: Messages, variables: Variables) -> str:
        """The beginning of an answer that the generation prompt already contains, such as the opening of a thought."""
        if not self.has_template or is_open(prompt):
            return ""
        try:
            turns, variables, _ = self._hide_control(prompt, variables)
            turns = self._accepted_form(turns, variables)
            opening, header = self.template.opening(turns, variables, False), self.template.header(turns, variables)
        except Unusable:
            return ""
        return opening[len(header) :] if opening.startswith(header) else ""

    def writes_as(self, other: ChatFormat) -> bool:
        """Whether another format renders the same conversations identically."""
        return self.template.is_as(other.template)

    def every_turn(
        self, prompt: Messages, answer: Message | str, variables: Variables
    ) -> tuple[list[Rendered | Unusable], Rendered | None]:
        """Render each assistant turn after the turns before it, and all of them in one sequence.

        The joint sequence is None unless every turn is rendered in the whole conversation as it is when it comes last:
        templates that drop earlier reasoning, or that end a turn without a token, do not satisfy this.
        """
        last = Message(ASSISTANT, answer) if isinstance(answer, str) else answer
        whole = [*prompt[:-1], _merge_messages(prompt[-1], last)] if is_open(prompt) else [*prompt, last]
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
        turns, variables, hides = self._hide_control([*before, self._without_end(turn)], variables)
        if not self.has_template:
            return self._in_transcript(turns, hides, _template_only([*before, turn], variables), continues=False)
        return self._exchange(turns, variables, hides, continues=False)

    def _join(self, turns: Sequence[Rendered | Unusable]) -> Rendered | None:
        """One sequence of all turns, or None if the last one's text does not contain each of the others."""
        whole = [turn for turn in turns if isinstance(turn, Rendered)]
        if len(whole) < len(turns) or len(whole) < 2 or not all(self._has_end(turn) for turn in whole):
            return None
        text, spans, position = whole[-1].prompt + whole[-1].answer, [], len(whole[0].prompt)
        for turn in whole:
            if not text.startswith(turn.prompt + turn.answer) or len(turn.prompt) < position:
                return None
            spans += [TextSpan(text[position : len(turn.prompt)], trained=False), *turn.response]
            position = len(turn.prompt) + len(turn.answer)
        remarks = frozenset().union(*(turn.remarks for turn in whole))
        hides = any(turn.hides for turn in whole)
        return replace(whole[0], response=tuple(span for span in spans if span.text), remarks=remarks, hides=hides)

    def _has_end(self, turn: Rendered) -> bool:
        return turn.answer.endswith(tuple(self._end_texts))

    def _as_text(
        self, prompt: str, answer: str | None = None, hides: bool = False, remarks: frozenset[str] = frozenset()
    ) -> Rendered:
        """Text that was not rendered by a template."""
        response = () if answer is None else (TextSpan(answer),)
        end = int(self.tokenizer.eos_token_id)
        return Rendered(prompt=prompt, response=response, hides=hides, end=end, remarks=remarks)

    def _in_transcript(
        self, turns: Sequence[Turn], hides: bool, lost: frozenset[str], continues: bool | None = None
    ) -> Rendered:
        *before, reply = _messages(turns)
        if not reply.content.strip():
            raise Unusable("the answer has no text, and without a chat template only text is written")
        if is_open(before) if continues is None else continues:
            return self._as_text(transcript(tuple(before)), reply.content, hides, lost)
        return self._as_text(_transcript_of(before) + f"\n\n{NAMES[ASSISTANT]}:", f" {reply.content}", hides, lost)

    def _by_template(
        self, prompt: str, response: tuple[TextSpan, ...], hides: bool, remarks: frozenset[str] = frozenset()
    ) -> Rendered:
        return Rendered(prompt=prompt, response=response, hides=hides, by_template=True, end=self.end, remarks=remarks)

    def _accepted_form(self, turns: list[Turn], variables: Variables) -> list[Turn]:
        """The prompt's turns in the form that the template accepts."""
        return form_of(turns, lambda form: self.template.opening(form, variables, is_open(form)))

    def _exchange(self, given: list[Turn], variables: Variables, hides: bool, continues: bool) -> Rendered:
        *before, reply = form_of(given, lambda form: self.template.render(_merge_continued(form, continues), variables))
        turns = _merge_continued([*before, reply], continues)
        whole, tracked = self.template.whole(turns, variables)
        opening = self.template.opening(before, variables, continues)
        remarks = self.template.ignored(turns, variables, self.template.render, whole) | self._unopened(continues)
        if continues and not whole.startswith(opening):  # the template renders the completed turn differently
            rest = str(reply.get("content") or "")
            return self._by_template(opening, (TextSpan(rest + self._end_text),), hides, remarks)
        if whole.startswith(opening):
            prompt, response = opening, self._cut_at_end(whole[len(opening) :], reply)
        else:
            prompt, response, more = self._split_diverging(before, reply, variables, whole, opening)
            remarks |= more
        if _loses_text(reply, response):
            opened = None if continues else self._opened_by_answer(before, reply, variables, opening)
            if opened is None:
                raise Unusable("the chat template leaves out part of the answer")
            prompt, response = opened
        if not str(reply.get("content") or "").strip() and self.template.is_unwritten(turns, variables, whole):
            raise Unusable("the chat template writes nothing of the answer")
        remarks |= self._require_written(before, variables, prompt)
        return self._by_template(prompt, self._tracked_spans(prompt, response, tracked), hides, remarks)

    def _unopened(self, continues: bool) -> frozenset[str]:
        """A remark if an answer is begun and the template has no generation prompt for it."""
        return frozenset({_NO_OPENING} if not continues and self.template.lacks_opening else ())

    def _require_written(self, turns: list[Turn], variables: Variables, prompt: str) -> frozenset[str]:
        """Check that the prompt contains every turn; returns a remark if an assistant's text beside a call is missing.

        Raises:
            Unusable: a turn is missing, so the model would learn to answer text that it does not see.
        """
        if not turns:
            return frozenset()
        lost = self.template.lost(turns, lambda form: self.template.opening(form, variables, is_open(form)), prompt)
        for turn in lost:
            if turn["role"] != ASSISTANT or not turn.get("tool_calls"):
                raise Unusable(f"the chat template leaves out the turn of role {turn['role']}")
        return frozenset({"content beside tool_calls: the chat template ignores it"} if lost else ())

    def _split_diverging(
        self, before: list[Turn], reply: Turn, variables: Variables, whole: str, opening: str
    ) -> tuple[str, str, frozenset[str]]:
        """Prompt and response if the whole does not begin with the generation prompt, which may open a thought.

        An answer that contains the thought follows the generation prompt. Any other answer is cut where the template
        begins to write it, without the thought that it does not have.
        """
        opened = self._opened_by_answer(before, reply, variables, opening)
        if opened is not None:
            return *opened, frozenset()
        header, asked = (
            self.template.header(before, variables),
            self.template.render(before, variables) if before else "",
        )
        if not whole.startswith(asked):
            return self._split_moved(asked, opening, os.path.commonprefix([header, whole]), whole, reply)
        prompt = header if whole.startswith(header) else asked
        extra = opening[len(os.path.commonprefix([opening, prompt])) :]
        remark = f"trained without {extra!r} of the generation prompt: before the answer the template leaves it out"
        return prompt, self._cut_at_end(whole[len(prompt) :], reply), frozenset({remark})

    def _split_moved(
        self, asked: str, opening: str, header: str, whole: str, reply: Turn
    ) -> tuple[str, str, frozenset[str]]:
        """Prompt and response if the template renders the turns before an answer differently once it is there.

        Mistral writes the system prompt in the last turn only, if that is the user's. ``asked`` is known from the
        generation prompt; the answer's turn begins where the whole best matches the end of ``asked``.
        """
        ends = range(max(0, len(header) - _LONGEST_HEADER), len(header) + 1)
        begin = max(ends, key=lambda end: _common_end(asked, header[:end]))
        generation = opening.removeprefix(asked)
        if not _common_end(asked, header[:begin]) or not whole[begin:].startswith(generation):
            raise Unusable("the chat template does not show where the answer begins")
        remark = "the chat template renders an answered prompt differently: trained as it is before the answer"
        return opening, self._cut_at_end(whole[begin + len(generation) :], reply), frozenset({remark})

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

    def _cut_at_end(self, tail: str, reply: Turn) -> str:
        """The text after a prompt up to its first end token, without the template's white space after the answer.

        Raises:
            Unusable: more than white space and special tokens follow an end token, which a model would not generate.
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

    def _tracked_spans(self, prompt: str, response: str, tracked: Sequence[tuple[int, int]]) -> tuple[TextSpan, ...]:
        """Split the response by the template's ``{% generation %}`` blocks, which mark the text of the model.

        The end token after such a block is trained on too, so that the model learns to stop.
        """
        start, size = len(prompt), len(response)
        blocks = [(max(a - start, 0), min(b - start, size)) for a, b in tracked if b > start and a < start + size]
        if not blocks:
            return (TextSpan(response),)
        if response[blocks[-1][1] :] in self._end_texts:
            blocks[-1] = (blocks[-1][0], size)
        spans, position = [], 0
        for a, b in blocks:
            spans += [TextSpan(response[position:a], trained=False), TextSpan(response[a:b])]
            position = b
        return tuple(span for span in spans if span.text)

    def _hide_control(self, turns: Sequence[Message], variables: Variables) -> tuple[list[Turn], Variables, bool]:
        """Turns in template form and variables, with control tokens in their texts hidden; and whether any were.

        An assistant turn may contain special tokens that the model generates, such as a thought's, but none that
        structure a conversation.
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
        """The name that the template uses for the role."""
        if role not in OTHER_NAMES or (self.has_template and self.template.knows_role(role, variables)):
            return role
        return OTHER_NAMES[role]

    def _without_end(self, answer: Message) -> Message:
        """The answer without an end token at the end of its text, because the template writes one.

        Raises:
            Unusable: the text contains another end token.
        """
        content = answer.content
        while content.rstrip().endswith(tuple(self._end_texts)):
            content = next(content.rstrip()[: -len(e)] for e in self._end_texts if content.rstrip().endswith(e))
        if any(end in content for end in self._end_texts):
            raise Unusable(INSIDE)
        return replace(answer, content=content)

    def _find_structural(self) -> set[str]:
        """Control tokens that structure a conversation: those of a rendered user turn, the begin and the end tokens."""
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
        """Prompt and spans of the response as input of the encoder."""
        return Text(rendered.prompt, rendered.hides), [Text(span.text, rendered.hides) for span in rendered.response]


def transcript(prompt: Messages | str) -> str:
    r"""Plain text of a prompt, the same for every tokenizer: ``\n\nHuman: ...\n\nAssistant:`` for messages.

    It identifies a prompt independently of a model, so that a split by it is the same for all models. A final assistant
    turn is left open.
    """
    if isinstance(prompt, str):
        return prompt
    return _transcript_of(prompt) + ("" if is_open(prompt) else f"\n\n{NAMES[ASSISTANT]}:")


def _transcript_of(turns: Sequence[Message]) -> str:
    return "".join(f"\n\n{NAMES.get(turn.role, turn.role.capitalize())}: {turn.content}" for turn in turns)


def is_open(turns: Sequence[Message] | Sequence[Turn]) -> bool:
    """Whether the last turn is the assistant's, so that it is to be continued."""
    if not turns:
        return False
    last = turns[-1]
    return (last.role if isinstance(last, Message) else last["role"]) == ASSISTANT


def _merge_messages(turn: Message, rest: Message) -> Message:
    return replace(rest, role=turn.role, content=turn.content + rest.content, fields={**turn.fields, **rest.fields})


def _merge_turns(turn: Turn, rest: Turn) -> Turn:
    return {**turn, **rest, "content": str(turn.get("content") or "") + str(rest.get("content") or "")}


def _merge_continued(turns: list[Turn], continues: bool) -> list[Turn]:
    """The prompt's turns and the answer as one conversation, with a continued turn merged."""
    return [*turns[:-2], _merge_turns(turns[-2], turns[-1])] if continues else turns


def _messages(turns: Sequence[Turn]) -> Messages:
    return tuple(Message(str(turn["role"]), str(turn.get("content") or "")) for turn in turns)


def _template_only(turns: Iterable[Message], variables: Variables) -> frozenset[str]:
    """Remarks on fields and variables that are lost without a chat template."""
    names = {name for given in (variables, *(turn.fields for turn in turns)) for name in given_names(given)}
    return frozenset(f"{name}: only a chat template writes it" for name in names)


def _joined(prompt: str, answer: str) -> frozenset[str]:
    """A remark if an answer that is a word of its own follows a text prompt without a space."""
    return frozenset({_NO_SPACE} if _ENDS_A_WORD.search(prompt) and _BEGINS_A_WORD.match(answer) else ())


def _common_end(one: str, other: str) -> int:
    """Length of the common suffix of two texts."""
    return len(os.path.commonprefix([one[::-1], other[::-1]]))


def _loses_text(reply: Turn, response: str) -> bool:
    """Whether text of the answer is missing in its rendering, ignoring white space."""
    content, written = ("".join(text.split()) for text in (str(reply.get("content") or ""), response))
    return content not in written
