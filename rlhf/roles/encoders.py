"""Encodes rollouts for a reward model that does not read the policy's tokens unchanged.

Only the reward model reads the new tokens; the policy is trained on the sampled ones. ``BlockTruncator`` truncates the
policy's tokens to the model's context. ``Retokeniser`` decodes a rollout, renders it with the model's chat template and
encodes it with its tokenizer. ``TextPairs`` encodes prompt and response as the pair of texts that an encoder reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf.data.chat import NAMES, ChatFormat, Rendered, is_open
from rlhf.data.template import Unusable
from rlhf.data.tokenise import encode
from rlhf.errors import UserError
from rlhf.roles.text import BlockReader
from rlhf.types import FinishReason, Int32, ModelFacts, Prompt, RolloutBlock, Sequences

Ids = Sequence[int] | Int32
PROBE = "The  naïve fox: 3.14\n\n\tprint('x') ☃ 你好 <s> 1,000,000 "
"""Text that tokenizers split differently if they share a vocabulary but differ in rules (white space, digits, BOS)."""


class LengthLimit:
    """Limits prompt and response together to ``tokens`` tokens.

    The end, where the score is read, and the prompt's first token, if it is ``bos_token``, are always kept.
    """

    def __init__(self, tokens: int, bos_token: int | None = None) -> None:
        self.tokens, self.bos_token = tokens, bos_token
        self.seen = 0
        """Number of samples so far."""
        self.cut = 0
        """Number of truncated samples so far."""
        self._reported = 0

    def fit(self, prompt: Ids, response: Ids) -> tuple[list[int], list[int]]:
        """Remove tokens from the beginning of the prompt, then of the response, until both fit."""
        prompt, response = list(prompt), list(response)
        self.seen += 1
        excess = len(prompt) + len(response) - self.tokens
        if excess <= 0:
            return prompt, response
        self.cut += 1
        kept = int(prompt[:1] == [self.bos_token])
        prompt = prompt[:kept] + prompt[kept + excess :]
        return prompt, response[max(0, len(prompt) + len(response) - self.tokens) :]

    def report(self) -> None:
        """Print the number of truncated samples if it has grown since the last call."""
        if self.cut > self._reported:
            print(f"{self.cut:,} of {self.seen:,} texts so far were truncated at the beginning", flush=True)
        self._reported = self.cut


class BlockTruncator:
    """Truncates blocks in the policy's tokens to a reward model's context."""

    def __init__(self, limit: LengthLimit) -> None:
        self.limit = limit

    def __call__(self, block: RolloutBlock) -> Sequences:
        """Encode the block; returns its (B) sequences in order."""
        whole = block.sequences
        fitted = [self.limit.fit(whole.prompt(i), whole.response(i)) for i in range(len(whole))]
        self.limit.report()
        return Sequences.pack(fitted)


def same_tokens(one: ChatFormat, other: ChatFormat, prompts: Sequence[Prompt]) -> bool:
    """Whether both chat formats encode prompts and responses to the same tokens.

    Compares vocabularies, BOS and end tokens, and the encoding of one probe text. Padding tokens may differ, since
    models never see padding. Chat templates and their dates are compared only if a prompt consists of messages.
    """
    first, second = one.tokenizer, other.tokenizer
    pads = {first.pad_token, second.pad_token}
    vocabularies = [{t: i for t, i in each.get_vocab().items() if t not in pads} for each in (first, second)]
    return (
        vocabularies[0] == vocabularies[1]
        and (first.bos_token_id, first.eos_token_id) == (second.bos_token_id, second.eos_token_id)
        and first(PROBE)["input_ids"] == second(PROBE)["input_ids"]
        and (one.writes_as(other) or not any(prompt.turns for prompt in prompts))
    )


class Retokeniser:
    """Encodes blocks with a reward model's chat template, end token and context length."""

    def __init__(self, own: ChatFormat, facts: ModelFacts, reader: BlockReader) -> None:
        """Limit sequences to the reward model's context.

        Args:
            own: the reward model's chat format.
            facts: those of its folder.
        """
        self.own, self.facts, self.reader = own, facts, reader
        self.limit = LengthLimit(facts.context, own.tokenizer.bos_token_id)

    def check(self, folder: str) -> None:
        """Encode every prompt with a short response, so that a prompt that the model cannot read fails before training.

        Raises:
            UserError: the chat template refuses a prompt, or a token id exceeds the embedding.
        """
        prompts = list(self.reader.by_id.values())
        rendered = [self._render(prompt, self.reader.text_of(prompt), "x", folder) for prompt in prompts]
        for prompt, tokens in zip(prompts, encode(rendered, self.own), strict=True):
            largest = max(*tokens.prompt, *tokens.response)
            if largest >= self.facts.embedding_rows:
                raise UserError(
                    f"reward model {folder}: token {self.own.tokenizer.convert_ids_to_tokens(largest)!r} has id "
                    f"{largest}, and its embedding has {self.facts.embedding_rows:,} rows",
                    f"its tokenizer encodes the prompt {prompt.text!r:.80} with this token",
                    "call model.resize_token_embeddings(len(tokenizer)) and save the model",
                )

    def __call__(self, block: RolloutBlock) -> Sequences:
        """Encode the block; returns its (B) sequences in order.

        A response that is not truncated ends with the reward model's end token.
        """
        text = self.reader(block)
        rendered = [
            self._render(prompt, question, answer)
            for prompt, question, answer in zip(
                self.reader.prompts_of(block), text.prompts, text.responses, strict=True
            )
        ]
        ended = block.finish_reasons == FinishReason.STOP
        sequences = Sequences.pack(
            self.limit.fit(tokens.prompt, tokens.response if stops else tokens.response[:-1])
            for tokens, stops in zip(encode(rendered, self.own), ended, strict=True)
        )
        self.limit.report()
        return sequences

    def _render(self, prompt: Prompt, text: str, answer: str, folder: str = "") -> Rendered:
        """Render prompt and answer for the reward model.

        The answer includes the assistant prefix that the policy's prompt already contains.

        Raises:
            UserError: the reward model's chat template refuses them.
        """
        policy = self.reader.chat
        after_transcript = prompt.turns and not policy.has_template and not is_open(prompt.turns)
        bare = answer.removeprefix(" ") if after_transcript else answer
        if not prompt.turns:
            return self.own.exchange(text, bare, {})
        whole = policy.opened(prompt.turns, prompt.variables) + bare
        try:
            return self.own.scored(prompt.turns, whole, prompt.variables)
        except Unusable as problem:
            raise UserError(
                f"the reward model {folder} cannot read the prompt {prompt.text!r:.80}",
                str(problem),
                "use a reward model whose chat template takes such conversations, or give prompts without them",
            ) from problem


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
        """Find the special tokens around a pair, and leave room for them in ``limit``.

        Args:
            own: the encoder's tokenizer.
            limit: tokens of a pair, special tokens included.
        """
        self.own, self.reader, self.frame = own, reader, pair_frame(own)
        self.limit = limit
        self.limit.tokens -= self.frame.tokens

    def __call__(self, block: RolloutBlock) -> Sequences:
        """Encode the block; returns its (B) sequences in order.

        The special tokens between the texts belong to the prompt.
        """
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
