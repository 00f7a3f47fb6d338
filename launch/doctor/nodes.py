"""Examines every node of a running cluster through one small actor on each; every wait has a deadline."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import nodes, worker_environment
from launch.doctor.all_reduce import AllReducePlan, AllReduceResult, run_apart
from launch.doctor.asking import answer
from launch.doctor.clock import ClockReading, Skew, skew
from launch.doctor.examine import Joined, NodeFacts, NodeRequest, NodeResources, gather, longest
from launch.doctor.findings import Fault, described, shortened
from launch.doctor.nccl import NCCL
from launch.doctor.nccl import SECONDS as ALL_REDUCE_SECONDS
from launch.doctor.network import CONNECT_SECONDS, Listener, Target, unreached
from rlhf.ports import free_port

START_SECONDS = 60.0
"""Time for a node to start an actor, which imports Ray and this package from its own disk."""
CALL_SECONDS = 10.0
SLACK_SECONDS = 5.0
"""Time beyond a node's own deadline before its answer is given up."""
READINGS = 7
"""Readings of each clock; the best ones bound the skew."""


class Probe:
    """Actor on one node: gathers its facts, opens a test socket for the others, and reads the clock."""

    def __init__(self) -> None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from actors that request none
        self._listener: Listener | None = None

    def clock(self) -> float:
        """This node's time, in seconds since the epoch."""
        return time.time()

    def facts(self, asked: NodeRequest) -> NodeFacts:
        """The node's facts; Ray's folder is that of the node's own Ray."""
        return gather(replace(asked, ray=_session_folder()))

    def listen(self, address: str) -> Target:
        """Open a test socket."""
        self._listener = Listener(address)
        return self._listener.target

    def unreached(self, targets: Sequence[Target]) -> dict[str, str]:
        """Addresses of test sockets that cannot be reached from here → reason."""
        return unreached(targets)

    def sees(self, marker: Path) -> bool | Fault:
        """Whether the marker file is visible here."""
        seen: bool | Fault = answer(marker.exists, CALL_SECONDS / 2)
        return seen

    def free_port(self, address: str) -> int:
        """A free port of this node for a rendezvous."""
        return free_port(address)

    def all_reduce(self, plan: AllReducePlan) -> AllReduceResult | Fault:
        """Take part in an all-reduce over nodes."""
        return run_apart(plan, ALL_REDUCE_SECONDS)


def _session_folder() -> Path:
    node = ray._private.worker._global_node
    return Path(tempfile.gettempdir()) if node is None else Path(node.get_session_dir_path())


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node of the cluster, according to Ray."""

    name: str
    """Host and address; with the beginning of Ray's id if several nodes share both."""
    id: str
    address: str
    counted: NodeResources
    cpus: int


@dataclass(frozen=True, kw_only=True)
class NodeReply:
    """Answers of a node; each is a ``Fault`` without an answer."""

    node: Node
    facts: NodeFacts | Fault
    joined: Joined | None = None


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Answers of all nodes, and of their common checks."""

    answers: tuple[NodeReply, ...]
    across: tuple[AllReduceResult | Fault, ...]
    """Outcomes of the all-reduce over the nodes whose GPUs sum correctly; empty for fewer than two."""


def cluster_nodes() -> list[Node]:
    """The living nodes of the joined cluster."""
    found = nodes()
    names = [f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}" for node in found]
    times = Counter(names)
    return [
        _node(node, name if times[name] == 1 else f"{name} {node['NodeID'][:6]}") for node, name in zip(found, names)
    ]


def _node(node: Mapping[str, Any], name: str) -> Node:
    has = node["Resources"]
    store, memory = int(has.get("object_store_memory", 0)), int(has.get("memory", 0))
    return Node(
        name=name,
        id=node["NodeID"],
        address=node["NodeManagerAddress"],
        counted=NodeResources(gpus=int(has.get("GPU", 0)), memory=memory + store, store=store),
        cpus=int(has.get("CPU", 0)),
    )


def examine(all_nodes: Sequence[Node], asked: NodeRequest, marker: Path | Fault) -> Examined:
    """Examine every node.

    Args:
        marker: a file in the runs' folder that every node should see.
    """
    by_name = {node.name: node for node in all_nodes}
    with _probes(all_nodes) as (probes, lost):
        skews = {name: _skew(probe) for name, probe in probes.items()}
        facts = collect(
            {name: probe.facts.remote(replace(asked, address=by_name[name].address)) for name, probe in probes.items()},
            longest() + SLACK_SECONDS,
        )
        missed = _unreached_sockets(probes, by_name)
        seen = _visible_markers(probes, marker)
        across = _across([(probes[name], by_name[name]) for name in probes if _sums_correctly(facts[name])])
    answers = [
        NodeReply(
            node=by_name[name],
            facts=facts[name],
            joined=Joined(
                counted=by_name[name].counted,
                skew=skews[name],
                unreached=missed[name],
                others=len(by_name) - 1,
                sees_runs=seen[name],
            ),
        )
        for name in probes
    ]
    answers += [NodeReply(node=by_name[name], facts=fault) for name, fault in lost.items()]
    return Examined(answers=tuple(answers), across=tuple(across))


@contextmanager
def _probes(all_nodes: Sequence[Node]) -> Iterator[tuple[dict[str, Any], dict[str, Fault]]]:
    """Start a probe on each node; yields the probes and the reasons of missing ones, and ends all probes afterwards."""
    environment = {"env_vars": worker_environment(1, own_ray=False)}
    make = ray.remote(num_cpus=0, max_restarts=0, runtime_env=environment)(Probe)
    started = {node.name: make.options(scheduling_strategy=_pin_to(node)).remote() for node in all_nodes}
    try:
        first = collect({name: probe.clock.remote() for name, probe in started.items()}, START_SECONDS)
        lost = {name: reply for name, reply in first.items() if isinstance(reply, Fault)}
        yield {name: probe for name, probe in started.items() if name not in lost}, lost
    finally:
        for probe in started.values():
            ray.kill(probe, no_restart=True)


def _pin_to(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def collect(refs: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Results by name; a ``Fault`` for a result that is late or an error."""
    if not refs:
        return {}
    done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=seconds)
    late = Fault(reason=f"no answer within {seconds:.0f} s")
    return {name: _result_or_fault(ref) if ref in done else late for name, ref in refs.items()}


