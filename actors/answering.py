"""Answers of a model folder to prompts, by vLLM: for ``rlhf generate`` and for the comparison at the end of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actors.engines import Engines
from actors.placement import Placement
from actors.session import Session
from actors.waiting import Moment, fetch
from rlhf.types import Prompt, RolloutBlock

ANSWER = Moment(phase="answer")


def answer(session: Session, folder: Path, prompts: Sequence[Prompt], logs: Path) -> list[str]:
    """One sampled answer to each prompt, in their order, as text without special tokens."""
    recipe = session.recipe
    placement = Placement(recipe, session.device, "ppo", session.gpus)
    engines = Engines(
        recipe, placement, folder, session.longest, session.end_tokens(folder), logs / folder.parent.name, publishes=False
    )
    answers: dict[int, str] = {}
    try:
        engines.ready(prompts)
        with session.console.stage(f"Answers of {folder.parent.name}", len(prompts)) as report:
            for ref, _ in engines.generate(range(len(prompts)), range(len(prompts)), ANSWER):
                block: RolloutBlock = fetch(ref, "rollout engine", ANSWER, recipe.placement.phase_timeout_seconds)
                texts = session.tokenizer.batch_decode(
                    [block.sequences.response(i) for i in range(len(block))], skip_special_tokens=True
                )
                answers |= dict(zip(block.seeds.tolist(), texts, strict=True))
                report(len(answers), {})
    finally:
        engines.stop()
        placement.free()
    return [answers[i] for i in range(len(prompts))]
