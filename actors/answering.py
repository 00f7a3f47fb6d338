"""Answers in text: for ``rlhf generate``, and before and after PPO for the comparison."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from actors.engines import Engines
from actors.placement import Placement
from actors.session import Session
from actors.supervisor import Supervisor
from actors.waiting import Moment
from rlhf.tracking.console import Report
from rlhf.types import Prompt


def answer(session: Session, folder: Path, prompts: Sequence[Prompt], logs: Path, shown: bool) -> list[str]:
    """One sampled answer of the folder's model to each prompt, in their order, by an engine started for it."""
    placement = Placement(session.recipe, session.device, "generate", session.gpus)
    supervisor = Supervisor(session.recipe, _unrecorded, session.check)
    engines = Engines(
        session.recipe,
        placement,
        folder,
        session.longest,
        session.end_tokens(folder),
        logs,
        supervisor,
        publishes=False,
    )
    try:
        engines.ready(prompts)
        with session.console.stage("Answers", len(prompts)) if shown else nullcontext(unseen) as report:
            return answers_of(engines, range(len(prompts)), folder, report)
    finally:
        engines.stop()
        placement.free()


def _unrecorded(kind: str, **details: object) -> None:
    """An event of a command that keeps no record: the supervisor has printed it, but for prompts without an answer."""
    if kind == "sample_set_aside":
        print(f"no answer to prompt {details['prompt']}: {details['reason']}", file=sys.stderr, flush=True)


def unseen(done: int, numbers: Mapping[str, float | str]) -> None:
    """A progress report that nobody sees."""


def answers_of(engines: Engines, chosen: Sequence[int], tokenizer: Path, report: Report) -> list[str]:
    """One sampled answer to each of the engines' chosen prompts, in their order, as text without special tokens.

    The seed of an answer is its place, so that two models' answers differ by the models alone. The answer to a prompt
    that was set aside is empty.

    Args:
        tokenizer: folder of the model whose tokens these are; the engines' own actors turn them into text.

    Raises:
        MachineryError: more than ``recovery.bad_samples`` of them have no answer.
    """
    moment, set_aside = Moment(phase="answers"), 0
    answers: dict[int, str] = {}
    for block, told in engines.generate(chosen, range(len(chosen)), moment):
        set_aside += engines.supervisor.set_aside(told.faults, set_aside, moment)
        answers |= engines.decode(tokenizer, block, moment) | dict.fromkeys(told.set_aside, "")
        report(len(answers), {})
    return [answers[i] for i in range(len(chosen))]
