"""Tests of the end of a process in its main thread's place: exit code and record tell what is true at that time."""

from __future__ import annotations

import subprocess
import sys
import time
from queue import SimpleQueue
from typing import NoReturn

import pytest

from rlhf.errors import ClusterError, MachineryError, RLHFError, Stopped
from rlhf.recovery import last_resort
from rlhf.recovery.last_resort import LastResort


class Ended:
    """A last resort whose process does not end: what it would have ended with, shown and recorded."""

    def __init__(self) -> None:
        self.codes, self.shown, self.recorded = SimpleQueue[int](), list[str](), list[RLHFError]()
        self.resort = LastResort(self.codes.put)
        self.resort.show, self.resort.record = self.shown.append, self.record

    def record(self, error: RLHFError) -> RLHFError:
        self.recorded.append(error)
        return Stopped("SIGTERM", "step_4") if isinstance(error, Stopped) else error

    def code(self) -> int:
        return self.codes.get(timeout=30)


def test_the_error_is_that_of_the_end_and_is_recorded_and_shown() -> None:
    ended, errors = Ended(), list[RLHFError]()
    ended.resort.end_within(0.2, lambda: errors[-1])
    errors += [MachineryError("not complete"), Stopped("SIGTERM")]
    assert ended.code() == 75
    assert ended.recorded == errors[1:]
    assert ended.shown == [str(Stopped("SIGTERM", "step_4"))], "as its stage has recorded it"


@pytest.mark.parametrize("first_is_earlier", [True, False])
def test_of_several_ends_the_earliest_counts(first_is_earlier: bool) -> None:
    ended, begin = Ended(), time.monotonic()
    ends = [(0.2, ClusterError("no raylet")), (60.0, Stopped("SIGTERM"))]
    for seconds, error in ends if first_is_earlier else reversed(ends):
        ended.resort.end_within(seconds, lambda error=error: error)  # type: ignore[misc]
    assert ended.code() == 3 and time.monotonic() - begin < 30
    assert [str(error) for error in ended.recorded] == ["no raylet"]
    assert ended.codes.empty()


def test_a_failure_to_say_why_changes_nothing_about_the_end() -> None:
    def fails(error: RLHFError) -> NoReturn:
        raise OSError("the disk is gone")

    ended = Ended()
    ended.resort.record = fails
    ended.resort.end_within(0.0, lambda: Stopped("SIGTERM"))
    assert ended.code() == 75


def test_nobody_waits_for_a_disk_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known to be saved is not reported as saved."""
    monkeypatch.setattr(last_resort, "RECORD_SECONDS", 0.2)
    ended, begin = Ended(), time.monotonic()

    def reads_for_ever() -> RLHFError:
        time.sleep(20)
        return Stopped("SIGTERM")

    ended.resort.end_within(0.0, reads_for_ever)
    assert ended.code() == 3 and time.monotonic() - begin < 15


def test_the_process_ends_whatever_it_does() -> None:
    code = (
        "import time; from rlhf.errors import Stopped; from rlhf.recovery.last_resort import LastResort\n"
        "LastResort().end_within(0.1, lambda: Stopped('SIGTERM')); time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 75
