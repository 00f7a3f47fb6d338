"""Tests of the actors with late and lost actors: real processes and a real policy rank's publish, without a model."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import engines as engines_module
from actors import run_actors
from actors.engines import Engines
from actors.group import Group
from actors.placement import Placement
from actors.process import Heartbeat, ProcessLocation, dump_stacks_on_signal, locate_process
from actors.run_actors import RunActors, Start, start_actors
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.config.schema import (
    AlgorithmConfig,
    PlacementConfig,
    Recipe,
    RecoveryConfig,
    RewardSourceConfig,
    RolloutConfig,
)
from rlhf.errors import LostError, MachineryError
from rlhf.placement.pools import Sharing
from rlhf.recovery.deadlines import Work
from rlhf.recovery.goodput import Goodput
from rlhf.roles.policy import PolicyRole
from rlhf.zero.process_group import Rank

CONTEXT = PhaseContext(phase="publish", step=2)
LATE, SOUND = "rollout engine 0", "rollout engine 1"
VALUE = 7
"""What stands for the weights; an engine starts with 0."""


class Engine:
    """Takes a number for weights; the first process of one engine is late with that."""

    def __init__(self, name: str, log: Path, *_: Any) -> None:
        dump_stacks_on_signal()
        self.where, self.mark, self.value = locate_process(name, log), log.parent / "was-late", 0
        self.awake = {"weights", "kv_cache"}

    async def build(self, *_: Any) -> ProcessLocation:
        return self.where

    async def heartbeat(self) -> Heartbeat:
        return Heartbeat(activity="publish", seconds=4.0)

    async def set_prompts(self, prompts: Any) -> None:
        """There are none."""

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Nothing has to be agreed on."""

    async def start_weight_update(self) -> None:
        """Nor prepared."""

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        if self.where.name == LATE and not self.mark.exists():
            self.mark.touch()
            await asyncio.sleep(60)
        self.value = update_info["value"]
        self.during = sorted(self.awake)

    async def finish_weight_update(self) -> None:
        """Nor ended."""

    async def held_fingerprint(self) -> dict[str, int]:
        return {"layers.0": self.value}

    async def serve(self, version: int) -> None:
        """The controller knows."""

    async def sleep(self) -> None:
        self.awake = set()

    async def wake(self, part: str) -> None:
        self.awake.add(part)

    async def parts(self) -> tuple[list[str], list[str]]:
        """Parts that are awake now, and that were awake when the last weights arrived."""
        return sorted(self.awake), getattr(self, "during", [])

    async def stop(self) -> None:
        """Nothing of its own has to be ended."""


class Sending:
    """A policy rank that sends a number, in the policy's own way."""

    def __init__(self, rank: Rank) -> None:
        self.sender = self.source = self
        self.base, self.recipe = None, Recipe(name="sending")
        self.fingerprint = {"layers.0": VALUE}

    def connect(self, client: Any, backend: str, workers: int, address: str, port: int) -> None:
        self.client = client
        client.init_weight_transfer_engine({})

    def send_weights(self) -> None:
        self.client.start_weight_update()
        self.client.update_weights({"value": VALUE})
        self.client.finish_weight_update()

    publish = PolicyRole.publish


class Meeting:
    """A rank that leaves its mark at the rendezvous, as torch.distributed does."""

    def __init__(self, rank: Rank) -> None:
        self.rendezvous = Path(rank.rendezvous.removeprefix("file://"))
        self.rendezvous.touch()

    def where(self) -> Path:
        return self.rendezvous


