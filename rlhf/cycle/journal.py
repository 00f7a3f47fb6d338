"""The journal of a cycle: one line for each begin, wait and end of a step. It only grows.

A step is finished if its newest end has the digest of its present inputs. A killed step has a begin without an end; the
same command then does it again, and every step is written so that this changes nothing that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.storage.jsonl import append_line, read_lines
from rlhf.storage.reading import damaged

JOURNAL = "journal.jsonl"


class CycleStep(StrEnum):
    """Steps in their order."""

    START = "start"
    """Find the model that a round improves; in round 0, which has no other step, the cycle's first model."""
    SAMPLE = "sample"
    LABEL = "label"
    REWARD = "reward"
    PPO = "ppo"
    ANSWER = "answer"
    """Candidate and production answer the held-out prompts."""
    COMPARE = "compare"
    """People compare these answers."""
    EVALUATE = "evaluate"
    REGISTER = "register"
    GATE = "gate"
    PROMOTE = "promote"
    """Into shadow if the gate passed. Its end is the end of the round."""


class StepState(StrEnum):
    """What a line says about its step."""

    BEGUN = "begun"
    WAITING = "waiting"
    """For people."""
    FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class JournalEntry:
    """One line."""

    time: float
    """Unix time in seconds."""
    round: int
    step: CycleStep
    state: StepState
    inputs: str
    """Digest of what the step's result depends on."""
    result: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    """``seconds`` of this machine, ``rater_minutes``, ``judge_calls``: those that the step has."""


class Journal:
    """A journal's file. One process writes to it at a time.

    Args:
        clock: Unix time in seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path, self._clock = path, clock

    def entries(self) -> tuple[JournalEntry, ...]:
        """All lines, oldest first.

        Raises:
            UserError: the file is damaged.
        """
        return read_journal(self.path)

    def add(
        self,
        round: int,
        step: CycleStep,
        state: StepState,
        inputs: str,
        result: Mapping[str, Any] | None = None,
        cost: Mapping[str, float] | None = None,
    ) -> None:
        """Append a line."""
        entry = JournalEntry(
            time=self._clock(), round=round, step=step, state=state, inputs=inputs, result=result or {}, cost=cost or {}
        )
        append_line(self.path, asdict(entry))


def read_journal(path: Path) -> tuple[JournalEntry, ...]:
    """All lines of a journal; none if there is no such file. Raises as ``Journal.entries``."""
    return tuple(_entry(path, number, row) for number, row in enumerate(read_lines(path), start=1))


def _entry(path: Path, number: int, row: Mapping[str, Any]) -> JournalEntry:
    try:
        step, state = CycleStep(row["step"]), StepState(row["state"])
        if not (isinstance(row["result"], dict) and isinstance(row["cost"], dict)):
            raise TypeError("result and cost are objects")
        return JournalEntry(
            time=float(row["time"]),
            round=int(row["round"]),
            step=step,
            state=state,
            inputs=str(row["inputs"]),
            result=row["result"],
            cost={str(name): float(value) for name, value in row["cost"].items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        fix = "restore the file, or remove the line: its step is then done again"
        raise damaged(path, f"has no step of a cycle in line {number}: {error}", fix) from error


def last_end(entries: Sequence[JournalEntry], round: int, step: CycleStep, inputs: str = "") -> JournalEntry | None:
    """The newest end of a step; with ``inputs``, only if it had these."""
    ends = [e for e in entries if (e.round, e.step, e.state) == (round, step, StepState.FINISHED)]
    return ends[-1] if ends and inputs in ("", ends[-1].inputs) else None


def has_other_attempt(entries: Sequence[JournalEntry], round: int, step: CycleStep, inputs: str) -> bool:
    """Whether the newest attempt at a step had other inputs, so that its output is not of these."""
    lines = [entry for entry in entries if (entry.round, entry.step) == (round, step)]
    return bool(lines) and lines[-1].inputs != inputs


def open_round(entries: Sequence[JournalEntry]) -> int:
    """Number of the first round that is not finished."""
    return 1 + max(
        (e.round for e in entries if e.step is CycleStep.PROMOTE and e.state is StepState.FINISHED), default=0
    )


def starting_policy(entries: Sequence[JournalEntry], round: int, withdrawn: Iterable[str]) -> Path:
    """Folder of the model that a new round improves: the candidate of the newest earlier round whose gate passed and
    that is not withdrawn, or the cycle's first model.

    Args:
        withdrawn: digests of artefacts that were found bad later.

    Raises:
        UserError: the journal has no first model.
    """
    bad = set(withdrawn)
    for number in range(round - 1, 0, -1):
        gate, trained = (last_end(entries, number, step) for step in (CycleStep.GATE, CycleStep.PPO))
        if gate and trained and gate.result["outcome"] == "pass" and gate.result["artefact"] not in bad:
            return Path(trained.result["model"])
    start = last_end(entries, 0, CycleStep.START)
    if start is None:
        raise UserError("the journal has no first model", fix="give `rlhf cycle` with its recipe again")
    return Path(start.result["model"])
