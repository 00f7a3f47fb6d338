"""Deadlines: hangs and crashes are reported by name, and delay no other question."""

from __future__ import annotations

import subprocess
import sys
import threading

from launch.doctor.asking import TimedCall, answer, answers
from launch.doctor.findings import Fault


def crash() -> None:
    raise OSError("Stale file handle\nand more")


def test_one_that_hangs_and_one_that_crashes_beside_one_that_answers() -> None:
    never = threading.Event()
    told = answers(
        {
            "hangs": TimedCall(ask=never.wait, seconds=0.2),
            "crashes": TimedCall(ask=crash, seconds=30),
            "answers": TimedCall(ask=lambda: 42, seconds=30),
        }
    )
    never.set()
    assert told == {
        "hangs": Fault(reason="no answer within 0 s"),
        "crashes": Fault(reason="OSError: Stale file handle"),
        "answers": 42,
    }


def test_an_answer_may_be_none() -> None:
    assert answer(lambda: None, 30) is None


def test_what_hangs_does_not_keep_the_process_from_ending() -> None:
    code = "import time; from launch.doctor.asking import answer; print(answer(lambda: time.sleep(600), 1).reason)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "no answer within 1 s\n"
