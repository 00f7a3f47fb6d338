"""Rewards that read text: converts blocks of tokens to the text that functions and services score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlhf.data.chat import ChatFormat
from rlhf.roles.block_result import BlockResult
from rlhf.types import Int32, Prompt, RolloutBlock

Row = Mapping[str, object]


class TextScorer(Protocol):
    """Scores responses given as text."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
        """(n,) scores of n responses; NaN for a response that could not be scored."""


@dataclass(frozen=True, kw_only=True)
class TextBlock:
    """A block as text; parallel lists with one entry per sample."""

    prompts: list[str]
    responses: list[str]
    rows: list[Row]


class BlockReader:
    """Converts blocks to text.

    A prompt is its text in the data, or its decoded tokens if that is unknown; a response is its decoded tokens without
    end and special tokens.
    """

    def __init__(self, chat: ChatFormat, prompts: Sequence[Prompt]) -> None:
        """Index the prompts by id.

        Args:
            chat: the policy's chat format.
            prompts: looked up by a block's ``prompt_ids``.
        """
        self.chat = chat
        self.by_id = {prompt.id: prompt for prompt in prompts}

    def prompts_of(self, block: RolloutBlock) -> list[Prompt]:
        """The prompt of each sample."""
        return [self.by_id[i] for i in block.prompt_ids.tolist()]

    def decode(self, tokens: Sequence[Sequence[int] | Int32]) -> list[str]:
        """Decode token ids with white space unchanged, without special tokens and without a final end token."""
        trimmed = [list(ids[:-1]) if len(ids) and int(ids[-1]) in self.chat.ends else list(ids) for ids in tokens]
        decode = self.chat.tokenizer.batch_decode
        texts: list[str] = decode(trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return texts

    def text_of(self, prompt: Prompt) -> str:
        """The prompt's text, decoded from its tokens if unknown."""
        return prompt.text or self.decode([prompt.tokens])[0]

    def __call__(self, block: RolloutBlock) -> TextBlock:
        """The block as text."""
        prompts = self.prompts_of(block)
        return TextBlock(
            prompts=[self.text_of(prompt) for prompt in prompts],
            responses=self.decode([block.sequences.response(i) for i in range(len(block))]),
            rows=[prompt.row for prompt in prompts],
        )


class TextReward:
    """A part of the reward that is a function or a service."""

    def __init__(self, scorer: TextScorer, reader: BlockReader) -> None:
        self.scorer, self.reader = scorer, reader

    def scores(self, block: RolloutBlock) -> BlockResult:
        """Scores of all samples of the block."""
        text = self.reader(block)
        values = self.scorer(text.prompts, text.responses, text.rows)
        return BlockResult(samples=np.arange(len(block)), values=values.astype(np.float32))
