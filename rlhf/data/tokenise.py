"""Converts records to tokens, cut where generation begins: prompt tokens are those given to the model at generation.

Nothing is cut silently. Responses are never cut, because their end teaches the model to stop; prompts are cut only at
their beginning and only if ``DataConfig.long_prompts`` allows it. Rows that do not fit are dropped, counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Generic, Literal, TypeVar

import numpy as np

from rlhf.config.schema import DataConfig
from rlhf.data.chat import INSIDE, ChatFormat, Rendered, TextSpan, transcript
from rlhf.data.encode import Ids, Text
from rlhf.data.template import Unusable
from rlhf.errors import UserError
from rlhf.records import Demonstration, LabelledAnswer, Message, Preference, PromptRow
from rlhf.types import Example, Int32, LabelledResponse, ModelFacts, Pair, Prompt

_ADVICE = (
    ("data.max_prompt_length", "raise data.max_prompt_length, or set data.long_prompts=truncate_left"),
    ("data.max_response_length", "raise data.max_response_length"),
    ("the model's context", "use a model with a longer context, or shorter rows"),
    (
        "chat template fails",
        "correct the chat template (model.chat_template, or the one in the model's folder), or the turns",
    ),
    ("chat template", "correct the turns, or give a template that accepts them (model.chat_template)"),
    ("", "correct the rows"),
)
"""Advice about dropped rows: a part of the reason, and the advice."""

_NOT_TRAINED = "no turn to train on, by weight, train or loss"

T = TypeVar("T")
Row = Demonstration | Preference | LabelledAnswer | PromptRow


@dataclass(frozen=True)
class Tokenised(Generic[T]):
    """Result of tokenising: every row has one or more items, or is counted in ``dropped``."""

    items: tuple[T, ...]
    dropped: Mapping[str, int]
    """Number of dropped rows, by reason."""
    truncated: int
    """Number of items whose prompt was cut at its beginning."""
    rows: int = 0
    """Number of rows with an item."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """Number of used rows with losses or omissions, by remark."""
    ends: str = ""
    """If several tokens end a response: these tokens, and those that end the responses of the data."""
    row_of_item: tuple[int, ...] = ()
    """Index of each item's row."""