def _result_or_fault(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=CALL_SECONDS)
    except RayError as error:
        cause = getattr(error, "cause", None)
        return Fault(reason=described(cause) if isinstance(cause, Exception) else _last_line(error))


def _last_line(error: RayError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(f"{type(error).__name__}: {lines[-1]}") if lines else type(error).__name__


def _skew(probe: Any) -> Skew | Fault:
    """Skew of a node's clock against this machine's, from a few round trips; the first only warms up the connection."""
    readings = []
    for _ in range(READINGS):
        asked = time.time()
        there = collect({"it": probe.clock.remote()}, CALL_SECONDS)["it"]
        if isinstance(there, Fault):
            return there
        readings.append(ClockReading(asked=asked, there=there, heard=time.time()))
    return skew(readings)


def _unreached_sockets(probes: Mapping[str, Any], by_name: Mapping[str, Node]) -> dict[str, Any]:
    """For each node, the test sockets that it did not reach; sockets that did not open count as not reached."""
    heard = collect({name: probe.listen.remote(by_name[name].address) for name, probe in probes.items()}, CALL_SECONDS)
    targets = {name: target for name, target in heard.items() if isinstance(target, Target)}
    closed = {name: "no test socket there" for name in by_name if name not in targets}
    refs = {
        name: probe.unreached.remote([target for other, target in targets.items() if other != name])
        for name, probe in probes.items()
    }
    found = collect(refs, 2 * CONNECT_SECONDS + CALL_SECONDS)
    return {
        name: missed if isinstance(missed, Fault) else {**_drop_name(closed, name), **missed}
        for name, missed in found.items()
    }


def _drop_name(closed: Mapping[str, str], name: str) -> dict[str, str]:
    return {other: why for other, why in closed.items() if other != name}


def _visible_markers(probes: Mapping[str, Any], marker: Path | Fault) -> dict[str, Any]:
    if isinstance(marker, Fault):
        return dict.fromkeys(probes, marker)
    return collect({name: probe.sees.remote(marker) for name, probe in probes.items()}, CALL_SECONDS)


def _sums_correctly(facts: NodeFacts | Fault) -> bool:
    """Whether the sum over the node's own GPUs is correct."""
    return (
        isinstance(facts, NodeFacts)
        and isinstance(facts.nccl, NCCL)
        and isinstance(facts.nccl.outcome, AllReduceResult)
    )


def _across(ready: Sequence[tuple[Any, Node]]) -> list[AllReduceResult | Fault]:
    """Run an all-reduce over the first GPU of each node."""
    if len(ready) < 2:
        return []
    (first, node), world = ready[0], len(ready)
    port = collect({"it": first.free_port.remote(node.address)}, CALL_SECONDS)["it"]
    if isinstance(port, Fault):
        return [port] * world
    plan = AllReducePlan(local=1, rendezvous=f"tcp://{node.address}:{port}", world=world)
    refs = {str(rank): probe.all_reduce.remote(replace(plan, first=rank)) for rank, (probe, _) in enumerate(ready)}
    return list(collect(refs, ALL_REDUCE_SECONDS + SLACK_SECONDS).values())
