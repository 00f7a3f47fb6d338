"""What a reward model is too short for is cut at its beginning, and counted."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.types import Int32, RolloutBlock, Sequences

Ids = Sequence[int] | Int32


class LengthLimit:
    """At most ``tokens`` of prompt and response together; the end, where the score is read, is always kept, and so is
    the prompt's ``begin`` token."""

    def __init__(self, tokens: int, begin: int | None = None) -> None:
        self.tokens, self.begin = tokens, begin
        self.seen = 0
        """Samples so far."""
        self.cut = 0
        """Samples so far that were cut."""
        self._reported = 0

    def fit(self, prompt: Ids, response: Ids) -> tuple[list[int], list[int]]:
        """Prompt and response within the limit, without tokens of the prompt's beginning, if need be of the response's
        too."""
        prompt, response = list(prompt), list(response)
        self.seen += 1
        excess = len(prompt) + len(response) - self.tokens
        if excess <= 0:
            return prompt, response
        self.cut += 1
        kept = int(prompt[:1] == [self.begin])
        prompt = prompt[:kept] + prompt[kept + excess :]
        return prompt, response[max(0, len(prompt) + len(response) - self.tokens) :]

    def report(self) -> None:
        """Print how many were cut, where it is more than last time."""
        if self.cut > self._reported:
            print(f"{self.cut:,} of {self.seen:,} texts so far were cut at their beginning", flush=True)
        self._reported = self.cut


class CutBlock:
    """Blocks in the policy's own tokens, within a reward model's limit."""

    def __init__(self, limit: LengthLimit) -> None:
        self.limit = limit

    def __call__(self, block: RolloutBlock) -> Sequences:
        """The block's samples, in their order."""
        whole = block.sequences
        fitted = [self.limit.fit(whole.prompt(i), whole.response(i)) for i in range(len(whole))]
        self.limit.report()
        return Sequences.pack(fitted)
