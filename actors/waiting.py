"""Waits for actors' answers with a deadline; an error names the actors, the phase and the step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from actors.pending import Pending
from actors.ray_errors import late_error, translate_error
from rlhf.config.schema import Recipe
from rlhf.errors import LostError, RLHFError
from rlhf.recovery.deadlines import Deadlines, Work
from rlhf.recovery.diagnosis import Cause, named_cause
from rlhf.recovery.member import role_of
from rlhf.tracking.spans import Spans

SLICE_SECONDS = 0.25
"""Interval at which a wait checks whether the run should stop."""
CULPRIT_SECONDS = 3.0
"""How long to wait for Ray to report which peer died, after a rank reported that a peer is gone."""
WAIT_SECONDS = 0.005
"""Shorter waits are left out of the timeline."""
START = "start"
"""The phase in which actors load; its deadline is ``placement.start_timeout_seconds``."""
ABANDON = "abandon"
"""Work that only aborts other work: an actor that takes long over it is stuck."""
UNPREDICTABLE = frozenset({"restore", "load", "checkpoint"})
"""Work whose duration depends on where its data is: in this node's memory, on another node, or on a busy disk. Past
durations do not predict it, so that its deadline is always ``placement.phase_timeout_seconds``."""
FOLLOWS = (Cause.PEER, Cause.NCCL)
"""Causes of a rank's failure that often follow from another rank's."""


@dataclass(frozen=True, kw_only=True)
class PhaseContext:
    """Phase and step of a call, for messages and deadlines."""

    phase: str
    step: int | None = None
    work: str = ""
    """Method called on the actor, if the phase is not named after it."""

    def __str__(self) -> str:
        phase = self.phase if self.step is None else f"{self.phase} of step {self.step}"
        return f"{self.work} in {phase}" if self.work else phase

    def of(self, work: str) -> PhaseContext:
        """The same phase and step, for other work than the phase's own; it has separate deadlines."""
        return replace(self, work=work)

    def work_of(self, who: str) -> Work:
        """Role and kind of work of an actor, by which its deadline is learned."""
        return Work(role=role_of(who), kind=self.work or self.phase)


