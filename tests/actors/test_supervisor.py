"""Tests of the supervisor with actors that die and stall: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors import incidents as incidents_module
from actors import inspection
from actors import supervisor as supervisor_module
from actors.incidents import is_blocking
from actors.process import ProcessLocation
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext, wait
from actors.worker import HEARTBEAT, Worker
from rlhf.config.schema import PlacementConfig, Recipe, RecoveryConfig
from rlhf.errors import LostError, MachineryError
from rlhf.recovery import facts
from rlhf.recovery.budget import Budget
from rlhf.recovery.diagnosis import Cause
from rlhf.recovery.goodput import Goodput
from rlhf.recovery.reaper import pid_namespace

CONTEXT = PhaseContext(phase="update", step=7)
NAME, PEER = "policy rank 0", "policy rank 1"


class Held:
    """What the workers hold in these tests."""

    def hang(self) -> None:
        time.sleep(60)

    def children(self) -> int:
        """A process that would stay behind."""
        import subprocess

        return subprocess.Popen(["sleep", "300"]).pid


class Watched:
    """A supervisor, the events that it reports, and one actor under it."""

    def __init__(self, folder: Path, **recovery: Any) -> None:
        self.events: list[dict[str, Any]] = []
        recipe = Recipe(
            name="x",
            placement=PlacementConfig(phase_timeout_seconds=2),
            recovery=RecoveryConfig(**{"backoff_seconds": 0.0, **recovery}),
        )
        self.supervisor = Supervisor(recipe, self._report, status=folder / "status.json")
        self.folder = folder
        self.start()

    def _report(self, kind: str, **details: Any) -> None:
        self.events.append({"kind": kind, **details})

    def start(self) -> None:
        self.worker, self.where = self.rank(NAME)

    def rank(self, name: str) -> tuple[Any, ProcessLocation]:
        """Another process for this rank."""
        log = self.folder / f"policy-{name[-1]}.log"
        worker = ray.remote(concurrency_groups={HEARTBEAT: 1})(Worker).options(num_cpus=0).remote(name, log)
        self.supervisor.started(name, worker)
        where = ray.get(worker.build.remote(Held), timeout=60)
        self.supervisor.built(where)
        self.supervisor.serve([name])
        return worker, where

    def lose(self, sign: signal.Signals) -> LostError:
        """Do this to the actor in the middle of its work; the error that a wait for it gives."""
        ref = self.worker.call.remote("hang")
        while ray.get(self.worker.heartbeat.remote(), timeout=30).activity != "hang":
            time.sleep(0.01)
        os.kill(self.where.process, sign)
        with pytest.raises(LostError) as caught:
            wait([ref], [NAME], CONTEXT, self.supervisor.deadlines)
        return caught.value


def test_a_stopped_process_is_found_diagnosed_and_ended(local_ray: None, tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    error = watched.lose(signal.SIGSTOP)
    assert (error.kind, error.names) == ("stalled", (NAME,))
    watched.supervisor.handle_loss(error, CONTEXT, samples=12)
    [event] = watched.events
    assert (event["kind"], event["role"], event["rank"], event["step"], event["phase"]) == (
        "actor_stalled", "policy", 0, 7, "update",
    )  # fmt: skip
    assert (event["process"], event["process_state"], event["samples_redone"]) == (watched.where.process, "T", 12)
    assert event["cause"] == "the process is stopped (SIGSTOP, or a debugger)"
    assert not alive(watched.where.process)
    watched.start()
    assert watched.events[-1]["kind"] == "actor_replaced"
    assert watched.supervisor.goodput.metrics()["health/redispatched"] == 12


def test_a_busy_process_writes_its_stacks_before_it_is_ended(local_ray: None, tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    error = watched.lose(signal.SIGCONT)  # which changes nothing: it is only late
    watched.supervisor.handle_loss(error, CONTEXT)
    assert watched.events[0]["doing"].startswith("hang for ")
    assert "busy" in watched.events[0]["cause"]
    assert "in hang" in (tmp_path / "policy-0.log").read_text()


def test_a_killed_process_is_named_once_too_often(local_ray: None, tmp_path: Path) -> None:
    watched = Watched(tmp_path, restarts=1)
    watched.supervisor.handle_loss(watched.lose(signal.SIGKILL), CONTEXT)
    watched.start()
    with pytest.raises(MachineryError, match=r"more than recovery\.restarts = 1") as caught:
        watched.supervisor.handle_loss(watched.lose(signal.SIGKILL), CONTEXT)
    history = [
        line for line in str(caught.value).splitlines() if "UTC policy rank 0 died during update of step 7" in line
    ]
    assert len(history) == 2


def test_what_an_actor_started_is_ended_with_it(local_ray: None, tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    child = ray.get(watched.worker.call.remote("children"), timeout=30)
    watched.supervisor._actors[NAME].where = watched.where.with_children([child])
    watched.supervisor.handle_loss(watched.lose(signal.SIGKILL), CONTEXT)
    assert not alive(child)


def test_of_a_group_in_which_one_is_stopped_one_is_at_fault_and_all_are_ended(local_ray: None, tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    peer, where = watched.rank(PEER)
    refs = [worker.call.remote("hang") for worker in (watched.worker, peer)]
    os.kill(where.process, signal.SIGSTOP)
    with pytest.raises(LostError) as caught:
        wait(refs, [NAME, PEER], CONTEXT, watched.supervisor.deadlines)
    assert caught.value.names == (NAME, PEER), "who waits for a stopped peer is late itself"
    watched.supervisor.handle_loss(caught.value, CONTEXT)
    assert [(event["kind"], event["member"]) for event in watched.events] == [("actor_stalled", PEER)]
    assert watched.supervisor.goodput.restarts == 1
    assert not alive(watched.where.process) and not alive(where.process)


def test_a_group_that_stalls_as_a_whole_is_one_restart(local_ray: None, tmp_path: Path) -> None:
    watched = Watched(tmp_path, restarts=1)
    names = [NAME, PEER, "policy rank 2"]
    workers = [watched.worker, *(watched.rank(name)[0] for name in names[1:])]
    with pytest.raises(LostError) as caught:
        wait([worker.call.remote("hang") for worker in workers], names, CONTEXT, watched.supervisor.deadlines)
    watched.supervisor.handle_loss(caught.value, CONTEXT, samples=5)
    [event] = watched.events
    assert (event["kind"], event["member"], event["others"]) == ("actor_stalled", NAME, names[1:])
    numbers = watched.supervisor.goodput.metrics()
    assert (numbers["health/restarts"], numbers["health/redispatched"]) == (1, 5)


def test_many_ranks_are_looked_at_in_the_time_of_one(local_ray: None, tmp_path: Path) -> None:
    """Each actor has 2 s for its heartbeat and 0.5 s to write its stacks: 100 s if done one after another."""
    watched = Watched(tmp_path)
    os.kill(watched.where.process, signal.SIGSTOP)
    names = [f"critic rank {rank}" for rank in range(40)]
    for name in names:  # one process stands for all
        watched.supervisor.started(name, watched.worker)
        watched.supervisor.built(replace(watched.where, name=name))
    begin = time.monotonic()
    watched.supervisor.handle_loss(LostError("late", tuple(names), "stalled"), CONTEXT)
    assert time.monotonic() - begin < 20
    assert len(watched.events[-1]["others"]) == 39
    assert not alive(watched.where.process)


def test_who_is_gone_is_found_where_an_error_does_not_say(local_ray: None, tmp_path: Path) -> None:
    watched, nobody = Watched(tmp_path), LostError("an object is lost", kind="failed")
    _, where = watched.rank(PEER)
    assert watched.supervisor.with_dead_actors(nobody).names == ()
    os.kill(where.process, signal.SIGKILL)
    end = time.monotonic() + 30
    while not (found := watched.supervisor.with_dead_actors(nobody)).names and time.monotonic() < end:
        time.sleep(0.1)
    assert (found.names, found.kind) == ((PEER,), "died")
    assert watched.supervisor.with_dead_actors(LostError("late", (NAME,), "stalled")).names == (NAME, PEER)
    peers = LostError("gloo: Connection closed by peer", (NAME,), "failed", "gloo", (NAME,))
    watched.supervisor.handle_loss(watched.supervisor.with_dead_actors(peers), CONTEXT)
    [event] = watched.events
    assert (event["kind"], event["member"]) == ("actor_failed", PEER)
    assert event["cause"] == Cause.SILENT, "what the other rank says of it is not the reason"


def test_who_is_stopped_is_found_where_neither_the_error_nor_ray_says(local_ray: None, tmp_path: Path) -> None:
    watched, nobody = Watched(tmp_path), LostError("an object is lost", kind="failed")
    _, where = watched.rank(PEER)
    os.kill(where.process, signal.SIGSTOP)
    found = watched.supervisor.with_dead_actors(nobody)
    assert (found.names, found.kind) == ((PEER,), "stalled")
    watched.supervisor.handle_loss(found, CONTEXT)
    assert [(event["member"], event["process_state"]) for event in watched.events] == [(PEER, "T")]
    assert not alive(where.process) and alive(watched.where.process)


def test_ray_itself_that_does_not_answer_is_asked_for_a_limited_time(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path)
    monkeypatch.setattr(inspection, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(inspection, "state", SimpleNamespace(actor_table=lambda *_, **__: time.sleep(30)))
    begin = time.monotonic()
    assert watched.supervisor.with_dead_actors(LostError("lost", kind="failed")).names == ()
    assert time.monotonic() - begin < 10


def test_logs_on_a_file_server_that_hangs_do_not_keep_the_facts_back(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path)
    monkeypatch.setattr(inspection, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(inspection, "_last_lines", lambda log, begins: time.sleep(30))
    found = inspection.inspect_here([watched.where], dump=False)
    facts_found, tail = found[NAME]
    assert facts_found.alive and facts_found.rss_bytes and tail == ""


def test_of_a_log_the_end_is_read(tmp_path: Path) -> None:
    (log := tmp_path / "log").write_text("x" * 2**17 + "\nSIGSEGV\nthe end\n")
    assert inspection._last_lines(str(log), 0).splitlines()[-2:] == ["SIGSEGV", "the end"]
    assert len(inspection._last_lines(str(log), 0)) <= inspection.LAST_BYTES
    assert inspection._last_lines("", 0) == inspection._last_lines(str(tmp_path / "none"), 0) == ""


def test_what_a_predecessor_wrote_to_a_log_is_not_read(tmp_path: Path) -> None:
    (log := tmp_path / "log").write_text("SIGSEGV\n")
    begins = os.path.getsize(log)
    log.open("a").write("mine\n")
    assert inspection._last_lines(str(log), begins) == "mine"
    log.write_text("anew\n")
    assert inspection._last_lines(str(log), begins) == "anew", "somebody has emptied it"


def test_a_loss_of_nobody_is_one_of_a_result_and_the_next_one_one_of_all() -> None:
    events: list[dict[str, Any]] = []
    supervisor = Supervisor(Recipe(name="x"), lambda kind, **details: events.append({"kind": kind, **details}))
    supervisor._budget = Budget(restarts=20, backoff_seconds=0.0, backoff_limit_seconds=1.0)
    supervisor.started(NAME, None)
    suspected = []
    for _ in range(2):
        supervisor.handle_loss(supervisor.with_dead_actors(LostError("an object is lost")), CONTEXT)
        suspected.append(supervisor.should_replace_all)
    assert suspected == [False, True]
    assert [event["what"].partition(": ")[2] for event in events] == [
        "it is computed again", "the faulty one is not known, all are replaced",
    ]  # fmt: skip
    for step in (7, 8):
        supervisor.step_done(step, 1.0)
    assert not supervisor.should_replace_all


def test_what_killed_processes_had_in_memory_is_removed(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    watched = Watched(tmp_path)
    peer, where = watched.rank(PEER)
    weights = tmp_path / f"rlhf-weights-{pid_namespace()}-{watched.where.process}-ab"
    weights.touch()
    snapshot = tmp_path / f"rlhf-checkpoint-{pid_namespace()}-{where.process}-cd"
    snapshot.mkdir()
    (snapshot / "optimizer").touch()
    (others := tmp_path / "rlhf-weights-1-ef").touch()
    watched.supervisor.handle_loss(watched.lose(signal.SIGKILL), CONTEXT)
    assert not weights.exists() and snapshot.exists()
    watched.rank(PEER)  # which is started again for its peer's sake
    assert not snapshot.exists() and others.exists()
    assert not alive(where.process)


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_time_is_lost_where_the_run_waits_and_nowhere_else(tmp_path: Path) -> None:
    supervisor, clock = Supervisor(Recipe(name="x"), lambda kind, **details: None), Clock()
    supervisor.goodput = Goodput(clock)
    names = ["rollout engine 0", "rollout engine 1"]

    def start(name: str) -> None:
        supervisor.started(name, None)
        supervisor.built(ProcessLocation(name=name, node="", node_id="", process=0))
        supervisor._actors[name].where = None  # no process to be looked at

    for name in names:
        start(name)
    supervisor.serve(names)
    supervisor.handle_loss(LostError("gone", (names[0],)), CONTEXT)
    clock.now += 60  # the other serves
    start(names[0])
    supervisor.serve(names)
    assert supervisor.goodput.seconds_lost == 0
    with supervisor.time_lost():
        clock.now += 7
    assert dict(supervisor.goodput.lost_by_kind) == {"died": 7.0}


def test_an_actor_is_lost_until_one_serves_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first replacement dies too, 20 s after it was started; the second takes 30 s."""
    clock = Clock()
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(time=clock, monotonic=time.monotonic))
    recipe = Recipe(name="x", recovery=RecoveryConfig(backoff_seconds=0.0))
    supervisor = Supervisor(recipe, lambda kind, **details: events.append({"kind": kind, **details}))
    supervisor.started(NAME, None)
    for seconds in (20, 30):
        supervisor.handle_loss(LostError("gone", (NAME,), "died"), CONTEXT)
        supervisor.started(NAME, None)
        clock.now += seconds
    supervisor.built(ProcessLocation(name=NAME, node="", node_id="", process=0))
    supervisor.serve([NAME])
    assert [event["seconds"] for event in events if event["kind"] == "actor_replaced"] == [50.0]


