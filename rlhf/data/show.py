"""Shows a stage's data as the model sees it: rows token by token, lengths, and the outcome of every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from rlhf.config.schema import DataConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.stages import StageData
from rlhf.tracking.console import plain_text
from rlhf.types import Example, Int64, LabelledResponse, ModelFacts, Pair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = Example | Pair | LabelledResponse | Prompt
Shown = StageData[Example] | StageData[Pair] | StageData[LabelledResponse] | StageData[Prompt]
Part = tuple[str, Sequence[int], Sequence[bool]]
"""Name, tokens, and whether each token is trained on."""

SHOWN = 72
"""Tokens shown at each end of a long prompt or response."""
BINS, BAR = 8, 40
TRAINED, EDGE = "bold green", "dim"
SEPARATOR, OPEN, CLOSE = "│", "⟦", "⟧"
_LONGEST_CHARACTER = 8  # tokens: a character of 4 bytes, or an emoji of two code points


def show_stage(
    title: str,
    data: Shown,
    chat: ChatFormat,
    facts: ModelFacts,
    config: DataConfig,
    rows: int,
    *,
    colour: bool,
) -> Text:
    """Render one stage's data.

    Args:
        title: the stage and the kind of its data.
        rows: number of training rows to show token by token.
        colour: whether trained tokens are marked by colour, else by brackets.
    """
    page = Text(f"── {title} ──\n", style="bold")
    page.append(_summary(data, chat, facts, config), style="not bold")
    train: Sequence[Item] = data.train
    for number, item in enumerate(train[:rows], start=1):
        page.append(f"\nrow {number} to train on\n", style="bold")
        for name, ids, trained in parts_of(item):
            page.append(f"{name}, {len(ids):,} tokens: ", style="not bold italic")
            page.append_text(_render_line(ids, trained, chat.tokenizer, colour))
            page.append("\n")
    return page


def parts_of(item: Item) -> list[Part]:
    """The named parts of one item of a stage's data."""
    if isinstance(item, Prompt):
        return [("prompt", item.tokens, [False] * len(item.tokens))]
    prompt: Part = ("prompt", item.prompt.tolist(), [False] * len(item.prompt))
    if isinstance(item, Example):
        return [prompt, ("response", item.response.tolist(), item.mask.tolist())]
    if isinstance(item, LabelledResponse):
        answer = "good answer" if item.is_good else "bad answer"
        return [prompt, (answer, item.response.tolist(), [True] * len(item.response))]
    answers = {"chosen": item.chosen.tolist(), "rejected": item.rejected.tolist()}
    return [prompt, *((name, ids, [True] * len(ids)) for name, ids in answers.items())]


def pieces_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    """The text of the tokens, each with its number of tokens: a character of several bytes may take several."""
    pieces: list[tuple[str, int]] = []
    position = 0
    while position < len(ids):
        texts = (
            (_decode(ids[position : position + count], tokenizer), count)
            for count in range(1, min(_LONGEST_CHARACTER, len(ids) - position) + 1)
        )
        alone = str(tokenizer.convert_ids_to_tokens(ids[position]))
        text, count = next(((text, count) for text, count in texts if "\ufffd" not in text), (f"<{alone}>", 1))
        pieces.append((text, count))
        position += count
    return pieces


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    token = str(tokenizer.convert_ids_to_tokens(ids[0]))
    if len(ids) == 1 and token.startswith("▁"):  # decoding drops SentencePiece's marker of a space
        return token.replace("▁", " ")
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _render_line(ids: Sequence[int], trained: Sequence[bool], tokenizer: PreTrainedTokenizerBase, colour: bool) -> Text:
    """Tokens separated by bars; the middle of a long text is left out."""
    if len(ids) <= 2 * SHOWN + 1:
        return _render_tokens(ids, trained, tokenizer, colour)
    line = _render_tokens(ids[:SHOWN], trained[:SHOWN], tokenizer, colour)
    line.append(f" … {len(ids) - 2 * SHOWN:,} tokens … ", style=EDGE)
    return line.append_text(_render_tokens(ids[-SHOWN:], trained[-SHOWN:], tokenizer, colour))


def _render_tokens(
    ids: Sequence[int], trained: Sequence[bool], tokenizer: PreTrainedTokenizerBase, colour: bool
) -> Text:
    line, position, was = Text(), 0, False
    for text, count in pieces_of(ids, tokenizer):
        now = bool(trained[position])
        edges = {(True, False): CLOSE, (False, True): OPEN} if not colour else {}
        line.append(edges.get((was, now), SEPARATOR if position else ""), style=EDGE)
        shown = _visible(text) + (f"×{count}" if count > 1 else "")
        line.append(shown, style=TRAINED if now else "not bold")
        position, was = position + count, now
    if was and not colour:
        line.append(CLOSE, style=EDGE)
    return line


def _visible(text: str) -> str:
    return plain_text(text.replace("\n", "↵\n").replace("\t", "⇥").replace("\r", "␍")) or "∅"


def _summary(
    data: Shown,
    chat: ChatFormat,
    facts: ModelFacts,
    config: DataConfig,
) -> str:
    ends = ", ".join(f"{chat.tokenizer.convert_ids_to_tokens(end)} ({end})" for end in sorted(chat.ends))
    limits = f"prompt {config.max_prompt_length:,}, response {config.max_response_length:,}"
    ending = f"end tokens: {ends}"
    form = "the chat template" if chat.has_template else "a transcript (the tokenizer has no chat template)"
    return "\n".join(
        [
            data.report,
            *(f"  {file.file}: {file.rows:,} rows, digest {file.digest[:12]}" for file in data.files),
            f"rows of messages are written by {form}; {ending}" if data.conversations else ending,
            f"longest in tokens by the recipe: {limits}; the model's context: {facts.context:,}",
            *_lengths([*data.train, *data.held_out]),
            "",
        ]
    )


def _lengths(items: Sequence[Item]) -> Iterator[str]:
    """Lengths in tokens: quantiles of each part, and a histogram of whole sequences."""
    parts: dict[str, list[int]] = {}
    whole: list[int] = []
    for item in items:
        sizes = {name: len(ids) for name, ids, _ in parts_of(item)}
        for name, size in sizes.items():
            parts.setdefault(name, []).append(size)
        whole.append(sizes.pop("prompt") + max(sizes.values(), default=0))
    if not whole:
        return
    yield f"{'lengths in tokens':<20}{'least':>8}{'median':>8}{'95%':>8}{'most':>8}"
    for name, lengths in parts.items():
        yield _quantiles(name, lengths)
    if len(parts) > 1:
        yield _quantiles("prompt + response", whole)
    yield from _histogram(np.array(whole))


def _quantiles(name: str, lengths: Sequence[int]) -> str:
    values = np.quantile(lengths, [0, 0.5, 0.95, 1], method="inverted_cdf")
    return f"  {name:<18}" + "".join(f"{int(value):>8,}" for value in values)


def _histogram(lengths: Int64) -> Iterator[str]:
    least, most = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(most - least + 1) // BINS))
    counts = np.bincount((lengths - least) // width)
    for i, count in enumerate(counts):
        first, last = least + i * width, least + (i + 1) * width - 1
        span = f"{first:,}" if width == 1 else f"{first:,} to {last:,}"
        yield f"  {span:>18} {'▇' * round(BAR * count / counts.max()):<{BAR}} {count:,}"