@dataclass(frozen=True)
class _Tokens:
    """One rendered row. ``mask`` is parallel to ``response``; ``problem`` is the reason why it cannot be used."""

    prompt: Ids
    response: Ids = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    truncated: bool = False
    problem: str | None = None
    remarks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """The item of a row or of one of its turns, or the reason why there is none."""

    item: T | None
    problem: str | None = None
    truncated: bool = False
    remarks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Tokeniser:
    """The chat format, configuration and model facts shared by all rows of a data set."""

    chat: ChatFormat
    config: DataConfig
    facts: ModelFacts

    def tokens(self, rows: Sequence[Row], rendered: Sequence[Rendered | Unusable]) -> list[_Tokens]:
        """Tokens of each rendered row, with its prompt fitted to the limit.

        Raises:
            UserError: a token has no row in the embedding, or a prompt is too long and ``long_prompts`` is ``error``.
        """
        usable = [each for each in rendered if isinstance(each, Rendered)]
        encoded = iter(encode(usable, self.chat))
        found = [_Tokens([], problem=str(each)) if isinstance(each, Unusable) else next(encoded) for each in rendered]
        for row, tokens in zip(rows, found, strict=True):
            self._require_known(row, tokens)
        unknown = self._unknown_token()
        found = [self._note_unknown(tokens, unknown) for tokens in found]
        return [
            tokens if tokens.problem else self._fit_prompt(row, tokens) for row, tokens in zip(rows, found, strict=True)
        ]

    def _unknown_token(self) -> int | None:
        """Id of the token for text that the tokenizer does not know; None if no text is unknown to it."""
        tokenizer = self.chat.tokenizer
        unknown = tokenizer.unk_token_id
        others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return None if unknown in others else unknown  # a byte-level tokenizer may name another token here

    def _note_unknown(self, tokens: _Tokens, unknown: int | None) -> _Tokens:
        """Add a remark if text has no token of its own, so that the model cannot distinguish it from other text."""
        if unknown is None or (unknown not in tokens.prompt and unknown not in tokens.response):
            return tokens
        remark = f"text that the tokenizer does not know, read as {self.chat.tokenizer.unk_token}"
        return replace(tokens, remarks=tokens.remarks | {remark})

    def _require_known(self, row: Row, tokens: _Tokens) -> None:
        rows = self.facts.embedding_rows
        beyond = next((token for token in (*tokens.prompt, *tokens.response) if token >= rows), None)
        if beyond is None:
            return
        text = self.chat.tokenizer.convert_ids_to_tokens(beyond)
        raise UserError(
            f"{row.source}: token {text!r} has id {beyond}, and the model's embedding has {rows:,} rows (ids from 0)",
            "tokens were added to the tokenizer without enlarging the model, or the tokenizer is another model's",
            "call model.resize_token_embeddings(len(tokenizer)) and save the model, or use the model's own tokenizer",
        )

    def _fit_prompt(self, row: Row, tokens: _Tokens) -> _Tokens:
        longest, prompt = self.config.max_prompt_length, tokens.prompt
        excess = len(prompt) - longest
        if excess <= 0:
            return tokens
        if self.config.long_prompts == "error":
            raise UserError(
                f"{row.source}: the prompt has {len(prompt)} tokens, data.max_prompt_length is {longest}",
                fix="raise data.max_prompt_length, or set data.long_prompts to drop or truncate_left",
            )
        if self.config.long_prompts == "drop":
            return replace(tokens, problem=f"prompt longer than data.max_prompt_length={longest}")
        kept = 1 if prompt[0] == self.chat.tokenizer.bos_token_id else 0
        return replace(tokens, prompt=prompt[:kept] + prompt[kept + excess :], truncated=True)

    def misfit(self, tokens: _Tokens) -> str | None:
        """The reason why a prompt with its response is dropped, or None."""
        if len(tokens.response) > self.config.max_response_length:
            longest = self.config.max_response_length
            return f"response longer than data.max_response_length={longest}, end token included"
        if len(tokens.prompt) + len(tokens.response) > self.facts.context:
            return f"prompt and response exceed the model's context of {self.facts.context}"
        return None if self.chat.ends.isdisjoint(tokens.response[:-1]) else INSIDE

    def misfit_of_turns(self, tokens: _Tokens) -> bool:
        """Whether several turns in one sequence exceed the space of one prompt and one response."""
        longest = self.config.max_prompt_length + self.config.max_response_length
        if len(tokens.prompt) + len(tokens.response) > min(longest, self.facts.context):
            return True
        turns = _trained_runs(tokens)
        return any(
            len(turn) > self.config.max_response_length or not self.chat.ends.isdisjoint(turn[:-1]) for turn in turns
        )


def tokenise_demonstrations(
    rows: Sequence[Demonstration],
    chat: ChatFormat,
    config: DataConfig,
    facts: ModelFacts,
    train_on: Literal["last", "all"] = "last",
) -> Tokenised[Example]:
    """Tokenise demonstrations; each trained turn ends with exactly one end token.

    With ``train_on`` all, a conversation is one example with all assistant turns in the mask, if the template and the
    lengths allow it, else one example per turn.

    Raises:
        UserError: no row is left, a token has no row in the embedding, or a prompt is too long while
            ``config.long_prompts`` is ``error``.
    """
    tokeniser = _Tokeniser(chat, config, facts)
    if train_on == "all":
        return _collect(_tokenise_turns(rows, tokeniser), chat)
    rendered = [_render_last_turn(row, chat) for row in rows]
    return _collect([[_example(tokens, tokeniser)] for tokens in tokeniser.tokens(rows, rendered)], chat)


def _render_last_turn(row: Demonstration, chat: ChatFormat) -> Rendered | Unusable:
    if isinstance(row.completion, Message) and not row.completion.trained:
        return Unusable(_NOT_TRAINED)
    return _try_render(lambda: chat.exchange(row.prompt, row.completion, row.variables))


