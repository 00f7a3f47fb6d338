"""Rewards that read text: a function or a service is given prompts, responses and data rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

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

    A prompt is the text that the user wrote; a response is its tokens as text, without special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> None:
        """Args: tokenizer is the one that the responses are in; prompts are found by a block's ``prompt_ids``."""
        self.tokenizer = tokenizer
        self.by_id = {prompt.id: prompt for prompt in prompts}

    def prompts_of(self, block: RolloutBlock) -> list[Prompt]:
        """The prompt of each sample."""
        return [self.by_id[i] for i in block.prompt_ids.tolist()]

    def decode(self, tokens: Sequence[Sequence[int] | Int32]) -> list[str]:
        """Text as it was written, white space included."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

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
