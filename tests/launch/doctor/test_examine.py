"""All checks on hand-made facts, and on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launch.doctor.clock import Skew
from launch.doctor.credentials import Token
from launch.doctor.disk import Disk, Room
from launch.doctor.examine import Bench, Joined, NodeFacts, NodeRequest, NodeResources, gather, longest, node_rows
from launch.doctor.findings import GIB, Fault, Row
from launch.doctor.gpus import GPUs
from launch.doctor.limits import OpenFiles
from launch.doctor.memory import NodeMemory
from launch.doctor.nccl import NCCL
from launch.doctor.needs import Needs
from launch.doctor.network import Ports
from launch.doctor.versions import Pins, Versions

DISK = Disk(folder="/data/runs", place="/data", total=1000 * GIB, free=500 * GIB, is_writable=True)
PINS = Pins(imported={"ray": "2.60.0"}, needed={})
HERE = Versions(python="3.11.7", packages={"ray": "2.60.0"})
GOOD = NodeFacts(
    versions=HERE,
    gpus=GPUs(),
    nccl=NCCL(),
    memory=NodeMemory(host=64 * GIB, available=60 * GIB, shared=32 * GIB, shared_free=32 * GIB),
    runs=DISK,
    ray=DISK,
    files=OpenFiles(soft=65536, hard=65536),
    token=Token(mode="token", source="~/.ray/auth_token", permissions=0o600),
    ports=Ports(taken=(), problem="", first=32768, last=60999),
)
JOINED = Joined(
    counted=NodeResources(gpus=0, memory=50 * GIB, store=16 * GIB),
    skew=Skew(least=-0.001, most=0.001),
    unreached={},
    others=1,
    sees_runs=True,
)
NEEDS = Needs(host=10 * GIB, snapshots=GIB, room=Room(checkpoint=GIB, checkpoints=4 * GIB, models=GIB))
BENCH = Bench(pins={"cpu": PINS, "gpu": PINS}, here=HERE, needs=NEEDS)


def statuses(rows: list[Row]) -> dict[str, str]:
    return {row.check: row.finding.status for row in rows}


def test_a_good_node_of_a_cluster() -> None:
    rows = node_rows("a", GOOD, BENCH, JOINED)
    assert {row.node for row in rows} == {"a"}
    assert {check: status for check, status in statuses(rows).items() if status != "ok"} == dict.fromkeys(
        ("GPUs", "driver", "NCCL", "memory limit"), "not applicable"
    )
    assert list(statuses(rows)) == [
        *("versions", "same versions", "GPUs", "driver", "NCCL", "host memory", "memory limit", "/dev/shm"),
        *("object store", "runs folder", "shared folder", "Ray's folder", "open files", "Ray's token", "ports"),
        *("other nodes", "clock"),
    ]


def test_a_machine_alone_has_no_rows_about_others() -> None:
    rows = statuses(node_rows("a", GOOD, replace(BENCH, needs=None)))
    assert {"same versions", "object store", "shared folder", "other nodes", "clock"} & rows.keys() == set()


def test_each_fact_that_is_bad_fails_its_own_row() -> None:
    """A single fault changes only its own row."""
    late = Fault(reason="no answer within 10 s")
    bad = {
        "versions": replace(GOOD, versions=replace(HERE, packages={})),
        "GPUs": replace(GOOD, gpus=GPUs(devices=8)),
        "NCCL": replace(GOOD, nccl=late),
        "runs folder": replace(GOOD, runs=late),
        "Ray's folder": replace(GOOD, ray=replace(DISK, free=0)),
        "open files": replace(GOOD, files=OpenFiles(soft=100, hard=100)),
        "Ray's token": replace(GOOD, token=Token(mode="token", source="")),
        "ports": replace(GOOD, ports=late),
    }
    for check, facts in bad.items():
        rows = statuses(node_rows("a", facts, BENCH))
        assert [name for name, status in rows.items() if status == "failed"] == [check]


def test_what_is_wrong_between_nodes() -> None:
    late = Fault(reason="no answer within 10 s")
    bad = {
        "clock": replace(JOINED, skew=Skew(least=60, most=61)),
        "other nodes": replace(JOINED, unreached={"10.0.0.2:7": "TimeoutError: timed out"}),
        "shared folder": replace(JOINED, sees_runs=False),
    }
    for check, joined in bad.items():
        rows = statuses(node_rows("a", GOOD, BENCH, joined))
        assert [name for name, status in rows.items() if status == "failed"] == [check]
    rows = statuses(node_rows("a", GOOD, BENCH, replace(JOINED, skew=late, unreached=late, sees_runs=late)))
    assert [name for name, status in rows.items() if status == "failed"] == ["shared folder", "other nodes", "clock"]


def test_needs_that_could_not_be_counted_fail_the_rows_that_rest_on_them() -> None:
    rows = statuses(node_rows("a", GOOD, replace(BENCH, needs=Fault(reason="UserError: the shape is not known"))))
    assert [name for name, status in rows.items() if status == "failed"] == ["host memory", "runs folder"]


def test_this_machine_answers_every_question(tmp_path: Path) -> None:
    facts = gather(NodeRequest(packages=("pytest",), runs=tmp_path, ray=tmp_path))
    faults = {name: value for name, value in vars(facts).items() if isinstance(value, Fault)}
    assert faults == {}
    assert longest() == 150
