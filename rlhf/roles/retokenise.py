"""Re-encodes rollouts for a reward model whose tokenizer or chat template differs from the policy's.

Rollouts are decoded, rendered by the reward model's chat template, and encoded by its tokenizer. Only the reward model
reads the new tokens; the policy is trained on the sampled ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.data.chat import ChatFormat, Rendered, is_open
from rlhf.data.template import Unusable
from rlhf.data.tokenise import encode
from rlhf.errors import UserError
from rlhf.roles.length_limit import LengthLimit
from rlhf.roles.text import BlockReader
from rlhf.types import FinishReason, ModelFacts, Prompt, RolloutBlock, Sequences

PROBE = "The  naïve fox: 3.14\n\n\tprint('x') ☃ 你好 <s> 1,000,000 "
"""Text that tokenizers split differently if they share a vocabulary but differ in rules (white space, digits, BOS)."""


def same_tokens(one: ChatFormat, other: ChatFormat, prompts: Sequence[Prompt]) -> bool:
    """Whether both chat formats encode these prompts, and any response, to the same tokens.

    Padding tokens may differ, since models never see padding. Chat templates and their dates are compared only if a
    prompt consists of messages.
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
        """Args: own is the reward model's chat format; facts are those of its folder."""
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
        """The block's samples, in order; a response that is not truncated ends with the reward model's end token."""
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
        """Render prompt and answer for the reward model; the answer includes text that the policy's prompt prefilled.

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
