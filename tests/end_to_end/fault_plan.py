"""A plan of faults, each at a phase of a step, and the marks by which a run's processes know what has happened.

The plan is in the environment variable ``FAULT_PLAN``, the path of the marks' folder in ``FAULT_MARKS``. Faults happen
one after another: each at the first entry of its phase after the run has recovered from the one before.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from rlhf.storage.jsonl import append_line, read_lines

PLAN, MARKS = "FAULT_PLAN", "FAULT_MARKS"
CONTROLLER = "controller"
KILL, STOP, MEMORY, DEVICE, ASK = "SIGKILL", "SIGSTOP", "memory", "device", "SIGTERM"
"""Faults. MEMORY: two actors are killed at once, and Ray's error is that of its memory monitor. DEVICE: a CUDA error is
raised. In the controller, MEMORY and DEVICE are exceptions of its own code. ASK is for the controller alone."""
START, ROLLOUT, SCORE, UPDATE, RESTORE, SAVE = "start", "rollout", "score", "update", "restore", "save"
PHASES = (
    *(START, ROLLOUT, SCORE, "advantages", UPDATE, "publish", "judge", "snapshot", "checkpoint", RESTORE),
    SAVE,
)
"""In the order in which they come; ``restore`` is entered after another fault only, which is done first."""
MEMBERS: Mapping[str, tuple[str, ...]] = {
    "policy": ("policy rank 0", "policy rank 1"),
    "critic": ("critic rank 0",),
    "reference": ("reference rank 0",),
    "reward": ("reward e rank 0",),
    "judge": ("judge rank 0",),
    "engine": ("rollout engine 0",),
}
"""Names of the actors of each role, as the supervisor has them."""
INSIDE: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "policy": {
        START: (1, "build"),
        SCORE: (1, "logprobs"),
        "advantages": (0, "assemble"),
        UPDATE: (1, "update"),
        "publish": (0, "chunk"),
        "snapshot": (1, "snapshot"),
        RESTORE: (1, "restore"),
        SAVE: (1, "save"),
    },
    "critic": {
        START: (0, "build"),
        SCORE: (0, "values"),
        UPDATE: (0, "update"),
        "snapshot": (0, "snapshot"),
        RESTORE: (0, "restore"),
    },
    "reference": {START: (0, "build"), SCORE: (0, "logprobs")},
    "reward": {START: (0, "build"), SCORE: (0, "scores")},
    "judge": {START: (0, "build"), "judge": (0, "scores")},
    "engine": {START: (0, "build"), ROLLOUT: (0, "generate"), "publish": (0, "chunk"), "judge": (0, "generate")},
}
"""Role → phases in which it works → the rank to which a fault happens, and the method inside which it does. In its
other phases a role is idle: the fault happens to its last rank when the phase is entered."""
ANY = "any"
"""Method of an order that is carried out in the actor's next work, whatever that is."""
SCORE_SECONDS = 60.0
"""How long an actor that scores waits for its phase, so that the fault happens in that and not in the rollout."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A planned fault: it happens to ``role`` in ``phase`` of the first step from ``step`` on that comes to it."""

    role: str
    phase: str
    fault: str
    step: int = 1

    @property
    def member(self) -> str:
        """The actor that it happens to."""
        return MEMBERS[self.role][self.inside[0] if self.inside else -1]

    @property
    def inside(self) -> tuple[int, str] | None:
        """Rank and method if the role works in this phase."""
        return INSIDE[self.role].get(self.phase)

    @property
    def entry(self) -> str:
        """The phase at whose entry the fault happens or is ordered: scoring begins while others are generated."""
        return ROLLOUT if self.phase == SCORE and self.role != CONTROLLER and self.inside else self.phase


@dataclass(frozen=True, kw_only=True)
class Strike:
    """A fault that happened: the number of its aim, to whom, and when (seconds of ``time.time``).

    ``opens``: it only makes the run restore itself, for an aim at that phase.
    """

    aim: int
    time: float
    members: tuple[str, ...]
    processes: tuple[int, ...]
    opens: bool = False


@dataclass(frozen=True, kw_only=True)
class Order:
    """A fault that an actor does to itself in ``method``; if ``phase`` is set, once the run has come to that phase.

    ``also`` are actors, by name with their processes, that are killed with it.
    """

    aim: int
    fault: str
    method: str
    phase: str = ""
    also: Mapping[str, int]


class Marks:
    """Files by which the processes of a run, and of the commands after it, know which faults have happened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._strikes, self._whole, self._phase = folder / "strikes.jsonl", folder / "whole.jsonl", folder / "phase"

    @classmethod
    def of_environment(cls) -> Self:
        return cls(Path(os.environ[MARKS]))

    def strikes(self) -> list[Strike]:
        rows = read_lines(self._strikes)
        return [Strike(**{**row, **{name: tuple(row[name]) for name in ("members", "processes")}}) for row in rows]

    def struck(self, strike: Strike) -> None:
        """Record a fault, just before it happens."""
        append_line(self._strikes, asdict(strike))

    def whole(self) -> dict[int, float]:
        """When the run had recovered from each fault, by the number of its aim."""
        rows = read_lines(self._whole)
        return {int(row["aim"]): float(row["time"]) for row in reversed(rows)}

    def is_whole_since(self, aim: int) -> None:
        append_line(self._whole, {"aim": aim, "time": time.time()})

    def enter(self, phase: str) -> None:
        partial = self._phase.with_suffix(".partial")
        partial.write_text(phase)
        partial.replace(self._phase)

    def has_come_to(self, phase: str, seconds: float = SCORE_SECONDS) -> bool:
        """Whether the run comes to this phase in so many seconds."""
        end = time.monotonic() + seconds
        while self._phase.read_text() != phase:
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def give(self, member: str, order: Order) -> None:
        """Order an actor to do a fault to itself."""
        partial = self.folder / "order.partial"
        partial.write_text(json.dumps(asdict(order)))
        partial.replace(self._order(member))

    def orders(self) -> list[Order]:
        """Those that are not carried out."""
        return [Order(**json.loads(path.read_text())) for path in self.folder.glob("order-*.json")]

    def take(self, member: str, methods: Iterable[str]) -> Order | None:
        """Take an actor's order if it is to be carried out in one of these methods, and the run is in its phase."""
        path = self._order(member)
        if not path.exists():
            return None
        order = Order(**json.loads(path.read_text()))
        if order.method not in methods or (order.phase and not self.has_come_to(order.phase)):
            return None
        path.unlink()
        return order

    def cancel(self) -> None:
        """Cancel all orders: the actors of a command that has ended are gone."""
        for path in self.folder.glob("order-*.json"):
            path.unlink()

    def _order(self, member: str) -> Path:
        return self.folder / f"order-{member.replace(' ', '-')}.json"


def to_environment(plan: Sequence[Aim], folder: Path) -> dict[str, str]:
    """Environment variables of a run to which these faults happen; ``folder`` exists."""
    return {PLAN: json.dumps([asdict(aim) for aim in plan]), MARKS: str(folder)}


def plan_of_environment() -> list[Aim]:
    rows: list[dict[str, Any]] = json.loads(os.environ[PLAN])
    return [Aim(**row) for row in rows]
