"""Gathers all facts of a node and runs every check on them, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from launch.doctor import clock, credentials, disk, gpus, limits, memory, nccl, network, versions
from launch.doctor.asking import TimedCall, answers
from launch.doctor.findings import Fault, Finding, Row, run_check
from launch.doctor.needs import Needs

SECONDS = {"versions": 20.0, "gpus": 45.0, "nccl": 150.0, "ports": 15.0}
"""Deadlines of slow subjects; the others have ``OTHERS``."""
OTHERS = 10.0


@dataclass(frozen=True, kw_only=True)
class NodeRequest:
    """Parameters of a node's examination."""

    packages: tuple[str, ...]
    runs: Path
    """Absolute folder of the runs."""
    ray: Path
    """Ray's session folder."""
    address: str = network.LOCAL
    """Address by which other nodes reach this one."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """All facts of a node; each is a ``Fault`` if it could not be gathered."""

    versions: versions.Versions | Fault
    gpus: gpus.GPUs | Fault
    nccl: nccl.NCCL | Fault
    memory: memory.NodeMemory | Fault
    runs: disk.Disk | Fault
    ray: disk.Disk | Fault
    files: limits.OpenFiles | Fault
    token: credentials.Token | Fault
    ports: network.Ports | Fault

    @property
    def has_gpus(self) -> bool:
        """Whether GPUs were found and answer."""
        return isinstance(self.gpus, gpus.GPUs) and bool(self.gpus.gpus)


@dataclass(frozen=True, kw_only=True)
class NodeResources:
    """Resources that Ray offers on a node."""

    gpus: int
    memory: int
    """Bytes of memory, including the object store."""
    store: int
    """Bytes of its object store."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Facts about a node of a running cluster besides its own."""

    counted: NodeResources
    skew: clock.Skew | Fault
    unreached: Mapping[str, str] | Fault
    others: int
    """Other nodes whose test sockets it tried to reach."""
    sees_runs: bool | Fault


@dataclass(frozen=True, kw_only=True)
class Bench:
    """References to check facts against."""

    pins: Mapping[versions.Build, versions.Pins] | Fault
    here: versions.Versions | Fault
    """Versions on the machine that starts the run."""
    needs: Needs | Fault | None = None
    """Needs of the recipe; None without one."""


def gather(asked: NodeRequest) -> NodeFacts:
    """Gather the facts of this node. It takes as long as the slowest subject, at most its deadline."""
    questions: dict[str, Callable[[], Any]] = {
        "versions": partial(versions.gather, asked.packages),
        "gpus": gpus.gather,
        "nccl": nccl.gather,
        "memory": memory.gather,
        "runs": partial(disk.gather, asked.runs),
        "ray": partial(disk.gather, asked.ray),
        "files": limits.gather,
        "token": credentials.gather_token,
        "ports": partial(network.gather, asked.address),
    }
    timed = {name: TimedCall(ask=ask, seconds=SECONDS.get(name, OTHERS)) for name, ask in questions.items()}
    return NodeFacts(**answers(timed))


def longest() -> float:
    """Deadline of ``gather``, in seconds."""
    return max(*SECONDS.values(), OTHERS)


def node_rows(node: str, facts: NodeFacts, bench: Bench, joined: Joined | None = None) -> list[Row]:
    """Run every check of a node; ``joined`` is given for a node of a running cluster."""
    found = [*_software(facts, bench, joined), *_hardware(facts, joined), *_memory(facts, bench, joined)]
    found += [*_disk(facts, bench, joined), *_system(facts, joined), *([] if joined is None else _between(joined))]
    return [Row(check=check, node=node, finding=finding) for check, finding in found]


Found = Iterator[tuple[str, Finding]]


def _software(facts: NodeFacts, bench: Bench, joined: Joined | None) -> Found:
    yield "versions", run_check(versions.check_pins, facts.versions, bench.pins, facts.has_gpus)
    if joined is not None:
        yield "same versions", run_check(versions.check_same, facts.versions, bench.here, bench.pins)


def _hardware(facts: NodeFacts, joined: Joined | None) -> Found:
    yield "GPUs", run_check(gpus.check_gpus, facts.gpus, None if joined is None else joined.counted.gpus)
    yield "driver", run_check(gpus.check_driver, facts.gpus)
    yield "NCCL", run_check(nccl.check_nccl, facts.nccl)


def _memory(facts: NodeFacts, bench: Bench, joined: Joined | None) -> Found:
    needs, counted = bench.needs, None if joined is None else joined.counted
    host = needs.host if isinstance(needs, Needs) else None
    yield "host memory", run_check(memory.check_host, facts.memory, needs if isinstance(needs, Fault) else host)
    yield "memory limit", run_check(memory.check_limit, facts.memory, None if counted is None else counted.memory)
    yield "/dev/shm", run_check(memory.check_shared, facts.memory, None if counted is None else counted.store)
    if isinstance(needs, Needs) and counted is not None:
        yield "object store", run_check(memory.check_store, counted.store, needs.snapshots)


def _disk(facts: NodeFacts, bench: Bench, joined: Joined | None) -> Found:
    needs = bench.needs
    yield "runs folder", run_check(disk.check_runs, facts.runs, needs.room if isinstance(needs, Needs) else needs)
    if joined is not None:
        yield "shared folder", run_check(disk.check_seen, joined.sees_runs)
    yield "Ray's folder", run_check(disk.check_ray, facts.ray)


def _system(facts: NodeFacts, joined: Joined | None) -> Found:
    yield "open files", run_check(limits.check_open_files, facts.files)
    yield "Ray's token", run_check(credentials.check_token, facts.token, joined is not None)
    yield "ports", run_check(network.check_ports, facts.ports, joined is not None)


def _between(joined: Joined) -> Found:
    yield "other nodes", run_check(network.check_reach, joined.unreached, joined.others)
    yield "clock", run_check(clock.check_clock, joined.skew)
