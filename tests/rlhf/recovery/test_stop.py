"""Requests to stop: time limits by an injected clock, signals with real ones in a real process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rlhf.config.schema import CheckpointConfig
from rlhf.errors import RLHFError, Stopped, Unsaved, UserError
from rlhf.recovery.stop import SAME_SECONDS, StopRequest, before_the_start

CHILD = """
import ctypes, os, signal, sys, time
from rlhf.config.schema import CheckpointConfig
from rlhf.recovery.stop import StopRequest

def show(text):
    os.write(1, (text + "\\n").encode())

signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
before = [signal.getsignal(s) for s in numbers]
stop = StopRequest(CheckpointConfig(), started=0.0, clock=lambda: 42.0, environment={})
stop.notice = show
try:
    with stop.install():
        print("ready", stop.reason(), flush=True)
        while stop.reason() is None:
            time.sleep(0.01)
        print(stop.reason(), stop.requested_at, flush=True)
        while sys.argv[1] in ("stay", "nohup"):
            time.sleep(0.01)
        if sys.argv[1] == "stuck":
            mutex = ctypes.create_string_buffer(64)
            for _ in range(2):  # the second waits for ever, and no signal ends it
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
    assert [signal.getsignal(s) for s in numbers[:2]] == before[:2]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN is signal.getsignal(signal.SIGUSR1)
    for each in (signal.SIGHUP, signal.SIGUSR1):
        os.kill(os.getpid(), each)  # repeated, they do not kill a command that is ending
    print("restored", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)  # as before the block: it ends the process
    time.sleep(60)
finally:
    print("clean-up", flush=True)
"""

Child = subprocess.Popen[str]
NOTICE = "stopping within 120 s; a second one stops at once"


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    """A process that waits for a request to stop and then leaves the block, or stays in it; ready."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, request.param], stdout=subprocess.PIPE, text=True)
    assert said(process) == "ready None"
    yield process
    process.kill()
    process.communicate(timeout=30)


def said(process: Child) -> str:
    """The next line of its output."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("child", ["leave"], indirect=True)
def test_the_first_signal_is_a_request_and_handlers_are_restored(child: Child, number: signal.Signals) -> None:
    child.send_signal(number)
    assert said(child) == f"{number.name}: {NOTICE}"
    assert said(child) == f"{number.name} 42.0"
    assert said(child) == "restored"
    assert child.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.parametrize("child", ["stay"], indirect=True)
def test_a_request_that_may_be_repeated_ends_no_process_at_once(child: Child) -> None:
    """Hooks of a cluster send it, several at once; SIGTERM may come before or after it, and counts by itself."""
    child.send_signal(signal.SIGUSR1)
    assert said(child) == f"SIGUSR1: {NOTICE}"
    assert said(child) == "SIGUSR1 42.0"
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        time.sleep(0.1)
        child.send_signal(number)
    time.sleep(SAME_SECONDS + 0.1)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=30) == 128 + signal.SIGTERM


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("child", ["stay"], indirect=True)
def test_the_second_signal_ends_the_process_at_once(
    child: Child, first: signal.Signals, second: signal.Signals
) -> None:
    child.send_signal(first)
    assert said(child) == f"{first.name}: {NOTICE}"
    assert said(child) == f"{first.name} 42.0"
    time.sleep(SAME_SECONDS + 0.1)  # sooner it would be the same request
    child.send_signal(second)
    assert child.wait(timeout=30) == 128 + second
    assert said(child) == ""  # no clean-up


@pytest.mark.parametrize("child", ["stuck"], indirect=True)
def test_the_second_signal_ends_also_a_process_that_is_stuck_in_native_code(child: Child) -> None:
    child.send_signal(signal.SIGTERM)
    assert said(child) == f"SIGTERM: {NOTICE}"
    assert said(child) == "SIGTERM 42.0"
    while child.poll() is None:  # those that come at once after the first are taken for the same request
        child.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert child.returncode == 128 + signal.SIGINT
    assert said(child) == ""


@pytest.mark.parametrize("child", ["stay"], indirect=True)
def test_signals_that_come_together_are_one_request(child: Child) -> None:
    """``timeout`` sends its signal to the command and to its process group, which is the same process."""
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    assert said(child).endswith(NOTICE) and said(child) in ("SIGTERM 42.0", "SIGINT 42.0")
    time.sleep(SAME_SECONDS + 0.1)
    assert child.poll() is None


@pytest.mark.parametrize("child", ["stay"], indirect=True)
def test_a_closed_terminal_asks_for_a_stop_and_never_insists(child: Child) -> None:
    """The shell and the kernel send SIGHUP each, and a session's end SIGTERM too: the checkpoint is still written."""
    child.send_signal(signal.SIGHUP)
    assert said(child) == f"SIGHUP: {NOTICE}"
    assert said(child) == "SIGHUP 42.0"
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        time.sleep(SAME_SECONDS + 0.1)
        child.send_signal(number)
    time.sleep(SAME_SECONDS + 0.1)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)  # the second one
    assert child.wait(timeout=30) == 128 + signal.SIGTERM


@pytest.mark.parametrize("child", ["nohup"], indirect=True)
def test_a_run_that_was_detached_from_its_terminal_outlives_it(child: Child) -> None:
    child.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert said(child) == f"SIGTERM: {NOTICE}"


def request(
    now: float, limit: float | None = None, slurm: str | None = None, before: float = 300.0, started: float = 10_000.0
) -> StopRequest:
    config = CheckpointConfig(time_limit_seconds=limit, before_deadline=before)
    environment = {} if slurm is None else {"SLURM_JOB_END_TIME": slurm}
    return StopRequest(config, started=started, clock=lambda: now, environment=environment)


