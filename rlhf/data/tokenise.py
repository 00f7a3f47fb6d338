"""Records to tokens. Prompt and response are tokenised apart and joined as tokens, as they are when a model samples.

Nothing is cut unseen. A response is never cut, because what teaches the model to stop is its end; a prompt is cut only
at its beginning and only where ``DataConfig.long_prompts`` says so. What does not fit is set aside, counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from rlhf.config.schema import DataConfig
from rlhf.data.chat import render_prompt, render_response, transcript
from rlhf.data.records import Demonstration, Message, Preference, PromptRow
from rlhf.errors import UserError
from rlhf.types import Example, Int32, Pair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Row = Demonstration | Preference | PromptRow
Ids = list[int]


@dataclass(frozen=True)
class Tokenised(Generic[T]):
    """What came out: every row is an item or is counted in ``dropped``."""

    items: tuple[T, ...]
    dropped: dict[str, int]
    """Rows set aside, by reason."""
    truncated: int
    """Items whose prompt was cut at its beginning."""


@dataclass(frozen=True)
class _Prompt:
    """A prompt's rendered text and tokens; ``problem`` says why it cannot be used."""

    text: str
    tokens: Ids
    truncated: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class _Fitted(Generic[T]):
    """The tokens of one row, or why it is set aside."""

    item: T
    problem: str | None
    truncated: bool


def tokenise_demonstrations(
    rows: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, config: DataConfig, context_length: int
) -> Tokenised[Example]:
    """Demonstrations as tokens; each response ends with exactly one end token.

    Raises:
        UserError: rows were given and none is left, or a long prompt while ``config.long_prompts`` is ``error``.
    """
    prompts = _prompts(rows, tokenizer, config)
    responses = _responses(rows, [row.completion for row in rows], tokenizer)
    return _collect(
        _Fitted(
            Example(prompt=_array(prompt.tokens), response=_array(response)),
            prompt.problem or _misfit(prompt.tokens, response, tokenizer, config, context_length),
            prompt.truncated,
        )
        for prompt, response in zip(prompts, responses, strict=True)
    )


def tokenise_preferences(
    rows: Sequence[Preference], tokenizer: PreTrainedTokenizerBase, config: DataConfig, context_length: int
) -> Tokenised[Pair]:
    """Preferences as tokens; pairs whose prompts render to the same text share a ``prompt_id``, counted from 0.

    A pair of which one answer does not fit is set aside whole. Raises as ``tokenise_demonstrations``.
    """
    prompts = _prompts(rows, tokenizer, config)
    chosen = _responses(rows, [row.chosen for row in rows], tokenizer)
    rejected = _responses(rows, [row.rejected for row in rows], tokenizer)
    ids: dict[str, int] = {}
    return _collect(
        _Fitted(
            Pair(
                prompt=_array(prompt.tokens),
                chosen=_array(winner),
                rejected=_array(loser),
                margin=row.margin,
                prompt_id=ids.setdefault(prompt.text, len(ids)),
            ),
            prompt.problem
            or _misfit(prompt.tokens, winner, tokenizer, config, context_length)
            or _misfit(prompt.tokens, loser, tokenizer, config, context_length),
            prompt.truncated,
        )
        for row, prompt, winner, loser in zip(rows, prompts, chosen, rejected, strict=True)
    )


