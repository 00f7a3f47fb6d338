from __future__ import annotations

import subprocess
import sys

import pytest

from rlhf.tracking.memory import ActorMemory, by_role, memory_here


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("policy rank 0", "policy"),
        ("rollout engine 12", "rollout"),
        ("reward model rank 1", "reward_model"),
        ("reward my-judge.v2 rank 0", "reward_my_judge_v2"),
        ("judge rank 0", "judge"),
    ],
)
def test_a_role_is_part_of_a_metrics_name(name: str, role: str) -> None:
    assert by_role({name: ActorMemory(host=2.0, peak=None)}) == {f"memory/{role}_host_gib": 2.0}


def test_host_memory_is_that_of_all_ranks_and_the_peak_that_of_the_fullest() -> None:
    found = {
        "policy rank 0": ActorMemory(host=2.0, peak=5.0),
        "policy rank 1": ActorMemory(host=3.0, peak=4.0),
        "rollout engine 0": ActorMemory(host=1.5, peak=None),
    }
    assert by_role(found) == {"memory/policy_host_gib": 5.0, "memory/policy_gib": 5.0, "memory/rollout_host_gib": 1.5}


def test_a_process_and_its_children_are_measured() -> None:
    hold = (
        "import sys; held = bytearray(200 * 2**20); held[::4096] = b'x' * len(held[::4096]); print(flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        alone, both = memory_here(), memory_here((child.pid,))
    finally:
        child.kill()
        child.wait()
    assert both.host - alone.host > 0.19
    assert alone.peak is not None and both.peak is not None
    assert alone.peak >= 0.9 * alone.host > 0
    assert both.peak - alone.peak > 0.19


def test_a_child_that_is_gone_holds_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert memory_here((child.pid,)).host == pytest.approx(memory_here().host, rel=0.2)
