"""The matrix of faults as a part of a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.end_to_end.campaign import Result
from tests.end_to_end.director import STOPPED_SECONDS
from tests.end_to_end.fault_plan import DEVICE, KILL, MEMORY, PHASES, STOP

BEGIN = "<!-- The matrix: written by tests/end_to_end/matrix.py. -->"
END = "<!-- The end of the matrix. -->"
FAULT_NAMES: Mapping[str, str] = {
    KILL: "SIGKILL",
    STOP: "SIGSTOP",
    MEMORY: "memory monitor",
    DEVICE: "device error",
}
ROLE_NAMES: Mapping[str, str] = {"judge": "held-out scorer", "engine": "rollout engine"}
"""Of those whose name in the code is another."""
INTRODUCTION = f"""## Every role, phase and fault

Each cell is one fault to one role in one phase of a PPO run of policy (two ranks), critic, reference, a reward
function, a held-out scorer and one vLLM engine. A run has up to some thirty of them, each after it had recovered from
the one before. Where the role works in the phase, the fault happens in its process, inside that work: while it
loads, in the middle of a generation, between two chunks of weights. Where it is idle, or has no work yet, as the roles
that score have none when a rollout begins, the fault happens when the run enters the phase. `restore` is a fault during
the recovery from another one: the critic, or for the critic a rank of the policy, was killed before. `judge` is the
held-out evaluation, `save` the saving of the best policy after it.

A number is the seconds until the actor was replaced. An idle actor is missed when it is used next, so that its seconds
contain the work until then; with SIGSTOP, they contain the deadline. "exit 3; 20" is the exit code that
[failures.md](failures.md) states, and the seconds until the same command, given again, had all actors; "killed; 20" is
the same for a controller that was killed. A dash: nobody needed the actor any more. A run passes if it ends with exit
code 0, each step recorded once with all of its samples, and its model saved.

"memory monitor": two actors, this one and one of the next role, are killed at the same time, and the error that the
controller gets from Ray is replaced by that of Ray's memory monitor. The monitor itself kills actors in
`tests/end_to_end/test_survival.py`; it chooses them, so that it cannot be aimed. "device error": a CUDA error is raised
in the actor's next work; there is no GPU here. The controller uses no device, and Ray's monitor does not kill it: it
raises an unexpected error, or a `MemoryError`. With SIGSTOP it is stopped for {STOPPED_SECONDS} s and then continued.
"""

Rows = dict[tuple[str, str], dict[str, Result]]
"""Role and fault → results by phase; phases that were not tried are missing."""


def section(summary: str, tables: Mapping[str, Rows]) -> str:
    """The whole part: introduction, summary, a table for each setting, and what failed."""
    parts = [INTRODUCTION, summary + "\n"]
    for title, rows in tables.items():
        parts.append(f"### {title}\n\n{table(rows)}")
        failed = [line for row in rows.items() for line in failures(*row)]
        if failed:
            parts.append("Failed:\n\n" + "\n".join(failed) + "\n")
    return "\n".join(parts)


def table(rows: Rows) -> str:
    lines = [f"| role | fault | {' | '.join(PHASES)} |", "|---" * (2 + len(PHASES)) + "|"]
    for (role, fault), cells in rows.items():
        shown = " | ".join(cell(cells.get(phase)) for phase in PHASES)
        lines.append(f"| {ROLE_NAMES.get(role, role)} | {FAULT_NAMES[fault]} | {shown} |")
    return "\n".join(lines) + "\n"


def cell(result: Result | None) -> str:
    """Seconds, the stated exit, a failure, or that it was not tried."""
    if result is None:
        return "not run"
    if not result.passed:
        return "**failed**"
    seconds = "–" if result.seconds is None else f"{result.seconds:.1f}"
    if not result.code:
        return seconds
    return f"{'killed' if result.code < 0 else f'exit {result.code}'}; {seconds}"


def failures(row: tuple[str, str], cells: Mapping[str, Result]) -> list[str]:
    """A line for each phase that failed."""
    role, fault = row
    return [
        f"- {ROLE_NAMES.get(role, role)}, {FAULT_NAMES[fault]}, {phase}: {' '.join(result.why.split())}"
        for phase, result in cells.items()
        if not result.passed
    ]


def insert(page: Path, text: str) -> None:
    """Put the part into a page, in place of what it had of it, or at its end."""
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    head, begins, rest = old.partition(BEGIN)
    tail = rest.partition(END)[2].lstrip("\n") if begins else ""
    parts = [part for part in (head.rstrip("\n"), f"{BEGIN}\n\n{text.strip()}\n\n{END}", tail.rstrip("\n")) if part]
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
