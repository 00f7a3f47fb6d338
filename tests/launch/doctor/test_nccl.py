"""NCCL's row from the outcome of its all-reduce; without a GPU, the same program with gloo."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.doctor.all_reduce import AllReducePlan, AllReduceResult, run_apart
from launch.doctor.findings import Fault
from launch.doctor.nccl import NCCL, check_across, check_nccl
from rlhf.ports import free_port

GOOD = AllReduceResult(ranks=8, seconds=0.001, bandwidth=400e9, version="2.29.7")
LATE = Fault(reason="no answer within 120 s")


def test_a_right_sum() -> None:
    found = check_nccl(NCCL(package="2.29.7", gpus=8, outcome=GOOD))
    assert (found.status, found.found) == ("ok", "NCCL 2.29.7: a sum over 8 GPUs is right, 400.0 GB/s")


def test_without_gpus_there_is_nothing_to_check() -> None:
    assert check_nccl(NCCL()).status == "not applicable"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (NCCL(gpus=8), "no NCCL is installed"),
        (NCCL(package="2.29.7", gpus=8, outcome=LATE), "no answer within 120 s"),
        (NCCL(package="2.29.7", gpus=8), "was not run"),
    ],
)
def test_a_sum_that_did_not_come(facts: NCCL, said: str) -> None:
    found = check_nccl(facts)
    assert found.status == "failed" and said in found.found and found.fix


def test_nobody_is_disturbed_on_a_gpu_in_use() -> None:
    found = check_nccl(NCCL(package="2.29.7", gpus=8, are_busy=True))
    assert found.status == "warning" and "all-reduce skipped" in found.found


def test_over_nodes() -> None:
    other = AllReduceResult(ranks=2, seconds=0.0, bandwidth=0.0, version="")
    assert check_across([]).status == "not applicable"
    assert check_across([GOOD, other]).status == "ok"
    assert check_across([GOOD, LATE]).found == "1 of 2 nodes: no answer within 120 s"
    assert check_across([LATE, other]).status == "failed"


@pytest.mark.parametrize("across_hosts", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_program_sums_over_two_processes(across_hosts: bool, tmp_path: Path) -> None:
    rendezvous = f"tcp://127.0.0.1:{free_port('127.0.0.1')}" if across_hosts else f"file://{tmp_path / 'met'}"
    outcome = run_apart(AllReducePlan(local=2, rendezvous=rendezvous, backend="gloo", size=2**16), 400)
    assert isinstance(outcome, AllReduceResult), outcome
    assert outcome.ranks == 2 and outcome.bandwidth > 0


def test_a_program_that_fails_says_why_and_one_that_hangs_is_ended(tmp_path: Path) -> None:
    """The second plan waits for a rank that never starts."""
    wrong = run_apart(AllReducePlan(local=1, rendezvous="nowhere://", backend="gloo"), 400)
    assert isinstance(wrong, Fault) and "nowhere" in wrong.reason
    alone = run_apart(AllReducePlan(local=1, rendezvous=f"file://{tmp_path / 'met'}", world=2, backend="gloo"), 1)
    assert alone == Fault(reason="no answer within 1 s")
