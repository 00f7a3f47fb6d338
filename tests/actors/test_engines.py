"""Tests of re-dispatch after an engine dies: actors that answer and die as configured, without a model."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors import engines as engines_module
from actors.engines import Engines
from actors.placement import Placement
from actors.process import ProcessLocation, locate_process
from actors.rollout import BlockSummary
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.config.schema import Recipe, RecoveryConfig, RolloutConfig
from rlhf.errors import LostError, MachineryError
from rlhf.recovery.diagnosis import Cause
from rlhf.types import FinishReason, Prompt, Rollout, RolloutBlock

POISON, LEFT_OUT, ONCE = 100, 150, 200
"""Prompts that an engine dies of, leaves out of its answers, and dies of where it has not done so before."""
CONTEXT = PhaseContext(phase="rollout", step=2)


def rollout(prompt: int, seed: int, reason: FinishReason) -> Rollout:
    return Rollout(
        prompt=Prompt(id=prompt, tokens=(1,)),
        tokens=np.array([prompt], np.int32),
        logprobs=np.zeros(1, np.float32),
        mask=np.ones(1, bool),
        weight_version=0,
        finish_reason=reason,
        seed=seed,
    )


def summary(positions: Iterable[int]) -> BlockSummary:
    return BlockSummary(stream="", tokens=0, positions=tuple(positions), set_aside=(), faults=())


class Engine:
    """Fake engine that answers in blocks; the prompts that killed it are recorded in a folder, which outlives it."""

    def __init__(self, name: str, log: Path, *_: Any) -> None:
        self.where, self.folder = locate_process(name, log), log.parent

    async def build(self, *_: Any) -> ProcessLocation:
        return self.where

    async def set_prompts(self, prompts: Any) -> None:
        """The prompts are their own numbers here."""

    async def generate(
        self, positions: Sequence[int], indices: Sequence[int], seeds: Sequence[int], block_size: int
    ) -> AsyncIterator[Any]:
        for begin in range(0, len(positions), block_size):
            some = [i for i in range(begin, min(begin + block_size, len(positions))) if indices[i] != LEFT_OUT]
            for i in some:
                self._die_of(indices[i])
            yield RolloutBlock.pack([rollout(indices[i], seeds[i], FinishReason.STOP) for i in some])
            yield summary(positions[i] for i in some)

    def _die_of(self, prompt: int) -> None:
        mark = self.folder / f"died-of-{prompt}"
        if prompt == POISON or (prompt >= ONCE and not mark.exists()):
            mark.touch()
            os._exit(1)

    async def set_aside(
        self, positions: Sequence[int], indices: Sequence[int], seeds: Sequence[int], fault: str
    ) -> Any:
        block = RolloutBlock.pack([rollout(p, s, FinishReason.SET_ASIDE) for p, s in zip(indices, seeds, strict=True)])
        faults = tuple((prompt, fault) for prompt in indices)
        return block, replace(summary(positions), set_aside=tuple(positions), faults=faults)

    async def sleep(self) -> None:
        """It holds no memory."""

    async def held_fingerprint(self) -> dict[str, int]:
        """The second engine dies, after the first has answered."""
        if self.where.name == "rollout engine 1":
            await asyncio.sleep(1)
            os._exit(1)
        return {"layers.0": 1}

    async def stop(self) -> None:
        """Nothing of its own has to be ended."""


class Fleet:
    """Engines under a supervisor, and the events that it reports."""

    def __init__(self, folder: Path, count: int, restarts: int = 20) -> None:
        self.events: list[dict[str, Any]] = []
        recipe = Recipe(
            name="x",
            rollout=RolloutConfig(engines=count, block_size=2),
            recovery=RecoveryConfig(restarts=restarts, backoff_seconds=0.0),
        )
        supervisor = Supervisor(recipe, lambda kind, **details: self.events.append({"kind": kind, **details}))
        placement = Placement(recipe, "cpu", "generate", 0)
        self.engines = Engines(recipe, placement, folder, 8, [1], folder, supervisor, publishes=False)
        self.engines.ready([])

    def answers(self, indices: Sequence[int]) -> dict[int, tuple[int, int]]:
        """By seed: the prompt that was answered, and why the answer ended. A seed that came twice fails."""
        found: dict[int, tuple[int, int]] = {}
        for ref, answered in self.engines.generate(indices, range(len(indices)), CONTEXT):
            block = ray.get(ref)
            assert len(block) == len(answered.positions)
            for seed, prompt, reason in zip(block.seeds, block.prompt_ids, block.finish_reasons, strict=True):
                assert int(seed) not in found
                found[int(seed)] = (int(prompt), int(reason))
        return found


@pytest.fixture
def fleet(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a fleet of so many engines, and ends it."""
    monkeypatch.setattr(engines_module, "RolloutActor", Engine)
    fleets = []

    def make(*arguments: int) -> Fleet:
        fleets.append(Fleet(tmp_path, *arguments))
        return fleets[-1]

    yield make
    for each in fleets:
        each.engines.stop()


