"""Waiting for actors: never without a deadline, and with a failure that says who, where and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from actors.losses import late, own_error
from rlhf.config.schema import Recipe
from rlhf.errors import LostError
from rlhf.recovery.deadlines import Deadlines, Work
from rlhf.recovery.member import role_of
from rlhf.tracking.spans import Spans

SLICE_SECONDS = 0.25
"""Longest time for which a wait does not look whether the run is to stop."""
CULPRIT_SECONDS = 3.0
"""How long a failure that blames a peer waits for Ray to say which peer died."""
WAIT_SECONDS = 0.005
"""Waits that are shorter are left out of the timeline."""
START = "start"
"""The phase in which actors load what they hold; its deadline is one of its own."""
ABANDON = "abandon"
"""Work that only ends other work: whoever takes long over it is stuck."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What the run is doing, for messages: the phase, and the step if there is one."""

    phase: str
    step: int | None = None
    work: str = ""
    """What is asked of an actor, where that is not what the phase is named after."""

    def __str__(self) -> str:
        phase = self.phase if self.step is None else f"{self.phase} of step {self.step}"
        return f"{self.work} in {phase}" if self.work else phase

    def of(self, work: str) -> Moment:
        """The same moment, for other work than the phase's own: it has deadlines of its own."""
        return replace(self, work=work)

    def work_of(self, who: str) -> Work:
        """What an actor does now, as far as its deadline goes."""
        return Work(role=role_of(who), kind=self.work or self.phase)


@dataclass(kw_only=True)
class Silence:
    """An actor that is waited for: ``refs`` are what it owes, ``seconds`` how long it was waited for since it last gave
    something. Time in which nobody waited does not count."""

    refs: set[Any]
    seconds: float = 0.0


