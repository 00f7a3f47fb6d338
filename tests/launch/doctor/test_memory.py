"""Memory of a host and its control groups, and its checks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from launch.doctor.findings import GIB
from launch.doctor.memory import NodeMemory, check_host, check_limit, check_shared, check_store, gather

GOOD = NodeMemory(host=128 * GIB, available=100 * GIB, shared=64 * GIB, shared_free=60 * GIB)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of 64 GiB with 32 GiB free."""
    (tmp_path / "cgroup/slurm/job_7/step_0").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/slurm/job_7/step_0\n")
    memory = SimpleNamespace(total=64 * GIB, available=32 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return tmp_path


def test_without_a_limit_the_host_is_all_there_is(machine: Path) -> None:
    found = gather(machine / "own", machine / "cgroup", machine)
    assert (found.host, found.available, found.limit, found.total) == (64 * GIB, 32 * GIB, None, 64 * GIB)
    assert 0 < found.shared_free <= found.shared


def test_a_limit_of_a_group_around_the_job_counts(machine: Path) -> None:
    """A limit of 10 GiB with 6 in use, of which 2 are reclaimable cache: 6 are available."""
    group = machine / "cgroup/slurm/job_7"
    (group / "memory.max").write_text(f"{10 * GIB}\n")
    (group / "memory.current").write_text(f"{6 * GIB}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {2 * GIB}\nactive_file 5\n")
    (group / "step_0/memory.max").write_text("max\n")
    found = gather(machine / "own", machine / "cgroup", machine)
    assert (found.available, found.limit, found.total) == (6 * GIB, 10 * GIB, 10 * GIB)


@pytest.mark.parametrize(
    ("available", "need", "status"),
    [(100, 90, "ok"), (100, 110, "warning"), (100, 140, "failed"), (100, None, "ok"), (2, None, "warning")],
)
def test_host_memory_against_the_plan(available: int, need: int | None, status: str) -> None:
    facts = NodeMemory(host=128 * GIB, available=available * GIB)
    found = check_host(facts, None if need is None else need * GIB)
    assert found.status == status and bool(found.fix) == (status != "ok")


def test_a_limit_that_ray_does_not_know_of() -> None:
    limited = NodeMemory(host=128 * GIB, available=20 * GIB, limit=24 * GIB)
    assert check_limit(GOOD, 120 * GIB).status == "not applicable"
    assert check_limit(limited, None).status == check_limit(limited, 23 * GIB).status == "ok"
    found = check_limit(limited, 120 * GIB)
    assert (found.status, found.found) == ("failed", "limit 24.0 GiB, host 128.0 GiB; Ray counts on 120.0 GiB")


def test_shared_memory_holds_the_object_store() -> None:
    assert check_shared(GOOD, 64 * GIB).status == check_shared(GOOD, None).status == "ok"
    docker = NodeMemory(host=128 * GIB, available=100 * GIB, shared=64 * 2**20, shared_free=64 * 2**20)
    assert "--shm-size=1g" in check_shared(docker, None).fix
    small = check_shared(GOOD, 64 * GIB + 1)
    assert small.status == "failed" and "size=65g" in small.fix
    full = NodeMemory(host=128 * GIB, available=100 * GIB, shared=64 * GIB, shared_free=GIB - 1)
    assert check_shared(full, None).status == "warning" and check_shared(full, 64 * GIB).status == "ok"


def test_snapshots_fit_the_object_store() -> None:
    assert check_store(30 * GIB, 20 * GIB).status == "ok"
    assert check_store(30 * GIB, 40 * GIB).status == "warning"