def _tokenise_turns(rows: Sequence[Demonstration], tokeniser: _Tokeniser) -> list[list[_Outcome[Example]]]:
    """For each row, one example of all assistant turns, or one per turn."""
    chat = tokeniser.chat
    turns: list[list[Rendered | Unusable]] = []
    whole: dict[int, Rendered] = {}
    for i, row in enumerate(rows):
        if isinstance(row.prompt, str):
            turns.append([_render_last_turn(row, chat)])
            continue
        each, joined = chat.every_turn(row.prompt, row.completion, row.variables)
        turns.append(each)
        if joined is not None:
            whole[i] = joined
    fitting = _joined_examples(rows, whole, tokeniser)
    apart = [(i, turn) for i, each in enumerate(turns) if i not in fitting for turn in each]
    outcomes: list[list[_Outcome[Example]]] = [[fitting[i]] if i in fitting else [] for i in range(len(rows))]
    tokens = tokeniser.tokens([rows[i] for i, _ in apart], [turn for _, turn in apart])
    for (i, _), found in zip(apart, tokens, strict=True):
        outcomes[i].append(_example(found, tokeniser))
    return outcomes


def _joined_examples(
    rows: Sequence[Demonstration], whole: Mapping[int, Rendered], tokeniser: _Tokeniser
) -> dict[int, _Outcome[Example]]:
    """By row, the examples of several turns in one sequence that fit the space of one turn."""
    found = tokeniser.tokens([rows[i] for i in whole], list(whole.values()))
    return {
        i: _example(tokens, tokeniser, is_joined=True)
        for i, tokens in zip(whole, found, strict=True)
        if not (tokens.problem or tokens.truncated or tokeniser.misfit_of_turns(tokens))
    }


def _example(tokens: _Tokens, tokeniser: _Tokeniser, is_joined: bool = False) -> _Outcome[Example]:
    problem = tokens.problem or (None if is_joined else tokeniser.misfit(tokens))
    mask = np.array(tokens.mask, dtype=np.bool_)
    item = Example(prompt=_array(tokens.prompt), response=_array(tokens.response), mask=mask)
    return _Outcome(item, problem, tokens.truncated, tokens.remarks)


def tokenise_preferences(
    rows: Sequence[Preference], chat: ChatFormat, config: DataConfig, facts: ModelFacts
) -> Tokenised[Pair]:
    """Tokenise preferences; pairs whose prompts render to the same text share a ``prompt_id``, counted from 0.

    If one answer does not fit, the pair is dropped. Raises as ``tokenise_demonstrations``.
    """
    tokeniser = _Tokeniser(chat, config, facts)
    rendered = [_pair(row, chat) for row in rows]
    chosen, rejected = (tokeniser.tokens(rows, [pair[side] for pair in rendered]) for side in (0, 1))
    ids: dict[str, int] = {}
    outcomes = []
    for row, (written, _), winner, loser in zip(rows, rendered, chosen, rejected, strict=True):
        prompt = written.prompt if isinstance(written, Rendered) else ""
        pair = Pair(
            prompt=_array(winner.prompt),
            chosen=_array(winner.response),
            rejected=_array(loser.response),
            margin=row.margin,
            prompt_id=ids.setdefault(prompt, len(ids)),
        )
        problem = winner.problem or loser.problem or tokeniser.misfit(winner) or tokeniser.misfit(loser)
        if problem is None and winner.response == loser.response:
            problem = "the two answers have the same tokens"
        outcomes.append([_Outcome(pair, problem, winner.truncated, winner.remarks | loser.remarks)])
    return _collect(outcomes, chat)