class Running:
    """A recipe of two engines, a supervisor, and the events that it reports."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.recipe = Recipe(
            name="x",
            rewards={"one": RewardSourceConfig(function="x.py:score")},
            rollout=RolloutConfig(engines=2),
            placement=PlacementConfig(phase_timeout_seconds=8),
            recovery=RecoveryConfig(backoff_seconds=0.0),
        )
        self.supervisor = Supervisor(self.recipe, lambda kind, **details: self.events.append({"kind": kind, **details}))
        self.placement = Placement(self.recipe, "cpu", "ppo", 0)

    def group(self, role: str, folder: Path, builder: Any) -> Group:
        group = Group(role, 1, self.placement, folder, self.supervisor)
        group.start(builder)
        group.ready()
        self.supervisor.serve(group.names)
        return group


def test_an_engine_that_is_late_with_the_weights_is_replaced_and_not_asked_for_its_fingerprint(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "RolloutActor", Engine)
    running = Running()
    engines = Engines(running.recipe, running.placement, tmp_path, 8, [1], tmp_path, running.supervisor, publishes=True)
    engines.ready([])
    groups = {"policy": running.group("policy", tmp_path, Sending), "reward one": None}
    actors = RunActors(running.recipe, "", groups, engines, running.supervisor)  # type: ignore[arg-type]
    try:
        actors.publish(1, CONTEXT)
        assert [engine.name for engine in engines.serving] == [SOUND]
        [lost] = [event for event in running.events if event["kind"] != "actor_replaced"]
        assert (lost["kind"], lost["member"], lost["phase"], lost["step"]) == ("actor_stalled", LATE, "publish", 2)
        longest = running.supervisor.deadlines.learned.longest
        assert Work(role="policy", kind="publish") not in longest, "half of 8 s was waited in vain"
        while len(engines.serving) < 2:
            actors.publish(2, CONTEXT)
        actors.version = 3  # the policy has learned while they answered (ppo.staleness), and all of them are lost
        for engine in engines.all:
            engine.version = None
        engines.restore_serving(CONTEXT)
        assert {engine.version for engine in engines.serving} == {3}
    finally:
        engines.stop()
        actors.policy.stop()


def test_engines_that_share_gpus_sleep_until_the_first_publish_and_hold_weights_alone_in_it(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "RolloutActor", Engine)
    (tmp_path / "was-late").touch()
    running = Running()
    engines = Engines(running.recipe, running.placement, tmp_path, 8, [1], tmp_path, running.supervisor, publishes=True)
    engines.sleeps = True
    groups = {"policy": running.group("policy", tmp_path, Sending)}
    actors = RunActors(replace(running.recipe, rewards={}), "", groups, engines, running.supervisor)

    def parts() -> list[tuple[list[str], list[str]]]:
        return [found for _, found in engines._each(engines.all, "parts", CONTEXT)]

    try:
        engines.ready([])
        assert parts() == [([], [])] * 2, "nothing has been given to them yet, and others load"
        actors.publish(1, CONTEXT)
        assert parts() == [(["kv_cache", "weights"], ["weights"])] * 2
        engines.sleep(CONTEXT)
        engines.mark_outdated(1)
        engines.sleep(CONTEXT)  # as a run that goes back does, whatever they are doing
        assert parts() == [([], ["weights"])] * 2
    finally:
        engines.stop()
        actors.policy.stop()


def test_ranks_leave_no_meeting_behind(local_ray: None, tmp_path: Path) -> None:
    group = Running().group("policy", tmp_path, Meeting)
    context = PhaseContext(phase="test")
    [first] = group.ask("where", context=context)
    assert first.exists()
    group.rebuild()
    [second] = group.ask("where", context=context)
    assert not first.exists() and second.exists()
    group.stop()
    assert not second.exists()


class Slow:
    """Stands for engines, or for a group, that take a minute of the clock to start again."""

    def __init__(self, now: list[float]) -> None:
        self.now, self.names, self.serving, self.all = now, ("reward one rank 0",), [], []  # type: ignore[var-annotated]

    def rebuild(self) -> None:
        self.now[0] += 60

    def offload(self, context: PhaseContext) -> None:
        """It shares no GPU."""

    def mark_outdated(self, version: int) -> None:
        self.now[0] += 60
        self.serving.append("an engine that has been given the weights meanwhile")


def test_the_time_in_which_the_run_waits_for_others_is_lost() -> None:
    running, now = Running(), [1000.0]
    running.supervisor.goodput = Goodput(lambda: now[0])
    slow: Any = Slow(now)
    actors = RunActors(running.recipe, "", {"policy": slow, "reward one": slow}, slow, running.supervisor)
    with suppress(KeyError):  # the supervisor knows none of these
        actors.rebuild(slow)
    assert running.supervisor.goodput.seconds_lost == 60
    slow.restore_serving(CONTEXT)
    assert running.supervisor.goodput.seconds_lost == 120


class Trained:
    """A group that names itself where it is trained."""

    def __init__(self, name: str) -> None:
        self.names, self.sharing = (name,), Sharing()

    def call(self, method: str, *_: Any) -> list[dict[str, int]]:
        return [{self.names[0]: 1}]

    def offload(self, *_: Any, **__: Any) -> None:
        """It shares no GPU."""


def test_in_the_first_steps_the_critic_learns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_actors, "wait", lambda refs, *_: refs)
    running = Running()
    recipe = replace(running.recipe, rewards={}, algorithm=AlgorithmConfig(critic_warmup_steps=2))
    groups: Any = {name: Trained(name) for name in ("policy", "critic")}
    nothing: Any = SimpleNamespace()
    actors = RunActors(recipe, "", groups, nothing, running.supervisor)
    learned = [sorted(actors.update(nothing, step)) for step in range(4)]
    assert learned == [["critic"], ["critic"], ["critic", "policy"], ["critic", "policy"]]


@pytest.mark.parametrize("shares", [True, False])
def test_on_shared_gpus_roles_import_while_engines_start_and_load_after_them(
    shares: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, told = Running(), list[str]()
    engines = SimpleNamespace(ready=lambda prompts: told.append("engines are ready"), stop=lambda: None)
    group = SimpleNamespace(preload=lambda builder: told.append(f"import {builder}"))
    fakes: dict[str, Any] = {
        "Placement": SimpleNamespace(engines_share=shares, release=lambda: None),
        "Engines": engines,
        "RunActors": None,
        "_groups": {"policy": group},
        "_builders": {"policy": ("module:Role", "argument")},
    }
    for name, made in fakes.items():
        monkeypatch.setattr(run_actors, name, lambda *_, made=made, **__: made)
    monkeypatch.setattr(run_actors, "_start", lambda *_: told.append("models load"))
    start = Start(
        policy=tmp_path, critic=tmp_path, reward_models={}, max_length=8, end_tokens=[1], prompts=[], logs=tmp_path
    )
    with start_actors(running.recipe, start, "cpu", 0, running.supervisor):
        told.append("run")
    on_shared = ["import module:Role", "engines are ready", "models load", "run"]
    assert told == (on_shared if shares else ["models load", "engines are ready", "run"])


def test_who_is_lost_in_loading_is_told_with_a_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running()

    class Dying:
        def __init__(self, *arguments: Any, **_: Any) -> None:
            running.supervisor.started(LATE, None)

        def ready(self, prompts: Any) -> None:
            raise LostError(f"{LATE} died during start: end of file, connection error code 2", (LATE,), "died")

        def stop(self) -> None:
            """There is nothing to end."""

    monkeypatch.setattr(run_actors, "Engines", Dying)
    for name in ("_groups", "_builders", "_start"):
        monkeypatch.setattr(run_actors, name, lambda *_: {})
    start = Start(
        policy=tmp_path, critic=tmp_path, reward_models={}, max_length=8, end_tokens=[1], prompts=[], logs=tmp_path
    )
    starting = start_actors(running.recipe, start, "cpu", 0, running.supervisor)
    with pytest.raises(MachineryError, match="likely cause: .*; what to do: ") as caught, starting:
        """It does not come so far."""
    assert not isinstance(caught.value, LostError)
    assert [(event["kind"], event["member"], event["phase"]) for event in running.events] == [
        ("actor_died", LATE, "start")
    ]
