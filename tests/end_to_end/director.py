"""Decides, in the controller's process, when the next fault of a plan is due; does it, or orders an actor to do it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.end_to_end.fault_plan import (
    ANY,
    ASK,
    CONTROLLER,
    DEVICE,
    KILL,
    MEMBERS,
    MEMORY,
    RESTORE,
    START,
    STOP,
    UPDATE,
    Aim,
    Marks,
    Order,
    Strike,
)

STOPPED_SECONDS = 20
"""How long a controller is stopped: longer than the shortest deadline of its actors."""
DEVICE_ERROR = "CUDA error: uncorrectable ECC error encountered"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the supervisor knows of an actor: its process, None before it has loaded, and whether it serves."""

    process: int | None
    serves: bool


Actors = Mapping[str, Seen]


class Director:
    """Does the faults of a plan one after another; a command that is given again goes on where the last one ended."""

    def __init__(
        self, plan: Sequence[Aim], marks: Marks, kill: Callable[[int, signal.Signals], None] = os.kill
    ) -> None:
        """A command begins, whose first fault may be due while its actors load.

        Args:
            kill: sends a signal to a process.
        """
        self.plan, self.marks, self._kill = plan, marks, kill
        self._step = self._ordered = -1
        self._vain = {index: self._opened(index) for index in range(len(plan))}
        """By aim: how often the run was made to restore itself and the fault did not happen then."""
        marks.cancel()
        found = self._first = self._next()
        if found is not None and found[1].phase == START and found[1].role != CONTROLLER:
            self._order(*found, {})

    def loaded(self) -> None:
        """The first actor has loaded. A command has one fault at its start."""
        found = self._next()
        if found is None or found != self._first:
            return
        if found[1].phase == START and found[1].role == CONTROLLER:
            self._do_to_controller(*found)

    def entered(self, phase: str, step: int | None, actors: Actors) -> None:
        """The run enters a phase; faults that are due happen before this returns, or in the actor's work."""
        self._step = self._step if step is None else step
        self.marks.enter(phase)
        is_whole = self._is_whole(actors)
        found = self._next()
        if found is None or self._waits_for_order(found[0]):
            return
        aim = found[1]
        has_opened = self._opened(found[0]) > self._vain[found[0]]
        if self._step < aim.step or aim.phase == START or not (is_whole or has_opened):
            return
        if aim.phase == RESTORE and not has_opened:
            if phase == UPDATE:
                self._open(found[0], aim, actors)
        elif phase == aim.entry:
            self._do(*found, actors)

    def _opened(self, index: int) -> int:
        return sum(strike.opens and strike.aim == index for strike in self.marks.strikes())

    def _waits_for_order(self, index: int) -> bool:
        """Whether an order is still to be carried out; one for work that has not come for a step is given anew."""
        orders = self.marks.orders()
        if not orders or self._step <= self._ordered + 1 or any(order.method == ANY for order in orders):
            return bool(orders)
        self.marks.cancel()
        self._vain[index] = self._opened(index)
        return False

    def _next(self) -> tuple[int, Aim] | None:
        """Number of the next aim, and the aim."""
        done = {strike.aim for strike in self.marks.strikes() if not strike.opens}
        return next(((index, aim) for index, aim in enumerate(self.plan) if index not in done), None)

    def _is_whole(self, actors: Actors) -> bool:
        """Whether all actors serve, and none is one to which the last fault happened; records when it first is."""
        strikes = self.marks.strikes()
        struck = strikes[-1].processes if strikes else ()
        processes = [os.getpid(), *(seen.process for seen in actors.values())]
        if not all(seen.serves for seen in actors.values()) or set(processes) & set(struck):
            return False
        if strikes and strikes[-1].aim not in self.marks.whole() and not strikes[-1].opens:
            self.marks.is_whole_since(strikes[-1].aim)
        return True

    def _open(self, index: int, aim: Aim, actors: Actors) -> None:
        """Kill an actor of another trained role, so that the run restores itself."""
        member = MEMBERS["policy" if aim.role == "critic" else "critic"][-1]
        process = actors[member].process
        assert process is not None
        self._record(index, {member: process}, opens=True)
        self._kill(process, signal.SIGKILL)

    def _do(self, index: int, aim: Aim, actors: Actors) -> None:
        if aim.role == CONTROLLER:
            self._do_to_controller(index, aim)
        elif aim.inside or aim.fault == DEVICE:
            self._order(index, aim, actors)
        else:
            self._signal(index, aim, actors)

    def _order(self, index: int, aim: Aim, actors: Actors) -> None:
        """Have the actor do it to itself: in its work of this phase, or in its next work if it is idle."""
        method, self._ordered = aim.inside[1] if aim.inside else ANY, self._step
        also = self._partner(aim, actors) if aim.fault == MEMORY else {}
        phase = aim.phase if aim.entry != aim.phase else ""
        self.marks.give(aim.member, Order(aim=index, fault=aim.fault, method=method, phase=phase, also=also))

    def _signal(self, index: int, aim: Aim, actors: Actors) -> None:
        """Send a signal to an idle actor, and for MEMORY to its partner too."""
        process = actors[aim.member].process
        assert process is not None
        struck = {aim.member: process, **(self._partner(aim, actors) if aim.fault == MEMORY else {})}
        self._record(index, struck)
        for each in struck.values():
            self._kill(each, signal.SIGSTOP if aim.fault == STOP else signal.SIGKILL)

    def _partner(self, aim: Aim, actors: Actors) -> dict[str, int]:
        """An actor of the next role, and its process: Ray's memory monitor often kills several at once."""
        roles = list(MEMBERS)
        member = MEMBERS[roles[(roles.index(aim.role) + 1) % len(roles)]][0]
        process = actors[member].process if member in actors else None
        return {} if process is None else {member: process}

    def _do_to_controller(self, index: int, aim: Aim) -> None:
        own = os.getpid()
        if aim.fault == STOP:  # it is no other process when it goes on
            self.marks.struck(Strike(aim=index, time=time.time(), members=(CONTROLLER,), processes=()))
            subprocess.Popen(["sh", "-c", f"sleep {STOPPED_SECONDS}; kill -CONT {own}"])
            self._kill(own, signal.SIGSTOP)
            return
        self._record(index, {CONTROLLER: own})
        if aim.fault == MEMORY:
            raise MemoryError
        if aim.fault == DEVICE:
            raise RuntimeError(DEVICE_ERROR)
        self._kill(own, {KILL: signal.SIGKILL, ASK: signal.SIGTERM}[aim.fault])

    def _record(self, index: int, struck: Mapping[str, int], opens: bool = False) -> None:
        self.marks.struck(
            Strike(aim=index, time=time.time(), members=tuple(struck), processes=tuple(struck.values()), opens=opens)
        )