def tokenise_labelled(
    rows: Sequence[LabelledAnswer], chat: ChatFormat, config: DataConfig, facts: ModelFacts
) -> Tokenised[LabelledResponse]:
    """Tokenise unpaired labels; ``prompt_id`` is as of ``tokenise_preferences``.

    Raises as ``tokenise_demonstrations``.
    """
    tokeniser = _Tokeniser(chat, config, facts)
    rendered = [_render_answer(row, chat) for row in rows]
    ids: dict[str, int] = {}
    outcomes = []
    for row, written, tokens in zip(rows, rendered, tokeniser.tokens(rows, rendered), strict=True):
        prompt = written.prompt if isinstance(written, Rendered) else ""
        item = LabelledResponse(
            prompt=_array(tokens.prompt),
            response=_array(tokens.response),
            is_good=row.is_good,
            prompt_id=ids.setdefault(prompt, len(ids)),
        )
        problem = tokens.problem or tokeniser.misfit(tokens)
        outcomes.append([_Outcome(item, problem, tokens.truncated, tokens.remarks)])
    return _collect(outcomes, chat)


def _render_answer(row: LabelledAnswer, chat: ChatFormat) -> Rendered | Unusable:
    return _try_render(lambda: chat.exchange(row.prompt, row.completion, row.variables))


def _pair(row: Preference, chat: ChatFormat) -> tuple[Rendered | Unusable, Rendered | Unusable]:
    """Render both answers after the same prompt; if only one of them opens a thought, the prompt ends before it."""
    chosen = _try_render(lambda: chat.exchange(row.prompt, row.chosen, row.variables))
    rejected = _try_render(lambda: chat.exchange(row.prompt, row.rejected, row.variables))
    if isinstance(chosen, Unusable) or isinstance(rejected, Unusable):
        failed = chosen if isinstance(chosen, Unusable) else rejected
        return failed, failed
    shared = min(chosen.prompt, rejected.prompt, key=len)
    if not (chosen.prompt.startswith(shared) and rejected.prompt.startswith(shared)):
        problem = Unusable("the template renders the prompt differently before the two answers")
        return problem, problem
    return _split_at(chosen, shared), _split_at(rejected, shared)


def _split_at(rendered: Rendered, prompt: str) -> Rendered:
    moved = rendered.prompt[len(prompt) :]
    return replace(rendered, prompt=prompt, response=(TextSpan(moved), *rendered.response)) if moved else rendered


def tokenise_prompts(
    rows: Sequence[PromptRow], chat: ChatFormat, config: DataConfig, facts: ModelFacts, max_response_length: int
) -> Tokenised[Prompt]:
    """Tokenise prompts, each with room for a response of ``max_response_length``; ``id`` is the index in ``rows``.

    Raises as ``tokenise_demonstrations``.
    """
    tokeniser = _Tokeniser(chat, config, facts)
    rendered = [_open_prompt(row, chat) for row in rows]
    room = facts.context - max_response_length
    no_room = f"prompt and a response of {max_response_length} tokens exceed the model's context of {facts.context}"
    outcomes = []
    for i, (row, tokens) in enumerate(zip(rows, tokeniser.tokens(rows, rendered), strict=True)):
        prompt = Prompt(
            id=i,
            tokens=tuple(tokens.prompt),
            text=transcript(row.prompt),
            turns=() if isinstance(row.prompt, str) else row.prompt,
            row=row.columns,
            variables=row.variables,
        )
        problem = tokens.problem or (no_room if len(tokens.prompt) > room else None)
        outcomes.append([_Outcome(prompt, problem, tokens.truncated, tokens.remarks)])
    return _collect(outcomes, chat)


def _open_prompt(row: PromptRow, chat: ChatFormat) -> Rendered | Unusable:
    return _try_render(lambda: chat.prompt(row.prompt, row.variables))


def encode(rendered: Sequence[Rendered], chat: ChatFormat) -> list[_Tokens]:
    """Tokens of rendered rows; a response without an end token gets one. Prompts alone have no response."""
    texts = [chat.text(each) for each in rendered]
    prompts = chat.encoder.begin([prompt for prompt, _ in texts], [not each.by_template for each in rendered])
    before: list[Text] = [text for prompt, spans in texts for text in [prompt, *spans][:-1]]
    flat = iter(chat.encoder.proceed(before, [span for _, spans in texts for span in spans]))
    found = []
    for each, prompt in zip(rendered, prompts, strict=True):
        response: Ids = []
        mask: list[bool] = []
        for span in each.response:
            ids = next(flat)
            response += ids
            mask += [span.trained] * len(ids)
        if each.response and (not response or response[-1] not in chat.ends):
            response.append(each.end)
            mask.append(True)
        found.append(_Tokens(prompt, response, mask, remarks=each.remarks))
    return found


