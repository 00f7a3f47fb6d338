"""The actors of a run with a plan of faults: the real ones, which carry out orders in the middle of their work."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import wraps
from itertools import count
from pkgutil import resolve_name
from typing import Any

from actors.process import ProcessLocation
from actors.rollout import RolloutActor
from actors.weight_client import EngineClient
from actors.worker import Builder, Worker
from tests.end_to_end.director import DEVICE_ERROR
from tests.end_to_end.fault_plan import ANY, DEVICE, STOP, Marks, Strike

CHUNK_BYTES = 60_000
"""Several chunks a publish, however small the model: after the first one an update is open."""
STEPS_BETWEEN = 5
"""Steps of vLLM between two looks for an order: it comes in the middle of a rollout."""


class Hand:
    """Carries out an actor's orders: in its own process."""

    def __init__(self, member: str) -> None:
        self.member, self.marks = member, Marks.of_environment()

    def __call__(self, method: str) -> None:
        """Do what is ordered for this method.

        Raises:
            RuntimeError: an error of the device is ordered.
        """
        order = self.marks.take(self.member, (method, ANY))
        if order is None:
            return
        members, processes = (self.member, *order.also), (os.getpid(), *order.also.values())
        self.marks.struck(Strike(aim=order.aim, time=time.time(), members=members, processes=processes))
        if order.fault == DEVICE:
            raise RuntimeError(DEVICE_ERROR)
        for process in reversed(processes):  # this one last
            os.kill(process, signal.SIGSTOP if order.fault == STOP else signal.SIGKILL)


class PlannedRole:
    """A role, each of whose methods begins with a look for an order."""

    def __init__(self, role: Any, hand: Hand) -> None:
        self._role, self._hand = role, hand

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._role, name)
        return watched(found, self._hand) if callable(found) else found


class PlannedWorker(Worker):
    """A rank that carries out orders at the beginning of its work, or with weights half sent."""

    def build(self, builder: Builder, *arguments: Any) -> ProcessLocation:
        hand = Hand(self.where.name)

        def make(*given: Any) -> PlannedRole:
            hand("build")
            role = (resolve_name(builder) if isinstance(builder, str) else builder)(*given)
            if self.where.name.startswith("policy"):
                _watch_chunks(hand)
            return PlannedRole(role, hand)

        return super().build(make, *arguments)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return super().run(watched(function, Hand(self.where.name)), *arguments)


def watched(function: Callable[..., Any], hand: Hand) -> Callable[..., Any]:
    """The same function after a look for an order."""

    @wraps(function)
    def planned(*arguments: Any) -> Any:
        hand(function.__name__)
        return function(*arguments)

    return planned


def _watch_chunks(hand: Hand) -> None:
    """Have this process look for an order after each chunk of weights that it has sent."""
    from rlhf.weights import shared_memory  # imports vLLM, which this process needs anyway

    shared_memory.CHUNK_BYTES = CHUNK_BYTES
    send = EngineClient.update_weights

    def planned(self: EngineClient, update_info: dict[str, Any]) -> None:
        send(self, update_info)
        hand("chunk")

    EngineClient.update_weights = planned  # type: ignore[method-assign]


class PlannedEngine(RolloutActor):
    """An engine that carries out orders while it starts, in the middle of a rollout, or with weights half received."""

    async def build(self, *arguments: Any) -> ProcessLocation:
        hand = Hand(self.where.name)
        _watch_start(hand)
        where = await super().build(*arguments)
        self._watch(hand)
        return where

    def _watch(self, hand: Hand) -> None:
        llm, update, steps = self.engine.llm, self.engine.update, count(1)
        step = llm.step

        def planned_step() -> list[Any]:
            if next(steps) % STEPS_BETWEEN == 0:
                hand("generate")
            done: list[Any] = step()
            return done

        async def planned_update(update_info: dict[str, Any], seconds: float | None = None) -> None:
            await update(update_info, seconds)
            hand("chunk")

        llm.step = planned_step
        self.engine.update = planned_update  # type: ignore[method-assign]


def _watch_start(hand: Hand) -> None:
    """Have this process look for an order when vLLM has loaded the model."""
    from rlhf.generation.engine import RolloutEngine  # imports vLLM, which reads the actor's environment

    prepare = RolloutEngine.prepare_workers

    async def planned(self: RolloutEngine) -> list[int]:
        hand("build")
        return await prepare(self)

    RolloutEngine.prepare_workers = planned  # type: ignore[method-assign]
