"""Truncates, at the beginning, samples that exceed a reward model's context, and counts them."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.types import Int32, RolloutBlock, Sequences

Ids = Sequence[int] | Int32


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
        """The block's samples, in order."""
        whole = block.sequences
        fitted = [self.limit.fit(whole.prompt(i), whole.response(i)) for i in range(len(whole))]
        self.limit.report()
        return Sequences.pack(fitted)
