"""``rlhf cycle``: samples, waits for votes, trains, compares, gates and registers, round after round.

The same command goes on after a stop, a kill, or a wait for votes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Overrides, RecipePath
from rlhf.errors import UserError
from rlhf.storage.folder_lock import FolderLock, LockedError
from rlhf.storage.write_errors import unwritable

if TYPE_CHECKING:
    from launch.cycle.plan import CyclePlan
    from rlhf.cycle.journal import Journal

PURPOSE = "rounds from votes to a candidate in shadow: sample, label, train, compare, gate, register"
EXAMPLE = "rlhf cycle examples/travel/cycle/recipe.yaml --wait 24"
LONGEST_HOURS = 24 * 365.0


def run(
    recipe: RecipePath,
    overrides: Overrides,
    wait: Annotated[
        float | None, typer.Option(metavar="HOURS", help="wait for votes up to so long; without it exit 75 at once")
    ] = None,
) -> int:
    """Run or continue the rounds; returns the exit code of the last round's gate: 0, 1 or 4.

    Raises:
        UserError: the recipe or what it names cannot be used, or another command runs this cycle.
        Waiting: people have to vote first.
    """
    from launch.cycle.plan import load_plan
    from launch.gate.command import EXIT_CODES
    from rlhf.cycle.journal import JOURNAL, Journal

    if wait is not None and not 0 < wait <= LONGEST_HOURS:
        raise UserError(f"--wait {wait:g}", "it is a number of hours", f"give one above 0, up to {LONGEST_HOURS:g}")
    plan = load_plan(recipe, overrides)
    with _locked(plan.root):
        journal = Journal(plan.root / JOURNAL, time.time)
        outcome = _run_rounds(plan, journal, wait)
    print(f"{plan.config.rounds} rounds are finished; the last gate: {outcome}")
    print(f"→ rlhf report {plan.root}")
    return EXIT_CODES[outcome]


def _run_rounds(plan: CyclePlan, journal: Journal, hours: float | None) -> str:
    """Run what is left of the rounds; returns the outcome of the last round's gate."""
    from launch.cycle.judging import judge_candidate
    from launch.cycle.round import Round, open_policy, start_cycle, train_candidate
    from launch.cycle.steps import RoundSteps
    from rlhf.cycle.journal import CycleStep, last_end, open_round

    while (number := open_round(journal.entries())) <= plan.config.rounds:
        start = start_cycle(plan, RoundSteps(journal=journal, round=0, say=_say))
        steps = RoundSteps(journal=journal, round=number, say=_say)
        round = Round(plan=plan, number=number, start=start, policy=open_policy(plan, steps), hours=hours)
        round.folder.mkdir(parents=True, exist_ok=True)
        judge_candidate(round, steps, train_candidate(round, steps))
    gate = last_end(journal.entries(), number - 1, CycleStep.GATE)
    assert gate is not None
    return str(gate.result["outcome"])


def _say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Context in which no other command runs this cycle.

    Raises:
        UserError: another one does, or the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FolderLock.take(root / ".cycle.lock", _say)
    except LockedError as error:
        fix = "wait for it, stop it, or give this cycle another name (name=...)"
        why = f"a step is done once, and it is in use by {error.holder}"
        raise UserError(f"another command runs the cycle in {root}", why, fix) from None
    except OSError as error:
        raise unwritable(root, error) from error
    try:
        sys.stdout.flush()
        yield
    finally:
        lock.release()
