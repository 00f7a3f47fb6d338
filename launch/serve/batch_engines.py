"""A batch by a recipe's model: blocks of rows, spread over the engines by Ray, written block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from actors.answering import BlockAnswer, answer_block, running_engines
from actors.session import Session
from rlhf.data.tokenise import tokenise_prompts
from rlhf.errors import Stopped, UserError
from rlhf.records import PromptRow, RowLocation
from rlhf.serving.batch_output import BatchCounts, BatchOutput, InputFacts, require_unchanged_input
from rlhf.serving.batch_rows import BatchResult, BatchRow, output_row, read_batch
from rlhf.serving.completions import MALFORMED, prompt_of
from rlhf.types import FinishReason, Prompt

FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


@dataclass(frozen=True, kw_only=True)
class EngineBatch:
    """A job by engines."""

    session: Session
    model: Path
    given: Path
    output: BatchOutput
    facts: InputFacts
    """Of the input."""
    block_rows: int
    """Rows that are in memory, and that are written together."""

    def run(self) -> BatchCounts:
        """Answer all rows that have no output yet.

        Raises:
            Stopped: on request; the rows of complete blocks are written.
        """
        output = self.output
        with output:
            try:
                if output.done < self.facts.rows:
                    self._answer_rest()
            except Stopped as stop:
                raise Stopped(stop.why, f"{output.done:,} rows of {self.facts.rows:,}") from None
            require_unchanged_input(self.given, self.facts)
            return output.finish()

    def _answer_rest(self) -> None:
        session, output, rows = self.session, self.output, read_batch(self.given, skip=self.output.done)
        engines_of = running_engines(session, self.model, (), session.root / "logs")
        with session.console.stage("Batch", self.facts.rows) as report, engines_of as engines:
            while block := list(islice(rows, self.block_rows)):
                session.check()
                output.append(self._answer(engines, block, output.done))
                report(output.done, {})

    def _answer(self, engines: Any, block: Sequence[BatchRow], done: int) -> list[dict[str, Any]]:
        """The output of a block. Row n has seed n, so that a resumed job samples as an uninterrupted one."""
        prompts, faults = self._tokenise(block)
        seeds = [done + prompt.id for prompt in prompts]
        answers = answer_block(engines, prompts, seeds, self.model)
        results = {prompt.id: _result(answers[seed]) for prompt, seed in zip(prompts, seeds, strict=True)}
        results |= {index: BatchResult(failure=fault) for index, fault in faults.items()}
        return [output_row(row, results[index]) for index, row in enumerate(block)]

    def _tokenise(self, block: Sequence[BatchRow]) -> tuple[list[Prompt], dict[int, str]]:
        """Prompts whose ``id`` is the row's index in the block, and the reasons of the other rows."""
        prompts, faults = list[Prompt](), dict[int, str]()
        for index, row in enumerate(block):
            try:
                prompts.append(replace(self._prompt(row), id=index))
            except (UserError, *MALFORMED) as error:
                reason = _why_unusable(error) if isinstance(error, UserError) else str(error)
                faults[index] = f"line {row.line}: {reason}"
        return prompts, faults

    def _prompt(self, row: BatchRow) -> Prompt:
        if row.body is None:
            raise ValueError(row.fault)
        if others := row.body.keys() - {"model", "messages", "prompt"}:
            raise ValueError(f"the recipe decides how answers are sampled, and the row's body has {min(others)}")
        recipe, given = self.session.recipe, PromptRow(prompt_of(row.body), RowLocation(str(self.given), row.line))
        longest = recipe.rollout.max_response_length
        tokenised = tokenise_prompts([given], self.session.chat, recipe.data, self.session.facts, longest)
        return tokenised.items[0]


def _why_unusable(error: UserError) -> str:
    """The reason in the error that all rows of a file were dropped, where the file is one row."""
    return " ".join((error.why or error.what).removeprefix("all were dropped:").split()).removeprefix("1 × ")


def _result(answer: BlockAnswer) -> BatchResult:
    if answer.fault:
        return BatchResult(failure=answer.fault)
    usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens}
    return BatchResult(text=answer.text, finish_reason=FINISH.get(answer.finish_reason, ""), usage=usage)
