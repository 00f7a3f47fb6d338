"""Generates answers as text: for ``rlhf generate``, and for the comparison before and after PPO."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from actors.engines import Engines
from actors.placement import Placement
from actors.session import Session
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.tracking.console import Report
from rlhf.types import Prompt


def answer(session: Session, folder: Path, prompts: Sequence[Prompt], logs: Path, shown: bool) -> list[str]:
    """Start engines with a folder's model, and return one sampled answer to each prompt, in their order."""
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
        with session.console.stage("Answers", len(prompts)) if shown else nullcontext(ignore_progress) as report:
            return answers_of(engines, range(len(prompts)), folder, report)
    finally:
        engines.stop()
        placement.release()


def _unrecorded(kind: str, **details: object) -> None:
    """Print quarantined prompts; the command records no events, and the supervisor prints failures itself."""
    if kind == "sample_set_aside":
        print(f"no answer to prompt {details['prompt']}: {details['reason']}", file=sys.stderr, flush=True)


def ignore_progress(done: int, numbers: Mapping[str, float | str]) -> None:
    """Progress report that shows nothing."""


def answers_of(engines: Engines, indices: Sequence[int], tokenizer_folder: Path, report: Report) -> list[str]:
    """Return a sampled answer to each of the engines' prompts at ``indices``, in this order, without special tokens.

    The seed of an answer is its position, so that answers of two models differ only because of the models. The answer
    to a quarantined prompt is empty.

    Args:
        tokenizer_folder: folder of the tokenizer with which the engines' actors decode.

    Raises:
        MachineryError: more than ``recovery.bad_samples`` prompts have no answer.
    """
    context, set_aside = PhaseContext(phase="answers"), 0
    answers: dict[int, str] = {}
    for block, summary in engines.generate(indices, range(len(indices)), context):
        set_aside += engines.supervisor.set_aside(summary.faults, set_aside, context)
        answers |= engines.decode(tokenizer_folder, block, context) | dict.fromkeys(summary.set_aside, "")
        report(len(answers), {})
    return [answers[i] for i in range(len(indices))]
