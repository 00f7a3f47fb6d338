"""Answers in text: for ``rlhf generate``, and before and after PPO for the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from actors.engines import Engines
from actors.placement import Placement
from actors.session import Session
from actors.waiting import Moment, fetch
from rlhf.tracking.console import Report
from rlhf.types import Prompt, RolloutBlock


def answer(session: Session, folder: Path, prompts: Sequence[Prompt], logs: Path) -> list[str]:
    """One sampled answer of the folder's model to each prompt, in their order, by an engine started for it."""
    placement = Placement(session.recipe, session.device, "ppo", session.gpus)
    engines = Engines(
        session.recipe, placement, folder, session.longest, session.end_tokens(folder), logs, publishes=False
    )
    try:
        engines.ready(prompts)
        with session.console.stage("Answers", len(prompts)) as report:
            return answers_of(engines, range(len(prompts)), session.tokenizer, report)
    finally:
        engines.stop()
        placement.free()


def answers_of(
    engines: Engines, chosen: Sequence[int], tokenizer: PreTrainedTokenizerBase, report: Report
) -> list[str]:
    """One sampled answer to each of the engines' chosen prompts, in their order, without special tokens.

    The seed of an answer is its place, so that two models' answers differ by the models alone.
    """
    moment = Moment(phase="answers")
    answers: dict[int, str] = {}
    for ref, _ in engines.generate(chosen, range(len(chosen)), moment):
        block: RolloutBlock = fetch(ref, "rollout engine", moment, engines.seconds)
        responses = [block.sequences.response(i) for i in range(len(block))]
        answers |= zip(block.seeds.tolist(), tokenizer.batch_decode(responses, skip_special_tokens=True), strict=True)
        report(len(answers), {})
    return [answers[i] for i in range(len(chosen))]
