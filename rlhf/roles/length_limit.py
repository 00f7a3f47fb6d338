"""What a reward model is too short for is cut at its beginning, and counted."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.types import Int32, RolloutBlock, Sequences

Ids = Sequence[int] | Int32


class LengthLimit:
    """At most ``tokens`` of prompt and response together; the end, where the score is read, is always kept."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.seen = 0
        """Samples so far."""
        self.cut = 0
        """Samples so far that were cut."""
        self._reported = 0

    def fit(self, prompt: Ids, response: Ids, kept: int = 0) -> tuple[list[int], list[int]]:
        """Prompt and response within the limit, without tokens of the prompt after its first ``kept``, if need be of
        the response's beginning too."""
        prompt, response = list(prompt), list(response)
        self.seen += 1
        excess = len(prompt) + len(response) - self.tokens
        if excess <= 0:
            return prompt, response
        self.cut += 1
        prompt = prompt[:kept] + prompt[kept + excess :]
        return prompt, response[max(0, len(prompt) + len(response) - self.tokens) :]

    def report(self) -> None:
        """Print how many were cut, where it is more than last time."""
        if self.cut > self._reported:
            print(f"{self.cut:,} of {self.seen:,} texts so far were cut at their beginning", flush=True)
        self._reported = self.cut


class CutBlock:
    """Blocks in the policy's own tokens, within a reward model's limit; a begin token stays."""

    def __init__(self, limit: LengthLimit, begin: int | None) -> None:
        self.limit, self.begin = limit, begin

    def __call__(self, block: RolloutBlock) -> Sequences:
        """The block's samples, in their order."""
        whole = block.sequences
        samples = [(whole.prompt(i), whole.response(i)) for i in range(len(whole))]
        fitted = [
            self.limit.fit(prompt, response, kept=int(self.begin is not None and prompt[0] == self.begin))
            for prompt, response in samples
        ]
        self.limit.report()
        return Sequences.pack(fitted)