def test_a_loss_and_its_end_are_shown_in_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of a group and an engine, which is replaced last."""
    clock, names = Clock(), [NAME, PEER, "rollout engine 0"]
    shown, events = list[str](), list[dict[str, Any]]()
    monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(time=clock, monotonic=time.monotonic))
    report = lambda kind, **details: events.append({"kind": kind, **details})  # noqa: E731
    supervisor = Supervisor(Recipe(name="x"), report, show=shown.append)

    def start(*names: str) -> None:
        for name in names:
            supervisor.started(name, None)
            supervisor.built(ProcessLocation(name=name, node="", node_id="", process=0))
            supervisor._actors[name].where = None  # no process to be looked at
        supervisor.serve(names)

    start(*names)
    assert shown == []
    supervisor.handle_loss(LostError("gone", (NAME, names[2]), "died"), CONTEXT)
    supervisor.enter_phase(PhaseContext(phase="restore"))
    clock.now += 4
    start(NAME, PEER)
    assert len(shown) == 2, "an engine is still missing"
    clock.now += 8
    start(names[2])
    assert [line.partition(":")[0] for line in shown] == [
        "policy rank 0 died during update of step 7", "rollout engine 0 died during update of step 7",
        "all actors serve again, 12.0 s after the loss",
    ]  # fmt: skip
    replaced = [event for event in events if event["kind"] == "actor_replaced"]
    assert [(event["member"], event["seconds"]) for event in replaced] == [(NAME, 4.0), (PEER, 0.0), (names[2], 12.0)]
    assert {(event["phase"], event["step"]) for event in replaced} == {("update", 7)}, "where they were lost"


def test_each_event_describes_its_own_actor() -> None:
    """The scorer's call fails; the critic is found dead at the same time. The scorer's second rank is the one."""
    events = list[dict[str, Any]]()
    supervisor = Supervisor(Recipe(name="x"), lambda kind, **details: events.append({"kind": kind, **details}))
    for name in ("critic rank 0", "judge rank 0", "judge rank 1"):
        supervisor.started(name, None)
    found = LostError(
        "judge rank 1 died during judge of step 9: gone", ("judge rank 1",), "died", "gone", ("judge rank 1",)
    )
    supervisor.handle_loss(found.of(("critic rank 0", "judge rank 0", "judge rank 1")), CONTEXT)
    assert {event["member"]: event["what"] for event in events} == {
        "judge rank 1": "gone", "critic rank 0": "lost together with judge rank 1"
    }  # fmt: skip
    assert "seconds_lost" not in events[0]


@pytest.mark.parametrize("state", ["T", "t", "D"])
def test_who_cannot_go_on_keeps_its_peers_waiting(state: str) -> None:
    """States of ps: stopped by a signal or a debugger, or in a sleep that no signal ends."""
    busy = facts.Facts(alive=True, process_state="R", heartbeat_age_seconds=1.0)
    assert not is_blocking(busy) and is_blocking(replace(busy, process_state=state))


def test_who_dies_in_loading_is_diagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    supervisor = Supervisor(Recipe(name="x"), lambda kind, **details: events.append({"kind": kind, **details}))
    supervisor.started(NAME, None)
    monkeypatch.setattr(incidents_module, "oom_kills_since", lambda before: 1)
    said = "policy rank 0 died during start: .*the host ran out of memory"
    with pytest.raises(MachineryError, match=said) as caught, supervisor.diagnosed():
        raise LostError("policy rank 0 died during start: end of file", (NAME,), "died")
    assert not isinstance(caught.value, LostError)
    assert [(event["kind"], event["member"], event["phase"]) for event in events] == [("actor_died", NAME, "start")]


def test_what_the_kernel_killed_is_counted_on_the_node_where_the_actor_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    """That node's kernel has killed 7 processes by now. What it had killed before the actor came there is not news,
    whatever the controller's node has counted."""
    monkeypatch.setattr(supervisor_module, "oom_kills", lambda: 0)
    monkeypatch.setattr(facts, "oom_kills", lambda *files: 7)
    here = lambda function, processes, *arguments: [function(there, *arguments) for there in processes.values()]  # noqa: E731
    monkeypatch.setattr(inspection, "on_nodes", here)
    (dead := subprocess.Popen(["true"])).wait()
    causes = []
    for before in (7, 6):
        supervisor = Supervisor(Recipe(name="x"), lambda kind, **details: causes.append(details["cause"]))
        supervisor.started(NAME, None)
        there = ProcessLocation(name=NAME, node="other", node_id="other", process=dead.pid, oom_kills=before)
        supervisor.built(there)
        supervisor.final_error(LostError("policy rank 0 died: connection error code 2", (NAME,), "died"), CONTEXT)
    assert causes == [Cause.SILENT, Cause.HOST_MEMORY]