class Patience:
    """How long an answer may take, by what the same work has taken so far; and whether to go on waiting."""

    def __init__(self, recipe: Recipe, check: Callable[[], None] = lambda: None, spans: Spans | None = None) -> None:
        """Args: check is called every so often during a wait; what it raises ends the wait. spans is told of each."""
        place, recovery = recipe.placement, recipe.recovery
        self.check, self.start_seconds, self.spans = check, place.start_timeout_seconds, spans or Spans()
        self.deadlines = Deadlines(
            floor=recovery.stall_floor_seconds, factor=recovery.stall_factor, ceiling=place.phase_timeout_seconds
        )
        self.unhurried = service_phases(recipe)
        self._silences: dict[str, Silence] = {}
        self._taken: dict[tuple[str, Work], float] = {}
        """By actor and work, how long was waited for what has come and was not looked at yet."""

    def seconds(self, who: str, moment: Moment) -> float:
        """Longest time without an answer of this actor."""
        if moment.phase == START:
            return self.start_seconds
        if moment.work == ABANDON:
            return self.deadlines.shortest
        if moment.phase in self.unhurried and not moment.work:
            return self.deadlines.ceiling
        return self.deadlines.of(moment.work_of(who))

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Within the block nothing ends a wait but its deadline."""
        check, self.check = self.check, lambda: None
        try:
            yield
        finally:
            self.check = check

    def next_ready(self, pending: Mapping[Any, str], moment: Moment) -> Any:
        """The first of the references, or streams, that has something to give; ``pending`` says whose each is.

        Who is silent stays silent from call to call, as long as something of the same is pending.

        Raises:
            LostError: somebody gave nothing within the deadline, whatever the others gave.
        """
        silences, since = self._of(pending), self.spans.clock()
        limits = {name: self.seconds(name, moment) for name in silences}
        while True:
            self.check()
            begin = time.monotonic()
            left = min(limits[name] - silence.seconds for name, silence in silences.items())
            done, _ = ray.wait(
                list(pending), num_returns=1, timeout=min(SLICE_SECONDS, max(left, 0.0)), fetch_local=False
            )
            for silence in silences.values():
                silence.seconds += time.monotonic() - begin
            names = tuple(sorted(name for name, silence in silences.items() if _is_late(silence, limits[name])))
            if names:
                for name in names:
                    del self._silences[name]
                raise LostError(late(names, moment, min(limits[name] for name in names)), names, "stalled")
            if done:
                self._heard(pending[done[0]], moment)
                if self.spans.clock() - since >= WAIT_SECONDS:
                    self.spans.add(f"wait for {pending[done[0]]}", since, moment.step)
                return done[0]

    def _of(self, pending: Mapping[Any, str]) -> dict[str, Silence]:
        """How long each actor has been silent: from now on, where nothing of what it owes was waited for before."""
        owed: dict[str, set[Any]] = {}
        for ref, name in pending.items():
            owed.setdefault(name, set()).add(ref)
        for name, refs in owed.items():
            before = self._silences.get(name)
            seconds = before.seconds if before is not None and before.refs & refs else 0.0
            self._silences[name] = Silence(refs=refs, seconds=seconds)
        return {name: self._silences[name] for name in owed}

    def _heard(self, name: str, moment: Moment) -> None:
        seconds, work = self._silences.pop(name).seconds, moment.work_of(name)
        self._taken[name, work] = max(seconds, self._taken.get((name, work), 0.0))

    def looked_at(self, who: str, moment: Moment, is_sound: bool) -> None:
        """What came of an actor was sound: the same work may take as long again. A failure teaches nothing."""
        work = moment.work_of(who)
        seconds = self._taken.pop((who, work), None)
        if is_sound and seconds is not None:
            self.deadlines.took(work, seconds)


def service_phases(recipe: Recipe) -> frozenset[str]:
    """Phases in which a service is asked. What they have taken does not tell how long it will be away next: they may
    take ``placement.phase_timeout_seconds`` each time, of which ``rlhf.roles.reward`` gives the service a part."""
    parts = {"score": [*recipe.rewards.values()], "judge": [recipe.early_stop.scorer] if recipe.early_stop else []}
    return frozenset(phase for phase, sources in parts.items() if any(source.endpoint for source in sources))


def wait(refs: Sequence[ray.ObjectRef], who: Sequence[str], moment: Moment, patience: Patience) -> list[Any]:
    """The values of all references, in their order; fails as soon as one of them fails.

    Args:
        who: the actor behind each reference.

    Raises:
        UserError, CanaryError, MachineryError: raised by the actor on purpose, passed on as they are.
        LostError: an actor died, lost a peer, or was late.
    """
    pending = dict(zip(refs, who, strict=True))
    fetched: dict[ray.ObjectRef, Any] = {}
    while pending:
        ref = patience.next_ready(pending, moment)
        name = pending.pop(ref)
        try:
            fetched[ref] = fetch(ref, name, moment, patience)
        except LostError as error:
            raise _culprit(error, pending, moment) from error
    return [fetched[ref] for ref in refs]


def fetch(ref: ray.ObjectRef, who: str, moment: Moment, patience: Patience) -> Any:
    """One value, with failures turned into the project's own errors."""
    is_sound, seconds = False, patience.seconds(who, moment)
    try:
        value = ray.get(ref, timeout=seconds)
        is_sound = True
        return value
    except RayError as error:
        raise own_error(error, who, moment, seconds) from error
    finally:
        patience.looked_at(who, moment, is_sound)


def _is_late(silence: Silence, limit: float) -> bool:
    """Whether the deadline passed and there is nothing of the actor that was not taken yet."""
    refs = list(silence.refs)
    return silence.seconds >= limit and not ray.wait(refs, num_returns=1, timeout=0, fetch_local=False)[0]


def _culprit(error: LostError, pending: Mapping[ray.ObjectRef, str], moment: Moment) -> LostError:
    """The error of the rank that died, where a peer of it complained first."""
    if error.kind != "failed":
        return error
    end = time.monotonic() + CULPRIT_SECONDS
    left = dict(pending)
    while left and time.monotonic() < end:
        done, _ = ray.wait(list(left), num_returns=1, timeout=SLICE_SECONDS, fetch_local=False)
        for ref in done:
            died = _death(ref, left.pop(ref), moment)
            if died is not None:
                return died
    return error


def _death(ref: ray.ObjectRef, name: str, moment: Moment) -> LostError | None:
    try:
        ray.get(ref, timeout=0)
    except RayError as error:
        own = own_error(error, name, moment)
        return own if isinstance(own, LostError) and own.kind == "died" else None
    return None
