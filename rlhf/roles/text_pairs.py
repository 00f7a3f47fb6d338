"""Encodes rollouts for an encoder model: prompt and response as a pair of texts with its tokenizer's special tokens."""

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
    """The special tokens before, between and after a pair of texts."""

    before: list[int]
    between: list[int]
    after: list[int]
    has_segments: bool
    """Whether the second text and the tokens after it have token type 1."""

    @property
    def tokens(self) -> int:
        """Number of special tokens per pair."""
        return len(self.before) + len(self.between) + len(self.after)


def pair_frame(tokenizer: PreTrainedTokenizerBase) -> PairFrame:
    """Find the special tokens that a tokenizer adds to a pair of texts.

    Raises:
        UserError: the special tokens cannot be separated from the texts, or the token types are not 0 for the prompt
            and 1 for the response.
    """
    pair = tokenizer("a", "b", return_token_type_ids=True)
    ids, types = list(pair["input_ids"]), list(pair["token_type_ids"])
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in "ab")
    start = _find_sublist(first, ids, 0)
    begin = _find_sublist(second, ids, start + len(first))
    has_segments = "token_type_ids" in tokenizer.model_input_names and any(types)
    if start < 0 or begin < 0 or (has_segments and types != [0] * begin + [1] * (len(ids) - begin)):
        raise UserError(
            f"the tokenizer of the reward model in {tokenizer.name_or_path} cannot encode a pair of texts",
            "an encoder reads prompt and response as the pair that tokenizer(prompt, response) returns",
            "score with a function (rewards.<name>.function) that prepares the text for the model",
        )
    return PairFrame(ids[:start], ids[start + len(first) : begin], ids[begin + len(second) :], has_segments)


def _find_sublist(part: Sequence[int], whole: Sequence[int], start: int) -> int:
    """Index of the first occurrence of ``part`` in ``whole`` at or after ``start``; −1 if there is none."""
    candidates = range(max(0, start), len(whole) - len(part) + 1)
    return next((i for i in candidates if list(whole[i : i + len(part)]) == list(part)), -1)


class TextPairs:
    """Encodes each sample of a block as ``tokenizer(prompt, response)`` of an encoder does.

    A prompt of a single user turn is given as that turn's text, any other as its transcript. Leading and trailing white
    space is removed. Pairs that exceed the limit are truncated at the prompt's beginning.
    """

    def __init__(self, own: PreTrainedTokenizerBase, limit: LengthLimit, reader: BlockReader) -> None:
        """Args: own is the encoder's tokenizer; limit includes the special tokens."""
        self.own, self.reader, self.frame = own, reader, pair_frame(own)
        self.limit = limit
        self.limit.tokens -= self.frame.tokens

    def __call__(self, block: RolloutBlock) -> Sequences:
        """The block's samples, in order; the special tokens between the texts belong to the prompt."""
        text, prompts = self.reader(block), self.reader.prompts_of(block)
        questions = [_question(prompt, whole) for prompt, whole in zip(prompts, text.prompts, strict=True)]
        encoded = zip(self._encode(questions), self._encode(text.responses), strict=True)
        pairs = [self.limit.fit(prompt, response) for prompt, response in encoded]
        self.limit.report()
        frame = self.frame
        return Sequences.pack(
            ([*frame.before, *prompt, *frame.between], [*response, *frame.after]) for prompt, response in pairs
        )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.own([t.strip() for t in texts], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return ids


def _question(prompt: Prompt, text: str) -> str:
    """The prompt's text without the cue for the assistant's turn."""
    if len(prompt.turns) == 1 and prompt.turns[0].role == "user":
        return prompt.turns[0].content
    return text.removesuffix(f"\n\n{NAMES['assistant']}:") if prompt.turns else text
