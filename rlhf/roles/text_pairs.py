"""Rollouts for an encoder: prompt and response as a pair of texts, between the special tokens of its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf.data.chat import NAMES
from rlhf.errors import UserError
from rlhf.roles.length_limit import LengthLimit
from rlhf.roles.text import BlockReader
from rlhf.types import Prompt, RolloutBlock, Sequences


@dataclass(frozen=True)
class PairFrame:
    """The special tokens around a pair: before the first text, between both, and behind the second."""

    before: list[int]
    between: list[int]
    behind: list[int]
    has_segments: bool
    """Whether the second text, and what is behind it, has token type 1."""

    @property
    def tokens(self) -> int:
        """Special tokens of a pair."""
        return len(self.before) + len(self.between) + len(self.behind)


def pair_frame(tokenizer: PreTrainedTokenizerBase) -> PairFrame:
    """How a tokenizer puts a pair of texts together.

    Raises:
        UserError: its special tokens cannot be told from the texts, or its token types are none of a prompt's and a
            response's.
    """
    pair = tokenizer("a", "b", return_token_type_ids=True)
    ids, types = list(pair["input_ids"]), list(pair["token_type_ids"])
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in "ab")
    start = _find(first, ids, 0)
    begin = _find(second, ids, start + len(first))
    has_segments = "token_type_ids" in tokenizer.model_input_names and any(types)
    if start < 0 or begin < 0 or (has_segments and types != [0] * begin + [1] * (len(ids) - begin)):
        raise UserError(
            f"the tokenizer of the reward model in {tokenizer.name_or_path} makes no pair of two texts",
            "an encoder is given prompt and response as a pair, as tokenizer(prompt, response) makes it",
            "score with a function (rewards.<name>.function) that prepares the text as the model needs it",
        )
    return PairFrame(ids[:start], ids[start + len(first) : begin], ids[begin + len(second) :], has_segments)


def _find(part: Sequence[int], whole: Sequence[int], start: int) -> int:
    """Where ``part`` begins in ``whole``, from ``start`` on; −1 where it does not."""
    places = range(max(0, start), len(whole) - len(part) + 1)
    return next((i for i in places if list(whole[i : i + len(part)]) == list(part)), -1)


class TextPairs:
    """Blocks as an encoder's tokens: what ``tokenizer(prompt, response)`` makes of each sample.

    A prompt of one user turn is that turn's text, any other is what it is as text. White space around either is left
    out. What exceeds the limit is cut at the prompt's beginning.
    """

    def __init__(self, own: PreTrainedTokenizerBase, limit: LengthLimit, reader: BlockReader) -> None:
        """Args: own is the encoder's tokenizer; the limit counts special tokens too."""
        self.own, self.reader, self.frame = own, reader, pair_frame(own)
        self.limit = limit
        self.limit.tokens -= self.frame.tokens

    def __call__(self, block: RolloutBlock) -> Sequences:
        """The block's samples, in their order; the special tokens between the texts are the prompt's."""
        text, prompts = self.reader(block), self.reader.prompts_of(block)
        questions = [_question(prompt, whole) for prompt, whole in zip(prompts, text.prompts, strict=True)]
        encoded = zip(self._encode(questions), self._encode(text.responses), strict=True)
        pairs = [self.limit.fit(prompt, response) for prompt, response in encoded]
        self.limit.report()
        frame = self.frame
        return Sequences.pack(
            ([*frame.before, *prompt, *frame.between], [*response, *frame.behind]) for prompt, response in pairs
        )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.own([t.strip() for t in texts], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return ids


def _question(prompt: Prompt, text: str) -> str:
    """The prompt's text as a question to which the response is the answer."""
    if len(prompt.turns) == 1 and prompt.turns[0].role == "user":
        return prompt.turns[0].content
    return text.removesuffix(f"\n\n{NAMES['assistant']}:") if prompt.turns else text
