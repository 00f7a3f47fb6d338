"""The examination of every node of a running cluster: one small actor on each, every wait with a deadline."""

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
from launch.doctor.all_reduce import AllReducePlan, Outcome, run_apart
from launch.doctor.asking import answer
from launch.doctor.clock import ClockReading, Skew, skew
from launch.doctor.examine import Joined, NodeFacts, NodeRequest, NodeResources, gather, longest
from launch.doctor.findings import Fault, described, shortened
from launch.doctor.nccl import NCCL
from launch.doctor.nccl import SECONDS as ALL_REDUCE_SECONDS
from launch.doctor.network import CONNECT_SECONDS, Listener, Target, free_port, unreached

START_SECONDS = 60.0
"""How long a node may take to start a process of ours: it imports Ray and this package from its own disk."""
CALL_SECONDS = 10.0
SLACK_SECONDS = 5.0
"""More than a node's own deadline before its answer is given up."""
READINGS = 7
"""Of each clock; the best of them bounds the skew."""


class Probe:
    """On one node: gathers its facts, is a test socket for the others, and tells the time."""

    def __init__(self) -> None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray shows GPUs only to who asks for some
        self._listener: Listener | None = None

    def clock(self) -> float:
        """This node's time, in seconds since the epoch."""
        return time.time()

    def facts(self, asked: NodeRequest) -> NodeFacts:
        """The node's facts; Ray's folder is where this node's own Ray has it."""
        return gather(replace(asked, ray=_session_folder()))

    def listen(self, address: str) -> Target:
        """Open a test socket."""
        self._listener = Listener(address)
        return self._listener.target

    def unreached(self, targets: Sequence[Target]) -> dict[str, str]:
        """The test sockets that cannot be reached from here, and why."""
        return unreached(targets)

    def sees(self, marker: Path) -> bool | Fault:
        """Whether a file is seen from here."""
        seen: bool | Fault = answer(marker.exists, CALL_SECONDS / 2)
        return seen

    def free_port(self, address: str) -> int:
        """A port of this node at which ranks can meet."""
        return free_port(address)

    def all_reduce(self, plan: AllReducePlan) -> Outcome | Fault:
        """Take part in an all-reduce over nodes."""
        return run_apart(plan, ALL_REDUCE_SECONDS)


def _session_folder() -> Path:
    node = ray._private.worker._global_node
    return Path(tempfile.gettempdir()) if node is None else Path(node.get_session_dir_path())


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node of the cluster, as Ray knows it."""

    name: str
    """Host and address; with the begin of Ray's own name where several nodes share both."""
    id: str
    address: str
    counted: NodeResources
    cpus: int


@dataclass(frozen=True, kw_only=True)
class NodeReply:
    """What a node said; a ``Fault`` where nothing was heard from it."""

    node: Node
    facts: NodeFacts | Fault
    joined: Joined | None = None


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What the nodes said, each by itself and all together."""

    answers: tuple[NodeReply, ...]
    across: tuple[Outcome | Fault, ...]
    """Outcomes of the all-reduce over the nodes whose GPUs sum right; empty where there are fewer than two."""


def cluster_nodes() -> list[Node]:
    """The living nodes of the cluster that was joined."""
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
    """Ask every node everything.

    Args:
        marker: a file in the runs' folder that every node is to see.
    """
    by_name = {node.name: node for node in all_nodes}
    with _probes(all_nodes) as (probes, lost):
        skews = {name: _skew(probe) for name, probe in probes.items()}
        facts = collect(
            {name: probe.facts.remote(replace(asked, address=by_name[name].address)) for name, probe in probes.items()},
            longest() + SLACK_SECONDS,
        )
        missed = _missed(probes, by_name)
        seen = _seen(probes, marker)
        across = _across([(probes[name], by_name[name]) for name in probes if _sums(facts[name])])
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
    """A probe on each node that starts one, and why the others did not; all are ended afterwards."""
    environment = {"env_vars": worker_environment(1, own_ray=False)}
    make = ray.remote(num_cpus=0, max_restarts=0, runtime_env=environment)(Probe)
    started = {node.name: make.options(scheduling_strategy=_on(node)).remote() for node in all_nodes}
    try:
        first = collect({name: probe.clock.remote() for name, probe in started.items()}, START_SECONDS)
        lost = {name: said for name, said in first.items() if isinstance(said, Fault)}
        yield {name: probe for name, probe in started.items() if name not in lost}, lost
    finally:
        for probe in started.values():
            ray.kill(probe, no_restart=True)


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def collect(refs: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What comes within the time, by name; a ``Fault`` for what does not come, or comes as an error."""
    if not refs:
        return {}
    done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=seconds)
    late = Fault(reason=f"no answer within {seconds:.0f} s")
    return {name: _got(ref) if ref in done else late for name, ref in refs.items()}


