"""Tests of causes derived from facts, with real messages of Ray 2.60, CPython, torch and vLLM."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf.recovery.diagnosis import ADVICE, Cause, diagnose
from rlhf.recovery.facts import Facts

RAY = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n\tpid: 13126\nThe actor is dead "
    "because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
)
ENDED = RAY + (
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the "
    "process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker "
    "crashed unexpectedly due to SIGSEGV or another unexpected error. If the process was killed by the kernel OOM "
    "killer (verifiable by checking for OOM in dmesg of the OOMing node), consider enabling resource isolation via "
    "--enable-resource-isolation to prevent node deaths by resource contention and significant loss of progress by "
    "uninformed kernel OOM killing."
)
ENDED_BEFORE = RAY + (
    "Worker unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) "
    "The process is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called. (3) The "
    "worker is crashed unexpectedly due to SIGSEGV or other unexpected errors."
)
MONITOR = "1 worker(s) were killed due to the node running low on memory. Memory on the node was 22.9GB / 24.0GB (0.95)"
SEGFAULT = "Fatal Python error: Segmentation fault\n\nThread 0x00007f (most recent call first):\n"
DEAD, IDLE = Facts(alive=False), Facts(alive=True, process_state="S")
WELL = replace(IDLE, heartbeat_age_seconds=1.0)
MUTE = replace(IDLE, heartbeat_age_seconds=118.0)


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        # The process is gone.
        (DEAD, Cause.SILENT),
        (replace(DEAD, exit_text=ENDED), Cause.SILENT),  # Ray names memory and SIGSEGV whatever happened
        (replace(DEAD, exit_text=ENDED_BEFORE), Cause.SILENT),  # so did older versions
        (replace(DEAD, exit_text=ENDED[: ENDED.index(" or another")]), Cause.SILENT),  # cut off within the list
        (replace(DEAD, exit_text=RAY[:-12]), Cause.SILENT),  # cut off before it
        (replace(DEAD, oom_kills_since_start=0, exit_text=ENDED), Cause.SILENT),
        (replace(DEAD, oom_kills_since_start=1, exit_text=ENDED), Cause.HOST_MEMORY),
        (replace(DEAD, oom_kills_since_start=2), Cause.HOST_MEMORY),
        (replace(DEAD, exit_text=MONITOR), Cause.MEMORY_MONITOR),
        (replace(DEAD, exit_text=MONITOR, oom_kills_since_start=1), Cause.MEMORY_MONITOR),  # the kernel's was another
        (replace(DEAD, exit_text="NodeDiedError: Task failed because the node it was on is dead"), Cause.NODE),
        (replace(DEAD, exit_text=ENDED + "\n" + SEGFAULT), Cause.CRASHED),
        (replace(DEAD, exit_text="Fatal Python error: Bus error\n\nThread 0x00007f"), Cause.SHARED_MEMORY),
        (replace(DEAD, exit_text="killed by SIGBUS"), Cause.SHARED_MEMORY),
        (replace(DEAD, exit_text="*** SIGABRT received at time=1700000000 on cpu 1 ***"), Cause.CRASHED),
        (
            replace(DEAD, exit_text=RAY + "Worker exits with an exit code 1. The process receives a SIGTERM."),
            Cause.KILLED,
        ),
        (replace(DEAD, exit_text="GLOO_SOCKET_IFNAME: lo\ncollective_rpc calls ['abort_receiving']"), Cause.UNKNOWN),
        (replace(DEAD, exit_text="died with <Signals.SIGKILL: 9>."), Cause.KILLED),
        (replace(DEAD, exit_text="exit code: -9"), Cause.KILLED),
        (replace(DEAD, exit_text=RAY + "Worker exits with an exit code 3."), Cause.UNKNOWN),
        (replace(DEAD, exit_text="The actor died because its node has died. Node Id: 5f"), Cause.NODE),
        (replace(DEAD, children_alive=False), Cause.SILENT),  # children go with their parent
        # It answered with an error.
        (
            replace(WELL, exit_text="lost in generate: vLLM failed: RuntimeError: Executor failed."),
            Cause.ENGINE,
        ),
        (
            replace(WELL, exit_text="vLLM failed: RuntimeError: Executor failed.", oom_kills_since_start=1),
            Cause.HOST_MEMORY,
        ),
        (replace(WELL, exit_text="[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]"), Cause.PEER),
        (
            replace(WELL, exit_text="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
            Cause.GPU_MEMORY,
        ),
        (replace(WELL, exit_text="MemoryError: Unable to allocate 8 GiB"), Cause.HOST_MEMORY),
        (replace(WELL, exit_text="ValueError: shapes (3,) and (4,)"), Cause.UNKNOWN),
        # It is there and does not answer.
        (replace(MUTE, process_state="T"), Cause.STOPPED),
        (replace(MUTE, process_state="T", oom_kills_since_start=3), Cause.STOPPED),  # somebody else was killed
        (replace(MUTE, process_state="D"), Cause.DISK),
        (replace(WELL, children_alive=False), Cause.ENGINE),
        (replace(MUTE, children_alive=False, oom_kills_since_start=1), Cause.HOST_MEMORY),
        (replace(MUTE, children_alive=True), Cause.STUCK),
        (MUTE, Cause.STUCK),
        (replace(MUTE, host_available_bytes=2, host_total_bytes=100), Cause.HOST_MEMORY),
        (replace(MUTE, host_available_bytes=4, host_total_bytes=100), Cause.STUCK),
        (WELL, Cause.BUSY),
        (replace(WELL, heartbeat_age_seconds=30.0), Cause.BUSY),
        (replace(WELL, heartbeat_age_seconds=30.5), Cause.STUCK),
        (replace(WELL, host_available_bytes=2, host_total_bytes=100), Cause.BUSY),
        (IDLE, Cause.UNKNOWN),
    ],
)
def test_the_likely_cause(facts: Facts, cause: Cause) -> None:
    assert diagnose(facts).cause is cause


def test_every_cause_comes_with_a_line_of_advice() -> None:
    assert set(ADVICE) == set(Cause)
    assert all(line and "\n" not in line for line in ADVICE.values())
    assert "phase_timeout_seconds" in diagnose(WELL).advice


def test_settings_that_advice_names_exist() -> None:
    from rlhf.config.schema import Recipe

    recipe = Recipe(name="x")
    for line in ADVICE.values():
        for word in line.replace(",", " ").replace(";", " ").replace("<role>", "policy").split():
            if word.startswith(("recovery.", "placement.", "rollout.", "model.")):
                value: object = recipe
                for key in word.split("."):
                    value = getattr(value, key)


def test_after_sigbus_the_free_shared_memory_is_told() -> None:
    facts = replace(DEAD, exit_text="killed by SIGBUS", shared_memory=(2**28, 2**32))
    assert diagnose(facts).advice.startswith("0.25 of 4.00 GiB of /dev/shm are free now: remove what")
    assert "free now" not in diagnose(replace(facts, exit_text="SIGSEGV")).advice
