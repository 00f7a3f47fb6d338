"""Rollouts in the tokens of a reward model whose tokenizer is not the policy's: decoded, and encoded again.

What is trained on stays what was sampled; only the reward model reads these tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf.data.chat import render_prompt, render_response
from rlhf.data.tokenise import encode_prompts, encode_responses
from rlhf.roles.text import BlockReader
from rlhf.types import FinishReason, Prompt, RolloutBlock, Sequences

PROBE = "The  naïve fox: 3.14\n\n\tprint('x') ☃ 你好 <s> 1,000,000 "
"""Text that tokenizers with one vocabulary but other rules (white space, digits, begin token) cut differently."""


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> bool:
    """Whether both make the same tokens of these prompts and of any response.

    Padding is never fed to a model here, so a padding token may differ; a chat template matters where a prompt was
    written as messages.
    """
    pads = {one.pad_token, other.pad_token}
    vocabularies = [{t: i for t, i in each.get_vocab().items() if t not in pads} for each in (one, other)]
    return (
        vocabularies[0] == vocabularies[1]
        and (one.bos_token_id, one.eos_token_id) == (other.bos_token_id, other.eos_token_id)
        and one(PROBE)["input_ids"] == other(PROBE)["input_ids"]
        and (one.chat_template == other.chat_template or not any(prompt.turns for prompt in prompts))
    )


class Retokeniser:
    """Blocks in a reward model's own tokens: its chat template, its end token, its context."""

    def __init__(self, own: PreTrainedTokenizerBase, context: int, reader: BlockReader) -> None:
        """Args: own is the reward model's tokenizer; context is its longest sequence in tokens."""
        self.own, self.context, self.reader = own, context, reader
        self.seen = 0
        """Samples so far."""
        self.cut = 0
        """Samples so far that were cut at their beginning to fit the context."""

    def __call__(self, block: RolloutBlock) -> Sequences:
        """The block's samples, in their order. A response that ended by itself ends with the model's own end token."""
        prompts = self.reader.prompts_of(block)
        text = self.reader(block)
        rendered = [
            render_prompt(prompt.turns, self.own) if prompt.turns else written
            for prompt, written in zip(prompts, text.prompts, strict=True)
        ]
        answers = [self._answer(response, prompt) for response, prompt in zip(text.responses, prompts, strict=True)]
        encoded = encode_responses(answers, self.own)
        ended = block.finish_reasons == FinishReason.STOP
        responses = [ids if stops else ids[:-1] for ids, stops in zip(encoded, ended, strict=True)]
        cut = self.cut
        pairs = zip(encode_prompts(rendered, self.own), responses, strict=True)
        sequences = Sequences.pack(self._fit(prompt, response) for prompt, response in pairs)
        if self.cut > cut:
            print(f"{self.cut:,} of {self.seen:,} texts so far were cut at their beginning", flush=True)
        return sequences

    def _answer(self, response: str, prompt: Prompt) -> str:
        """The response as it follows the reward model's prompt; the space after a transcript is the transcript's."""
        after_transcript = prompt.turns and not self.reader.tokenizer.chat_template
        bare = response.removeprefix(" ") if after_transcript else response
        return render_response(bare, prompt.turns or prompt.text, self.own)

    def _fit(self, prompt: list[int], response: list[int]) -> tuple[list[int], list[int]]:
        """Cut at the beginning, the begin token kept, so that the score is read at the response's own end."""
        self.seen += 1
        excess = len(prompt) + len(response) - self.context
        if excess <= 0:
            return prompt, response
        self.cut += 1
        kept = 1 if prompt[0] == self.own.bos_token_id else 0
        prompt = prompt[:kept] + prompt[kept + excess :]
        return prompt, response[len(prompt) - self.context :]  # whole, where cutting the prompt was enough
