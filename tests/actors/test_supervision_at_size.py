"""Supervision of 512 ranks and 64 engines on 64 nodes, simulated: no processes, and a clock that the test moves.

Ray is a stub that answers as Ray would; everything that the controller does is the real thing. Its CPU time has a bound
that is generous for a slow machine: what takes more grows with the square of the ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDeathCause

from actors import dispatch as dispatch_module
from actors import incidents as incidents_module
from actors import inspection
from actors import pending as pending_module
from actors import supervisor as supervisor_module
from actors.dispatch import Dispatcher
from actors.pending import Pending
from actors.process import Heartbeat, ProcessLocation
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.config.schema import Recipe, RecoveryConfig
from rlhf.errors import LostError
from rlhf.recovery.facts import Facts
from tests.actors.test_dispatch import Fleet, NoPending

RANKS, ENGINES, NODES = 512, 64, 64
CONTROLLER_SECONDS = 5.0
UPDATE = PhaseContext(phase="update", step=7)
ROLLOUT = PhaseContext(phase="rollout", step=7)
HERE = "node 0"


class Ref:
    """A reference that Ray never calls back for, and its value, if it has one."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def _on_ready(self, call_back: Callable[[Any], None]) -> Callable[[], None]:
        return lambda: None


class Actor:
    """An actor's handle."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._actor_id = SimpleNamespace(hex=lambda: name)
        self.heartbeat = SimpleNamespace(remote=lambda: Ref(cluster.heartbeat(name)))


class Cluster:
    """Stands for Ray, the nodes and their processes; 8 ranks and an engine run on each node."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.dead, self.stopped, self.unknown = set[str](), set[str](), set[str]()
        self.events: list[dict[str, Any]] = []
        recipe = Recipe(name="x", recovery=RecoveryConfig(backoff_seconds=0.0))
        self.supervisor = Supervisor(recipe, lambda kind, **details: self.events.append({"kind": kind, **details}))
        self.ranks = [f"policy rank {rank}" for rank in range(RANKS)]
        self.engines = [f"rollout engine {index}" for index in range(ENGINES)]
        self.now += 1
        self.start([*self.ranks, *self.engines])
        self.now += 1

    def node(self, name: str) -> str:
        index = int(name.rpartition(" ")[2])
        return f"node {index * NODES // (RANKS if ' rank ' in name else ENGINES)}"

    def start(self, names: Sequence[str]) -> None:
        """Processes for these actors, which load and serve; earlier ones are gone."""
        self.dead -= set(names)
        self.stopped -= set(names)
        if self.supervisor._actors.keys() >= set(names):
            self.supervisor.terminate(names)  # as a group does: all of them in one call
        for name in names:
            self.supervisor.started(name, Actor(self, name))
        for process, name in enumerate(names):
            where = ProcessLocation(name=name, node=self.node(name), node_id=self.node(name), process=process)
            self.supervisor.built(where)
        self.supervisor.serve(names)

    def heartbeat(self, name: str) -> Heartbeat | None:
        if name in self.dead | self.stopped:
            return None
        return Heartbeat(activity="update", seconds=1800.0)

    def facts(self, where: ProcessLocation) -> Facts:
        state = "T" if where.name in self.stopped else "S"
        return Facts(alive=where.name not in self.dead, process_state=state)

    # As Ray answers:
    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        return [ref for ref in refs if ref.value is not None], [ref for ref in refs if ref.value is None]

    def get(self, ref: Ref, timeout: float = 0) -> Any:
        return ref.value

    def actor_table(self, _: None, actor_state_name: str) -> dict[str, Any]:
        return {name: {"DeathCause": ActorDeathCause()} for name in self.dead - self.unknown}

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: HERE)

    def remote(self, **_: Any) -> Any:
        """Tasks on other nodes run here."""

        def make(function: Callable[..., Any]) -> Any:
            run = SimpleNamespace(remote=lambda *arguments: Ref(function(*arguments)))
            return SimpleNamespace(options=lambda scheduling_strategy: run)

        return make


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster.__new__(Cluster)
    clock = SimpleNamespace(time=lambda: found.now, monotonic=time.monotonic, sleep=lambda seconds: None)
    for module in (supervisor_module, incidents_module, inspection):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(inspection, "ray", found)
    monkeypatch.setattr(inspection, "state", found)
    monkeypatch.setattr(inspection, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
    monkeypatch.setattr(inspection, "_facts_of", lambda where: found.facts(where))
    monkeypatch.setattr(inspection, "remove_leftovers", lambda process: None)
    monkeypatch.setattr(inspection, "os", SimpleNamespace(kill=lambda process, sign: None))
    found.__init__()  # type: ignore[misc]
    return found


@contextmanager
def resolved(cluster: Cluster, incidents: int = 1) -> Iterator[None]:
    """What happens within is one restart of so many roles, and costs the controller little."""
    begin = time.process_time()
    yield
    assert time.process_time() - begin < CONTROLLER_SECONDS
    assert cluster.supervisor.goodput.restarts == cluster.supervisor._history.restarts == 1
    assert len([event for event in cluster.events if event["kind"] != "actor_replaced"]) == incidents
    assert all(cluster.supervisor.has_process(name) for name in (*cluster.ranks, *cluster.engines))


def test_one_of_512_ranks_is_stopped(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are late, because they wait for it."""
    cluster.stopped = {cluster.ranks[77]}

    def monotonic() -> float:
        cluster.now += 30
        return cluster.now

    monkeypatch.setattr(pending_module, "time", SimpleNamespace(monotonic=monotonic))
    with resolved(cluster):
        pending = Pending({Ref(): name for name in cluster.ranks})
        with pytest.raises(LostError) as caught:
            cluster.supervisor.deadlines.next_ready(pending, UPDATE)
        loss = cluster.supervisor.with_dead_actors(caught.value)
        assert sorted(loss.names) == sorted(cluster.ranks)
        cluster.supervisor.handle_loss(loss, UPDATE)
        cluster.start(cluster.ranks)
    [event] = [event for event in cluster.events if event["kind"] != "actor_replaced"]
    assert (event["kind"], event["member"], event["others"]) == ("actor_stalled", cluster.ranks[77], [])
    assert (event["node"], "stopped" in event["cause"]) == ("node 9", True)


def test_a_node_of_64_dies(cluster: Cluster) -> None:
    """One rank's answer shows it; later an engine's stream, and a peer that lost the rank, report the same."""
    gone = [name for name in (*cluster.ranks, *cluster.engines) if cluster.node(name) == "node 5"]
    assert len(gone) == 9
    cluster.dead = set(gone)
    supervisor = cluster.supervisor
    with resolved(cluster, incidents=2):  # of two roles
        loss = supervisor.with_dead_actors(LostError("its node has died", (gone[0],), "died"))
        assert sorted(loss.names) == sorted(gone)
        supervisor.handle_loss(loss, UPDATE)
        cluster.now += 60
        supervisor.handle_loss(LostError("its node has died", (cluster.engines[5],), "died"), ROLLOUT)
        supervisor.handle_loss(LostError("Connection closed by peer", (cluster.ranks[0],), "failed"), UPDATE)
        cluster.start(cluster.ranks)
        cluster.start([cluster.engines[5]])
    assert [(event["member"], len(event["others"])) for event in cluster.events[:2]] == [
        (cluster.ranks[40], 7), (cluster.engines[5], 0),
    ]  # fmt: skip


def test_ten_of_64_engines_die(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reports three of them, then the others. All 8,192 samples are answered by the 54 that remain."""
    monkeypatch.setattr(dispatch_module, "Pending", NoPending)
    fleet = Fleet(ENGINES)
    monkeypatch.setattr(Dispatcher, "_next_block", lambda self, stream, name: fleet.next_block(stream, name))
    supervisor = cluster.supervisor
    cluster.dead, cluster.unknown = set(cluster.engines[:10]), set(cluster.engines[3:10])

    def ray_learns_of_the_others(error: LostError) -> LostError:
        found = supervisor.with_dead_actors(error)
        cluster.unknown = set()
        return found

    fleet.supervisor = SimpleNamespace(
        deadlines=fleet.supervisor.deadlines,
        with_dead_actors=ray_learns_of_the_others,
        is_continued=supervisor.is_continued,
    )
    monkeypatch.setattr(
        fleet, "replace_lost", lambda error, context, samples: supervisor.handle_loss(error, context, samples)
    )
    with resolved(cluster, incidents=2):  # the second one belongs to the first: see TOGETHER_SECONDS
        answered = fleet.run(8192, [(0,), (3,)])
        cluster.start(cluster.engines[:10])
    assert sorted(answered) == list(range(8192))
    assert fleet.poison_prompts == set()
    shares = [sum(map(len, engine.given)) for engine in fleet.all[10:]]
    assert max(shares) - min(shares) <= 12, "the work is spread over all that remain"


def test_a_loss_without_a_name_asks_all(cluster: Cluster) -> None:
    nobody = LostError("an object is lost", kind="failed")
    assert cluster.supervisor.with_dead_actors(nobody).names == ()
    cluster.stopped = {cluster.ranks[3], cluster.engines[9]}
    begin = time.process_time()
    found = cluster.supervisor.with_dead_actors(nobody)
    assert time.process_time() - begin < CONTROLLER_SECONDS
    assert (sorted(found.names), found.kind) == (["policy rank 3", "rollout engine 9"], "stalled")
