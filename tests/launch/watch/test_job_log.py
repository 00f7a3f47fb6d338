"""A run's state from a job's log, as the command prints it without a terminal."""

from __future__ import annotations

import io

from launch.watch.job_log import JobLog
from launch.watch.lines import Lines
from launch.watch.view import history
from rlhf.tracking.console import Console


def log_of(*steps: int) -> str:
    """The command's own output."""
    out, now = io.StringIO(), iter(range(0, 1000, 10))
    with Console(out, clock=lambda: float(next(now))).stage("PPO", 8) as report:
        for step in steps:
            report(step, {"score": step / 4, "KL": 1e-7 * step, "held out": -0.5})
    return out.getvalue()


def test_the_progress_lines_hold_the_numbers() -> None:
    log = JobLog("job", "http://127.0.0.1:8265")
    text = "SFT  1/1  loss 2.5  0:05 passed, 0:00 left\nloading\n" + log_of(1, 2, 3)
    for i in range(0, len(text), 7):  # as it comes over a network
        log.add(text[i : i + 7])
    view = log.view()
    assert (view.stage, view.finished, view.done, view.steps) == ("ppo", ("sft",), 3, 8)
    assert view.seconds_left == 50.0
    assert history(view) == {"score": [0.25, 0.5, 0.75], "KL": [1e-7, 2e-7, 3e-7], "held out": [-0.5, -0.5, -0.5]}
    assert view.log.total == 5


def test_other_lines_are_shown_without_what_could_move_the_cursor() -> None:
    log = JobLog("job", "address")
    log.add("\x1b[1;31mred\x1b[0m  two  columns\x1b]0;t\x07\r\n\n   \nlast without its end")
    assert log.lines().items == ("red  two  columns]0;t",)


def test_lines_of_a_job_are_its_own() -> None:
    log, lines = JobLog("job", "address"), Lines()
    log.add("loading\n" + log_of(1))
    first = list(lines.new(log.view()))
    assert first[0] == "job: ppo (address), 1 of 8 steps done"
    assert first[1:] == ["loading", "PPO  1/8  score 0.25  KL 1e-07  held out -0.5  0:10 passed, 1:10 left"]
    log.add("saved\n")
    assert list(lines.new(log.view())) == ["saved"]