class AnswerDeadlines:
    """Waits for results under deadlines, which are learned from how long the same work took before."""

    def __init__(
        self,
        recipe: Recipe,
        check: Callable[[], None] = lambda: None,
        spans: Spans | None = None,
        idle_seconds: Callable[[Sequence[str]], Mapping[str, float]] = lambda names: {},
    ) -> None:
        """Read the deadlines of the recipe.

        Args:
            check: called regularly during a wait, and ends it by raising.
            spans: records long waits.
            idle_seconds: asks actors for the seconds since their last progress in the current call; actors without
                progress, or without an answer, are left out.
        """
        self._idle_seconds, self._progress_limit = idle_seconds, recipe.recovery.progress_limit_seconds
        place, recovery = recipe.placement, recipe.recovery
        self.check, self.start_seconds, self.spans = check, place.start_timeout_seconds, spans or Spans()
        self.learned = Deadlines(
            floor=recovery.stall_floor_seconds, factor=recovery.stall_factor, ceiling=place.phase_timeout_seconds
        )
        self.service_phases = service_phases(recipe)
        self._taken: dict[tuple[str, Work], float] = {}
        """Seconds waited for results that are ready and not yet fetched, by actor and work."""

    def seconds(self, who: str, context: PhaseContext) -> float:
        """Deadline: longest time without an answer of this actor."""
        if context.phase == START:
            return self.start_seconds
        if context.work == ABANDON:
            return self.learned.shortest
        if context.phase in self.service_phases and not context.work:
            return self.learned.ceiling
        if (context.work or context.phase) in UNPREDICTABLE:
            return self.learned.ceiling
        return self.learned.of(context.work_of(who))

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Context in which ``check`` is not called: only a deadline ends a wait."""
        check, self.check = self.check, lambda: None
        try:
            yield
        finally:
            self.check = check

    def next_ready(self, pending: Pending, context: PhaseContext) -> tuple[Any, str]:
        """Wait for a ready result and take it; returns its key and its actor's name.

        Raises:
            LostError: an actor gave no result and made no progress within its deadline, even if others did.
        """
        deadline, since = partial(self.seconds, context=context), self.spans.clock()
        while True:
            self.check()
            is_ready = pending.wait(min(SLICE_SECONDS, max(pending.seconds_left(deadline), 0.0)))
            if names := self._stalled(pending, deadline, context):
                pending.restart(names)
                raise late_error(names, context, min(map(deadline, names)))
            if is_ready:
                key, name, seconds = pending.pop()
                self._record_answer(name, seconds, context)
                if self.spans.clock() - since >= WAIT_SECONDS:
                    self.spans.add(f"wait for {name}", since, context.step)
                return key, name

    def _stalled(self, pending: Pending, deadline: Callable[[str], float], context: PhaseContext) -> tuple[str, ...]:
        """Names of the late actors that made no progress within their deadline either.

        Progress counts in a phase's own work only: it says nothing of other work, such as an abort.
        """
        late = pending.late(deadline)
        if not late or context.work or context.phase == START:
            return late
        pending.count_progress(self._idle_seconds(late), deadline, self._progress_limit)
        pending.wait(0.0)  # an answer may have come meanwhile
        return pending.late(deadline)

    def _record_answer(self, name: str, seconds: float, context: PhaseContext) -> None:
        work = context.work_of(name)
        self._taken[name, work] = max(seconds, self._taken.get((name, work), 0.0))

    def learn_duration(self, who: str, context: PhaseContext, is_sound: bool) -> None:
        """Learn the duration of work whose result was fetched; a failure (``is_sound`` false) is not learned."""
        work = context.work_of(who)
        seconds = self._taken.pop((who, work), None)
        if is_sound and seconds is not None:
            self.learned.took(work, seconds)


def service_phases(recipe: Recipe) -> frozenset[str]:
    """Phases that call a reward service.

    Past durations do not predict its next outage, so that the deadline is always ``placement.phase_timeout_seconds``;
    ``rlhf.roles.reward`` grants the service a part of it.
    """
    parts = {"score": [*recipe.rewards.values()], "judge": [recipe.early_stop.scorer] if recipe.early_stop else []}
    return frozenset(phase for phase, sources in parts.items() if any(source.endpoint for source in sources))


def wait(
    refs: Sequence[ray.ObjectRef], who: Sequence[str], context: PhaseContext, deadlines: AnswerDeadlines
) -> list[Any]:
    """Return the values of all references, in their order; fails as soon as one of them fails.

    Args:
        who: name of each reference's actor.

    Raises:
        UserError, CanaryError, MachineryError: raised deliberately by the actor, passed on unchanged.
        LostError: an actor died, lost a peer, or was late.
    """
    pending = Pending(dict(zip(refs, who, strict=True)))
    fetched: dict[ray.ObjectRef, Any] = {}
    while pending:
        ref, name = deadlines.next_ready(pending, context)
        try:
            fetched[ref] = fetch(ref, name, context, deadlines)
        except LostError as error:
            raise _culprit(error, pending, context) from error
    return [fetched[ref] for ref in refs]


def fetch(ref: ray.ObjectRef, who: str, context: PhaseContext, deadlines: AnswerDeadlines) -> Any:
    """Return the value of one reference; errors of Ray become the project's own."""
    is_sound, seconds = False, deadlines.seconds(who, context)
    try:
        value = ray.get(ref, timeout=seconds)
        is_sound = True
        return value
    except RayError as error:
        raise translate_error(error, who, context, seconds) from error
    finally:
        deadlines.learn_duration(who, context, is_sound)


def _culprit(error: LostError, pending: Pending, context: PhaseContext) -> RLHFError:
    """The failure of another rank from which this one follows, if Ray reports it within ``CULPRIT_SECONDS``.

    That is a death, or, where this rank lost its peer, an error of the peer. Otherwise it is the error itself.
    """
    cause = named_cause(error.message)
    if error.kind != "failed" or not (cause is None or cause in FOLLOWS):
        return error
    end = time.monotonic() + CULPRIT_SECONDS
    while pending and (left := end - time.monotonic()) > 0:
        if pending.wait(left):
            ref, name, _ = pending.pop()
            other = _failure(ref, name, context)
            if other is not None and _precedes(other, cause):
                return other
    return error


def _precedes(other: RLHFError, cause: Cause | None) -> bool:
    """Whether a rank's failure explains that of a rank which failed for ``cause``."""
    if isinstance(other, LostError) and other.kind == "died":
        return True
    return cause in FOLLOWS and named_cause(str(other)) not in FOLLOWS


def _failure(ref: ray.ObjectRef, name: str, context: PhaseContext) -> RLHFError | None:
    try:
        ray.get(ref, timeout=0)
    except RayError as error:
        return translate_error(error, name, context)
    return None