def tokenise_prompts(
    rows: Sequence[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    context_length: int,
    max_response_length: int,
) -> Tokenised[Prompt]:
    """Prompts as tokens, each leaving room for a response of ``max_response_length``; ``id`` is the place in ``rows``.

    Raises as ``tokenise_demonstrations``.
    """
    prompts = _prompts(rows, tokenizer, config)
    room = context_length - max_response_length
    no_room = f"prompt and a response of {max_response_length} tokens exceed the model's context of {context_length}"
    return _collect(
        _Fitted(
            Prompt(
                id=i,
                tokens=tuple(prompt.tokens),
                text=transcript(row.prompt),
                turns=() if isinstance(row.prompt, str) else row.prompt,
                row=row.columns,
            ),
            prompt.problem or (no_room if len(prompt.tokens) > room else None),
            prompt.truncated,
        )
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    )


def describe_tokenised(tokenised: Tokenised, name: str) -> str:
    """Counts of what became tokens, was cut and was set aside; one line, and one more for each reason."""
    cut = f", {tokenised.truncated:,} prompts cut at their beginning" if tokenised.truncated else ""
    return "\n".join([f"{name}: {len(tokenised.items):,} tokenised{cut}", *_reasons(tokenised.dropped)])


def _prompts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[_Prompt]:
    rendered = [_render(row, tokenizer) for row in rows]
    encoded = encode_prompts([prompt.text for prompt in rendered], tokenizer)
    return [
        prompt if prompt.problem else _fit_prompt(row, prompt.text, tokens, tokenizer, config)
        for row, prompt, tokens in zip(rows, rendered, encoded, strict=True)
    ]


def encode_prompts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Tokens of each rendered prompt, with the begin token of a tokenizer that has one; never empty."""
    head = _head(tokenizer)
    return [_begin(body, head, tokenizer) for body in _encode(list(texts), tokenizer)]


def encode_responses(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Tokens of each rendered response and the end token, which is not repeated when the text brings it."""
    end = tokenizer.eos_token_id
    return [ids if ids[-1:] == [end] else [*ids, end] for ids in _encode(list(texts), tokenizer)]


def _render(row: Row, tokenizer: PreTrainedTokenizerBase) -> _Prompt:
    try:
        return _Prompt(render_prompt(row.prompt, tokenizer), tokens=[])
    except Exception as error:  # the template is the user's program: besides its own refusals it may divide by zero
        return _Prompt("", tokens=[], problem=f"the chat template refuses the turns: {error}")


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Tokens of each text without special tokens; one call, which the tokenizer spreads over threads."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _head(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The special tokens that this tokenizer sets before a text: the begin token or nothing."""
    bare, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return full[:start]


def _begin(body: Ids, head: Ids, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The prompt with ``head`` once, which a chat template may have written already; never empty.

    The first response token is predicted from the token before it, so an empty prompt becomes the end token, with which
    language models that have no begin token separate documents.
    """
    tokens = body if body[: len(head)] == head else head + body
    return tokens or [tokenizer.eos_token_id]


def _fit_prompt(row: Row, text: str, tokens: Ids, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> _Prompt:
    excess = len(tokens) - config.max_prompt_length
    if excess <= 0:
        return _Prompt(text, tokens)
    if config.long_prompts == "error":
        raise UserError(
            f"{row.source}: the prompt has {len(tokens)} tokens, data.max_prompt_length is {config.max_prompt_length}",
            fix="raise data.max_prompt_length, or set data.long_prompts to drop or truncate_left",
        )
    if config.long_prompts == "drop":
        return _Prompt(text, tokens, problem=f"prompt longer than data.max_prompt_length={config.max_prompt_length}")
    kept = 1 if tokens[0] == tokenizer.bos_token_id else 0
    return _Prompt(text, tokens[:kept] + tokens[kept + excess :], truncated=True)


def _responses(
    rows: Sequence[Demonstration | Preference], completions: list[Message | str], tokenizer: PreTrainedTokenizerBase
) -> list[Ids]:
    texts = [render_response(text, row.prompt, tokenizer) for row, text in zip(rows, completions, strict=True)]
    return encode_responses(texts, tokenizer)


def _misfit(
    prompt: Ids, response: Ids, tokenizer: PreTrainedTokenizerBase, config: DataConfig, context_length: int
) -> str | None:
    """Why this prompt with this response is set aside, or None."""
    if len(response) > config.max_response_length:
        return f"response longer than data.max_response_length={config.max_response_length}, end token included"
    if len(prompt) + len(response) > context_length:
        return f"prompt and response exceed the model's context of {context_length}"
    if tokenizer.eos_token_id in response[:-1]:
        return "the end token stands inside the response"
    return None


def _collect(fitted: Iterator[_Fitted[T]]) -> Tokenised[T]:
    outcomes = list(fitted)
    kept = [outcome for outcome in outcomes if outcome.problem is None]
    dropped = dict(Counter(outcome.problem for outcome in outcomes if outcome.problem is not None))
    if outcomes and not kept:
        raise UserError(
            f"none of {len(outcomes):,} rows can be used",
            "all were set aside:\n" + "\n".join(_reasons(dropped)),
            "raise the lengths in data (and the model's context), or set data.long_prompts=truncate_left",
        )
    return Tokenised(tuple(outcome.item for outcome in kept), dropped, sum(outcome.truncated for outcome in kept))


def _reasons(dropped: dict[str, int]) -> list[str]:
    return [f"  {count:,} × {reason}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1])]


def _array(ids: Ids) -> Int32:
    return np.array(ids, dtype=np.int32)