def describe_tokenised(tokenised: Tokenised[T], name: str) -> str:
    """Counts of tokenised, cut, lossy and dropped rows; one line, and one more for each of these."""
    items = len(tokenised.items)
    several = f" as {items:,} examples" if items != tokenised.rows else ""
    cut = f", {tokenised.truncated:,} prompts cut at their beginning" if tokenised.truncated else ""
    head = f"{name}: {tokenised.rows:,} tokenised{several}{cut}"
    ends = [f"  {tokenised.ends}"] if tokenised.ends else []
    return "\n".join([head, *_reasons(tokenised.dropped), *_reasons(tokenised.remarks), *ends])


def _try_render(render: Callable[[], Rendered]) -> Rendered | Unusable:
    try:
        return render()
    except Unusable as problem:
        return problem


def _trained_runs(tokens: _Tokens) -> list[Ids]:
    """The trained tokens of a response, one piece per turn."""
    marked = zip(tokens.response, tokens.mask, strict=True)
    runs = groupby(marked, key=lambda item: item[1])
    return [[token for token, _ in run] for trained, run in runs if trained]


def _collect(outcomes: Sequence[Sequence[_Outcome[T]]], chat: ChatFormat) -> Tokenised[T]:
    """Combine the outcomes of all rows: one per row, or one per turn."""
    dropped: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    kept: list[_Outcome[T]] = []
    row_of_item: list[int] = []
    used = 0
    for row, of_row in enumerate(outcomes):
        good = [outcome for outcome in of_row if outcome.problem is None]
        problems = [outcome.problem for outcome in of_row if outcome.problem is not None]
        if good:
            used += 1
            kept += good
            row_of_item += [row] * len(good)
            remarks.update(set().union(*(outcome.remarks for outcome in good)))
            remarks.update(f"turn left out: {problem}" for problem in problems)
        else:
            dropped[problems[0] if problems else _NOT_TRAINED] += 1
    if outcomes and not kept:
        raise UserError(
            f"none of {len(outcomes):,} rows can be used",
            "all were dropped:\n" + "\n".join(_reasons(dropped)),
            "; ".join(dict.fromkeys(next(advice for part, advice in _ADVICE if part in why) for why in dropped)),
        )
    items = tuple(outcome.item for outcome in kept if outcome.item is not None)
    truncated = sum(outcome.truncated for outcome in kept)
    return Tokenised(items, dict(dropped), truncated, used, dict(remarks), _ends(items, chat), tuple(row_of_item))


def _ends(items: Sequence[object], chat: ChatFormat) -> str:
    """One line on the end tokens, if there are several."""
    if len(chat.ends) < 2:
        return ""
    names = {end: str(chat.tokenizer.convert_ids_to_tokens(end)) for end in sorted(chat.ends)}
    last = Counter(int(response[-1]) for item in items for response in _responses(item))
    used = ", ".join(f"{names[end]} ({count:,})" for end, count in last.most_common())
    others = ", ".join(name for end, name in names.items() if end not in last)
    if not used:
        return f"a response ends with any of {others}"
    return f"responses end with {used}" + (f"; generation also stops at {others}" if others else "")


def _responses(item: object) -> Iterable[Int32]:
    if isinstance(item, Pair):
        return [item.chosen, item.rejected]
    return [item.response] if isinstance(item, Example | LabelledResponse) else []


def _reasons(counts: Mapping[str, int]) -> list[str]:
    return [f"  {count:,} × {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1])]


def _array(ids: Ids) -> Int32:
    return np.array(ids, dtype=np.int32)