def test_what_an_engine_had_not_answered_is_answered_by_another_with_the_same_seed(fleet: Any) -> None:
    running = fleet(2)
    indices = [1, 2, 3, ONCE, 4, 5, 6, 7]
    assert running.answers(indices) == {seed: (prompt, FinishReason.STOP) for seed, prompt in enumerate(indices)}
    [died] = [event for event in running.events if event["kind"] == "actor_died"]
    assert (died["phase"], died["step"]) == ("rollout", 2)
    assert 0 < died["samples_redone"] <= len(indices)


@pytest.mark.parametrize("is_known", [True, False])
def test_engines_that_are_killed_together_are_one_restart(
    fleet: Any, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get no samples if Ray reports their deaths before the call; otherwise the third one takes those over."""
    running = fleet(3, 1)
    supervisor, names = running.engines.supervisor, [engine.name for engine in running.engines.all]
    for name in names[:2]:
        os.kill(supervisor._actors[name].where.process, signal.SIGKILL)
    end = time.monotonic() + 30
    while len(supervisor.dead_actors()) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    if not is_known:
        monkeypatch.setattr(running.engines, "_replace_dead", lambda context: None)
    assert len(running.answers(range(1, 9))) == 8
    [died] = [event for event in running.events if event["kind"] == "actor_died"]
    assert sorted([died["member"], *died["others"]]) == names[:2]
    assert died["cause"] == Cause.SILENT, "whoever noticed it: Ray says how it ended"
    assert supervisor.goodput.restarts == 1
    assert died["samples_redone"] == 0 if is_known else 4 < died["samples_redone"] <= 6, "of two engines"


def test_a_prompt_that_engines_die_of_is_set_aside_and_the_others_are_answered(fleet: Any) -> None:
    running = fleet(1)
    indices = [1, 2, POISON, 3]
    answers = running.answers(indices)
    assert answers.pop(2) == (POISON, FinishReason.SET_ASIDE)
    assert answers == {seed: (prompt, FinishReason.STOP) for seed, prompt in enumerate(indices) if prompt != POISON}


def test_a_prompt_that_engines_died_of_is_given_to_none_again(fleet: Any) -> None:
    """Neither its other samples in the same call, nor those of later ones, cost a death."""
    running = fleet(1)
    deaths = lambda: sum(event["kind"] == "actor_died" for event in running.events)  # noqa: E731
    indices = [POISON, POISON, 1, POISON]
    expected = {
        seed: (prompt, FinishReason.SET_ASIDE if prompt == POISON else FinishReason.STOP)
        for seed, prompt in enumerate(indices)
    }
    assert running.answers(indices) == expected
    assert deaths() == 4, "two, and one for each halving of four"
    assert running.answers(indices) == expected
    assert running.answers([POISON]) == {0: (POISON, FinishReason.SET_ASIDE)}
    assert deaths() == 4


def test_an_engine_that_leaves_a_prompt_out_is_not_believed(fleet: Any) -> None:
    with pytest.raises(MachineryError, match="rollout engine 0 did not answer all prompts during rollout of step 2"):
        fleet(1).answers([1, LEFT_OUT, 2])


def test_on_shared_gpus_a_replacement_starts_when_no_role_computes(fleet: Any) -> None:
    """vLLM measures free memory while it starts: between publishes roles allocate and free."""
    running = fleet(2)
    engines, names = running.engines, [engine.name for engine in running.engines.all]
    engines.sleeps = True
    engines.replace(engines.all[:1])
    assert [engine.is_started for engine in engines.all] == [False, True]
    assert [engine.actor is None for engine in engines.all] == [True, False]
    assert engines.serving == engines.all[1:]
    assert len(running.answers([1, 2, 3])) == 3 and engines.all[0].actor is None, "the other engine answers"
    engines.sleep(CONTEXT)  # of those that have an actor
    assert [engine.name for engine in engines.wait_for_started(CONTEXT)] == names, "it waits for all"
    assert all(engine.is_started for engine in engines.all)
    assert [engine.version for engine in engines.all] == [0, 0]


def test_on_gpus_of_its_own_a_replacement_starts_at_once(fleet: Any) -> None:
    running = fleet(2)
    engines = running.engines
    engines.replace(engines.all[:1])
    assert engines.all[0].actor is not None and not engines.all[0].is_started
    assert engines.wait_for_started(CONTEXT)[-1] is engines.all[1], "it waits for none as long as one is there"


def test_nothing_to_answer_is_answered_at_once(fleet: Any) -> None:
    assert fleet(1).answers([]) == {}


def test_an_answer_of_an_engine_that_is_replaced_in_the_same_call_does_not_count(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a node dies: the first engine has answered, and the second one's death shows that both are gone."""
    engines: Engines = fleet(3).engines
    lost = ("rollout engine 0", "rollout engine 1")
    monkeypatch.setattr(engines.supervisor, "with_dead_actors", lambda error: LostError(str(error), lost, "died"))
    answers = engines._each(engines.all, "held_fingerprint", CONTEXT)
    assert [engine.name for engine, _ in answers] == ["rollout engine 2"]


def test_a_run_does_not_bear_more_deaths_than_it_is_to(fleet: Any) -> None:
    running = fleet(1, 1)
    with pytest.raises(MachineryError, match=r"more than recovery\.restarts = 1"):
        running.answers([POISON, 1])
