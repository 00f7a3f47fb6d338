"""Rewards that read text: a function or a service is given prompts, responses and data rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlhf.data.chat import ChatFormat
from rlhf.roles.forward import Share
from rlhf.types import Int32, Prompt, RolloutBlock

Row = Mapping[str, object]


class Judge(Protocol):
    """Scores of responses, NaN where it gave up on one."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
        """(n,) scores of n responses."""


@dataclass(frozen=True, kw_only=True)
class TextBlock:
    """A block as text. Lists run in parallel, one entry a sample."""

    prompts: list[str]
    responses: list[str]
    rows: list[Row]


class BlockReader:
    """Turns blocks into text.

    A prompt is the text that the user wrote; a response is its tokens as text, without its end and special tokens.
    """

    def __init__(self, chat: ChatFormat, prompts: Sequence[Prompt]) -> None:
        """Args: chat is that of the policy, which wrote the responses; prompts are found by ``prompt_ids``."""
        self.chat = chat
        self.by_id = {prompt.id: prompt for prompt in prompts}

    def prompts_of(self, block: RolloutBlock) -> list[Prompt]:
        """The prompt of each sample."""
        return [self.by_id[i] for i in block.prompt_ids.tolist()]

    def decode(self, tokens: Sequence[Sequence[int] | Int32]) -> list[str]:
        """Text as it was written, white space included, without the end token, special or not, that it may have."""
        written = [list(ids[:-1]) if len(ids) and int(ids[-1]) in self.chat.ends else list(ids) for ids in tokens]
        decode = self.chat.tokenizer.batch_decode
        texts: list[str] = decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return texts

    def __call__(self, block: RolloutBlock) -> TextBlock:
        """The block as text."""
        prompts = self.prompts_of(block)
        return TextBlock(
            prompts=[prompt.text or self.decode([prompt.tokens])[0] for prompt in prompts],
            responses=self.decode([block.sequences.response(i) for i in range(len(block))]),
            rows=[prompt.row for prompt in prompts],
        )


class TextReward:
    """A part of the reward that is a function or a service."""

    def __init__(self, judge: Judge, reader: BlockReader) -> None:
        self.judge, self.reader = judge, reader

    def scores(self, block: RolloutBlock) -> Share:
        """All rewards of the block, one a sample."""
        text = self.reader(block)
        values = self.judge(text.prompts, text.responses, text.rows)
        return Share(samples=np.arange(len(block)), values=values.astype(np.float32))
