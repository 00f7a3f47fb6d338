"""Reads a run's state from a job's log: progress lines hold the steps' numbers, others are shown as they are."""

from __future__ import annotations

import re
from collections import deque

from launch.watch.follow import Recent, Row
from launch.watch.view import NUMBERS, RunView
from rlhf.tracking.console import one_line

KEPT_LINES, KEPT_STEPS = 400, 512
LONGEST_LINE = 4000
TITLES = {"SFT": "sft", "Reward model": "reward", "DPO": "dpo", "PPO": "ppo"}
"""Beginning of a progress line → its stage."""
_PROGRESS = re.compile(
    rf"({'|'.join(TITLES)})  (\d+)/(\d+)  (.*?)  ((?:\d+:)?\d+:\d\d) passed, ((?:\d+:)?\d+:\d\d|\?) left"
)
_NUMBER = re.compile(r"(.+) ([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)


class JobLog:
    """The log of a job so far. It may be added in pieces of any size."""

    def __init__(self, job: str, address: str) -> None:
        self.job, self.address = job, address
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._rows: deque[Row] = deque(maxlen=KEPT_STEPS)
        self._total, self._steps_total, self._rest = 0, 0, ""
        self._stage = ""
        self._steps: int | None = None
        self._left: float | None = None
        self._finished: tuple[str, ...] = ()

    def add(self, text: str) -> None:
        """Add new output."""
        *lines, self._rest = (self._rest + text).split("\n")
        self._rest = self._rest[-LONGEST_LINE:]
        for line in lines:
            self._add_line(clean_line(line))

    def view(self) -> RunView:
        """The state of the run according to the log."""
        return RunView(
            title=self.job,
            source=self.address,
            stage=self._stage,
            finished=self._finished,
            done=int(self._rows[-1]["step"]) + 1 if self._rows else 0,
            steps=self._steps,
            seconds_left=self._left,
            metrics=Recent(items=tuple(self._rows), total=self._steps_total),
            log=self.lines(),
        )

    def lines(self) -> Recent[str]:
        """The last lines."""
        return Recent(items=tuple(self._lines), total=self._total)

    def _add_line(self, line: str) -> None:
        if not line:
            return
        self._lines.append(line)
        self._total += 1
        if found := _PROGRESS.fullmatch(line):
            self._add_step(*found.groups())

    def _add_step(self, title: str, done: str, steps: str, numbers: str, passed: str, left: str) -> None:
        if TITLES[title] != self._stage:
            self._finished += (self._stage,) if self._stage else ()
            self._stage = TITLES[title]
            self._rows.clear()
        self._steps, self._left = int(steps), None if left == "?" else _seconds(left)
        pairs = [found.groups() for part in numbers.split("  ") if (found := _NUMBER.fullmatch(part))]
        values = {NUMBERS.get(name, name): float(value) for name, value in pairs}
        self._rows.append({"step": int(done) - 1, **values})
        self._steps_total += 1


def clean_line(line: str) -> str:
    """A line without control characters and colours; runs of spaces are kept, because they separate columns."""
    plain = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", line[:LONGEST_LINE]).rstrip()
    return "  ".join(filter(None, map(one_line, plain.split("  "))))


def _seconds(text: str) -> float:
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return float(total)