def test_without_a_limit_there_is_no_deadline() -> None:
    stop = request(now=10_000_000.0)
    assert stop.deadline is None and stop.reason() is None
    assert request(now=10_000_000.0, slurm="").deadline is None


@pytest.mark.parametrize(
    ("limit", "slurm", "now", "left", "reason"),
    [
        (3600.0, None, 10_000.0, 3600.0, None),
        (3600.0, None, 13_299.0, 301.0, None),
        (3600.0, None, 13_300.0, 300.0, "300 s before the time limit"),
        (3600.0, None, 13_480.0, 120.0, "120 s before the time limit"),
        (3600.0, None, 13_660.0, -60.0, "60 s after the time limit"),
        (None, "12000", 11_699.0, 301.0, None),
        (None, "12000", 11_700.0, 300.0, "300 s before the time limit"),
        (3600.0, "12000", 11_800.0, 200.0, "200 s before the time limit"),  # SLURM's end is the nearer
        (1000.0, "12000", 10_800.0, 200.0, "200 s before the time limit"),  # the recipe's is
    ],
)
def test_the_nearest_limit_is_the_reason_to_stop(
    limit: float | None, slurm: str | None, now: float, left: float, reason: str | None
) -> None:
    stop = request(now, limit, slurm)
    assert stop.deadline == left
    assert stop.reason() == reason


def test_a_limit_gives_the_time_up_to_it_and_a_signal_the_grace_period() -> None:
    """Five seconds of it are left for the scheduler; no limit takes more than there is of a grace period."""
    grace = CheckpointConfig().grace_seconds
    assert request(now=10_000_000.0).grace == grace
    assert request(now=10_000.0, limit=3600.0 + grace).grace == 3595.0 + grace
    assert request(now=13_660.0, limit=3600.0).grace == grace
    asked = request(now=10_000.0, limit=3600.0 + grace)
    asked.requested = "SIGTERM"
    assert asked.grace == grace


def test_an_end_of_job_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="SLURM_JOB_END_TIME is 'soon'"):
        request(now=0.0, slurm="soon")


def test_after_the_grace_period_the_outcome_is_what_was_saved() -> None:
    """Exit code 75 promises that the last snapshot is on the disk."""
    stop, missing = request(now=10_000_000.0), list[str]()
    stop.requested, stop.unsaved = "SIGTERM", lambda: missing[-1] if missing else None
    assert isinstance(stop.outcome(120.0), Stopped)
    missing.append("the checkpoint after step 7 is not complete")
    outcome = stop.outcome(120.0)
    assert isinstance(outcome, Unsaved) and outcome.exit_code == 3
    assert str(outcome) == (
        "stopped on request (SIGTERM), but the checkpoint after step 7 is not complete, and the 120 s for it have "
        "passed."
    )


@pytest.mark.parametrize(("missing", "code"), [("", 75), ("step 7 is not complete", 3)])
def test_a_stop_that_takes_too_long_ends_with_the_code_of_what_was_saved(missing: str, code: int) -> None:
    child = [sys.executable, "-c", LATE, missing]
    process = subprocess.Popen(child, stdout=subprocess.PIPE, text=True)
    assert said(process) == "ready"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == code


LATE = """
import sys, time
from rlhf.config.schema import CheckpointConfig
from rlhf.recovery.stop import StopRequest
stop = StopRequest(CheckpointConfig(grace_seconds=0.3), started=0.0, clock=time.time, environment={})
stop.unsaved = lambda: sys.argv[1] or None
with stop.install():
    print("ready", flush=True)
    time.sleep(60)
    time.sleep(60)
"""


NATIVE = """
import ctypes, os, time
from rlhf.config.schema import CheckpointConfig
from rlhf.recovery.last_resort import LastResort
from rlhf.recovery.stop import StopRequest
resort = LastResort()
resort.show = lambda text: os.write(1, f"{text}\\n".encode())
stop = StopRequest(CheckpointConfig(grace_seconds=0.3), 0.0, time.time, {}, resort)
with stop.install():
    print("ready", flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second waits for ever, and no signal ends it
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_stop_while_the_main_thread_is_in_native_code_names_its_signal() -> None:
    process = subprocess.Popen([sys.executable, "-c", NATIVE], stdout=subprocess.PIPE, text=True)
    assert said(process) == "ready"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert said(process).startswith("stopped on request (SIGTERM)")
    assert process.wait(timeout=30) == 75


def test_a_stopped_run_says_where_it_goes_on() -> None:
    error = Stopped("SIGTERM", "runs/a/ppo/checkpoints/step_40")
    assert isinstance(error, RLHFError) and error.exit_code == 75
    assert str(error) == (
        "stopped on request (SIGTERM); the last checkpoint is runs/a/ppo/checkpoints/step_40, the same command resumes "
        "from it"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_that_there_is_no_checkpoint_is_only_said_of_a_stage_that_was_looked_at() -> None:
    error = Stopped("SIGTERM", stage="ppo")
    assert str(error) == (
        "stopped on request (SIGTERM); no checkpoint of the ppo stage exists yet, the same command starts that stage "
        "again"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "no checkpoint" not in str(Stopped("SIGTERM")) and "or resumes from its last" in str(Stopped("SIGTERM"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_before_the_start_ends_the_command_and_says_nothing_of_checkpoints(number: signal.Signals) -> None:
    before = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(Stopped) as stopped, before_the_start():
            os.kill(os.getpid(), number)  # the handler runs on return
        assert (stopped.value.why, stopped.value.commit, stopped.value.stage) == (number.name, "", "")
        assert signal.getsignal(number) is signal.SIG_IGN, "the command ends, whatever is sent now"
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_before_the_start_a_detached_command_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with before_the_start():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
