"""Does a round's steps one after another, each once, and writes the journal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.cycle.journal import CycleStep, Journal, StepState, has_other_attempt, last_end
from rlhf.errors import Waiting
from rlhf.storage.canonical import canonical_digest

WAITS = (CycleStep.LABEL, CycleStep.COMPARE)
"""Steps whose time is that of people."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What a step gave, as JSON values, and what it cost besides time."""

    result: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundSteps:
    """The steps of one round."""

    journal: Journal
    round: int
    say: Callable[[str], None]

    def take(
        self,
        step: CycleStep,
        inputs: Mapping[str, Any],
        make: Callable[[], object],
        read: Callable[[], StepOutcome],
        output: Path | None = None,
    ) -> Mapping[str, Any]:
        """Do a step, unless it is finished with these inputs; returns its result.

        Args:
            inputs: what the result depends on, as JSON values.
            make: does what is not done yet. It may be repeated after a kill at any moment.
            read: reads what ``make`` left.
            output: file or folder that ``make`` writes; what an attempt with other inputs left there is removed first.

        Raises:
            Waiting: people have to do something; the journal says so.
        """
        digest = canonical_digest(dict(inputs))
        entries = self.journal.entries()
        if (end := last_end(entries, self.round, step, digest)) is not None:
            return end.result
        if output is not None and has_other_attempt(entries, self.round, step, digest):
            _remove(output)
        self.say(f"round {self.round}: {step}" if self.round else str(step))
        self.journal.add(self.round, step, StepState.BEGUN, digest)
        begin = time.monotonic()
        try:
            make()
        except Waiting as wait:
            self.journal.add(self.round, step, StepState.WAITING, digest, {"what": wait.what, "fix": wait.fix})
            raise
        seconds, outcome = time.monotonic() - begin, read()
        cost = dict(outcome.cost)
        if step not in WAITS:
            cost["seconds"] = max(seconds, cost.get("seconds", 0.0))
        self.journal.add(self.round, step, StepState.FINISHED, digest, outcome.result, cost)
        return outcome.result


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)