def test_status_tells_where_everybody_is(local_ray: None, tmp_path: Path) -> None:
    import json

    watched = Watched(tmp_path)
    assert watched.where.oom_kills == facts.oom_kills()
    watched.supervisor.steps = 120
    watched.supervisor.enter_phase(CONTEXT)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["phase"], status["step"], status["steps"]) == ("update", 7, 120)
    assert status["members"][NAME]["process"] == watched.where.process
    assert status["members"][NAME]["state"] == "serving"
    assert 0 < status["members"][NAME]["heard"] <= status["since"]


def test_samples_may_be_set_aside_up_to_a_limit(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    recipe = Recipe(name="x", recovery=RecoveryConfig(bad_samples=3))
    supervisor = Supervisor(recipe, lambda kind, **details: events.append({"kind": kind, **details}))
    assert supervisor.set_aside(((5, "too long"), (6, "too long")), 0, CONTEXT) == 2
    assert [(event["kind"], event["prompt"], event["reason"]) for event in events] == [
        ("sample_set_aside", 5, "too long"), ("sample_set_aside", 6, "too long"),
    ]  # fmt: skip
    assert supervisor.set_aside((), 2, CONTEXT) == 0
    with pytest.raises(MachineryError, match=r"4 samples were quarantined, more than recovery\.bad_samples = 3"):
        supervisor.set_aside(((7, "no response"), (8, "no response")), 2, CONTEXT)


def alive(process: int) -> bool:
    """Whether a process is there and no zombie, after a moment to end."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True