def _got(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=CALL_SECONDS)
    except RayError as error:
        cause = getattr(error, "cause", None)
        return Fault(reason=described(cause) if isinstance(cause, Exception) else _last_line(error))


def _last_line(error: RayError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(f"{type(error).__name__}: {lines[-1]}") if lines else type(error).__name__


def _skew(probe: Any) -> Skew | Fault:
    """A node's clock against this machine's: a few round trips, the first of which only wakes the way."""
    readings = []
    for _ in range(READINGS):
        asked = time.time()
        there = collect({"it": probe.clock.remote()}, CALL_SECONDS)["it"]
        if isinstance(there, Fault):
            return there
        readings.append(ClockReading(asked=asked, there=there, heard=time.time()))
    return skew(readings)


def _missed(probes: Mapping[str, Any], by_name: Mapping[str, Node]) -> dict[str, Any]:
    """Of each node, the test sockets of others that it did not reach; a socket that did not open was not reached."""
    heard = collect({name: probe.listen.remote(by_name[name].address) for name, probe in probes.items()}, CALL_SECONDS)
    targets = {name: target for name, target in heard.items() if isinstance(target, Target)}
    closed = {name: "no test socket there" for name in by_name if name not in targets}
    refs = {
        name: probe.unreached.remote([target for other, target in targets.items() if other != name])
        for name, probe in probes.items()
    }
    found = collect(refs, 2 * CONNECT_SECONDS + CALL_SECONDS)
    return {
        name: missed if isinstance(missed, Fault) else {**_without(closed, name), **missed}
        for name, missed in found.items()
    }


def _without(closed: Mapping[str, str], name: str) -> dict[str, str]:
    return {other: why for other, why in closed.items() if other != name}


def _seen(probes: Mapping[str, Any], marker: Path | Fault) -> dict[str, Any]:
    if isinstance(marker, Fault):
        return dict.fromkeys(probes, marker)
    return collect({name: probe.sees.remote(marker) for name, probe in probes.items()}, CALL_SECONDS)


def _sums(facts: NodeFacts | Fault) -> bool:
    """Whether the node's GPUs sum right by themselves."""
    return isinstance(facts, NodeFacts) and isinstance(facts.nccl, NCCL) and isinstance(facts.nccl.outcome, Outcome)


def _across(ready: Sequence[tuple[Any, Node]]) -> list[Outcome | Fault]:
    """An all-reduce over the first GPU of each node."""
    if len(ready) < 2:
        return []
    (first, node), world = ready[0], len(ready)
    port = collect({"it": first.free_port.remote(node.address)}, CALL_SECONDS)["it"]
    if isinstance(port, Fault):
        return [port] * world
    plan = AllReducePlan(local=1, meeting=f"tcp://{node.address}:{port}", world=world)
    refs = {str(rank): probe.all_reduce.remote(replace(plan, first=rank)) for rank, (probe, _) in enumerate(ready)}
    return list(collect(refs, ALL_REDUCE_SECONDS + SLACK_SECONDS).values())
