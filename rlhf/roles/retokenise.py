"""Rollouts in the tokens of a reward model whose tokenizer or chat template is not the policy's.

They are decoded, written by the reward model's own template, and encoded again. What is trained on stays what was
sampled; only the reward model reads these tokens.
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
"""Text that tokenizers with one vocabulary but other rules (white space, digits, begin token) cut differently."""


def same_tokens(one: ChatFormat, other: ChatFormat, prompts: Sequence[Prompt]) -> bool:
    """Whether both make the same tokens of these prompts and of any response.

    Padding is never fed to a model here, so a padding token may differ; a chat template, and the day that it is told,
    matter where a prompt was written as messages.
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
    """Blocks in a reward model's own tokens: its chat template, its end token, its context."""

    def __init__(self, own: ChatFormat, facts: ModelFacts, reader: BlockReader) -> None:
        """Args: own is how conversations are written for the reward model; facts are its folder's."""
        self.own, self.facts, self.reader = own, facts, reader
        self.limit = LengthLimit(facts.context, own.tokenizer.bos_token_id)

    def check(self, folder: str) -> None:
        """Write every prompt once with an answer, so that what the model cannot read is refused before training.

        Raises:
            UserError: its template refuses a prompt, or a token has no row in its embedding.
        """
        prompts = list(self.reader.by_id.values())
        rendered = [self._written(prompt, self._prompt_text(prompt), "x", folder) for prompt in prompts]
        for prompt, tokens in zip(prompts, encode(rendered, self.own), strict=True):
            largest = max(*tokens.prompt, *tokens.response)
            if largest >= self.facts.embedding_rows:
                raise UserError(
                    f"reward model {folder}: token {self.own.tokenizer.convert_ids_to_tokens(largest)!r} has id "
                    f"{largest}, and its embedding has {self.facts.embedding_rows:,} rows",
                    f"its tokenizer makes it of the prompt {prompt.text!r:.80}",
                    "call model.resize_token_embeddings(len(tokenizer)) and save the model",
                )

    def __call__(self, block: RolloutBlock) -> Sequences:
        """The block's samples, in their order. A response that ended by itself ends with the model's own end token."""
        text = self.reader(block)
        rendered = [
            self._written(prompt, written, answer)
            for prompt, written, answer in zip(self.reader.prompts_of(block), text.prompts, text.responses, strict=True)
        ]
        ended = block.finish_reasons == FinishReason.STOP
        sequences = Sequences.pack(
            self.limit.fit(tokens.prompt, tokens.response if stops else tokens.response[:-1])
            for tokens, stops in zip(encode(rendered, self.own), ended, strict=True)
        )
        self.limit.report()
        return sequences

    def _prompt_text(self, prompt: Prompt) -> str:
        return prompt.text or self.reader.decode([prompt.tokens])[0]

    def _written(self, prompt: Prompt, text: str, answer: str, folder: str = "") -> Rendered:
        """Prompt and answer as the reward model reads them: whole, with what the policy's prompt opened.

        Raises:
            UserError: the model's template refuses them.
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
