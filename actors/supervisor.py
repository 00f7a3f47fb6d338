"""Tracks every actor's state, diagnoses failures, and enforces the restart budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from actors.inspection import collect_activity, dead_actors, inspect, terminate
from actors.memory import MemoryWatch
from actors.process import ProcessLocation
from actors.ray_errors import translate_error
from actors.timeline import Actors, TimelineCollector
from actors.waiting import SLICE_SECONDS, START, AnswerDeadlines, PhaseContext
from rlhf.config.schema import Recipe
from rlhf.errors import LostError, MachineryError
from rlhf.metrics import labelled
from rlhf.recovery.budget import Budget, History
from rlhf.recovery.diagnosis import FRESH_SECONDS, diagnose
from rlhf.recovery.facts import Facts, oom_kills, oom_kills_since
from rlhf.recovery.goodput import Goodput
from rlhf.recovery.incident import Incident
from rlhf.recovery.member import Member

CLUSTER = "cluster"
"""Role of an incident that cannot be attributed to an actor."""
STATUS = "status.json"
"""File in the stage's folder with the current phase and step and the state of every actor."""


@dataclass
class ActorRecord:
    """What the supervisor knows of an actor; times are seconds of ``time.time``."""

    member: Member
    actor: Any
    where: ProcessLocation | None = None
    heard: float = 0.0
    """Last time at which it was known to be alive."""
    lost_at: float | None = None
    """Time of its failure, until a replacement serves."""
    oom_kills_here: int | None = None
    """``oom_kills()`` of the controller's node when the actor was started; used until the actor's node is known."""


class Supervisor:
    """State of a run's actors, their failures and the restarts that remain."""

    def __init__(
        self,
        recipe: Recipe,
        report: Callable[..., None],
        check: Callable[[], None] = lambda: None,
        status: Path | None = None,
        timeline: TimelineCollector | None = None,
    ) -> None:
        """Begin without actors; ``started`` adds each.

        Args:
            report: writes an event, given its kind and details.
            check: called regularly during waits, and ends the run by raising.
            status: path of the status file; None writes none.
            timeline: collects the actors' spans.
        """
        config = recipe.recovery
        self.timeline = timeline or TimelineCollector()
        self.deadlines = AnswerDeadlines(recipe, lambda: self._poll(check), self.timeline.spans)
        self.goodput = Goodput(time.time)
        self.phase = START
        """Current phase."""
        self.steps: int | None = None
        """Number of steps of the stage, once known; written to the status file."""
        self._report, self._status, self._bad_samples = report, status, config.bad_samples
        self._budget = Budget(
            restarts=config.restarts,
            backoff_seconds=config.backoff_seconds,
            backoff_limit_seconds=config.backoff_limit_seconds,
        )
        self._history = History()
        self._actors: dict[str, ActorRecord] = {}
        self._memory = MemoryWatch()
        self._context = PhaseContext(phase=START)
        self._lost_kind = "died"
        """Kind of the last failure."""

    def started(self, name: str, actor: Any) -> None:
        """Record that a process for this actor is starting: the first, or a replacement."""
        now, kills, record = time.time(), oom_kills(), self._actors.get(name)
        if record is None:
            self._actors[name] = ActorRecord(member=Member(name=name), actor=actor, heard=now, oom_kills_here=kills)
            return
        self.terminate([name])  # its own process may still run, if only a peer failed
        record.member, record.actor, record.where = record.member.restarted(), actor, None
        record.oom_kills_here = kills

    def built(self, where: ProcessLocation) -> None:
        """Record that an actor has loaded; the version of its weights is not verified yet."""
        record = self._actors[where.name]
        record.where, record.heard = where, time.time()
        record.member = record.member.loaded()

    def published(self, name: str, version: int) -> None:
        """Record that ``version`` of the weights is published: it must be verified before the actor serves."""
        record = self._actors[name]
        record.member = record.member.published_to(version)

    def verified(self, name: str, version: int) -> None:
        """Record that an actor holds ``version`` of the weights, verified, and serves."""
        if self._admit(name, version):
            self._write_status()

    def _admit(self, name: str, version: int) -> bool:
        """Mark an actor as serving; returns whether it replaces a failed one."""
        now, record = time.time(), self._actors[name]
        record.member = record.member.verified(version)
        record.heard = now
        if record.lost_at is None:
            return False
        seconds, record.lost_at = now - record.lost_at, None
        self._history = self._history.closed(name, seconds)
        self._report("actor_replaced", member=name, seconds=round(seconds, 3), where=str(record.where))
        return True

    def serve(self, names: Sequence[str]) -> None:
        """Mark actors as serving without a verification: their weights never change, or were just restored."""
        members = [self._actors[name].member for name in names]
        replaced = [self._admit(each.name, each.published) for each in members if not each.serves]
        if any(replaced):
            self._write_status()  # once for all: a group may have hundreds of ranks

    def enter_phase(self, context: PhaseContext) -> None:
        """Set the current phase and step, and write the status file."""
        self.phase, self._context = context.phase, context
        self._write_status()
        self.timeline.collect()

    def nodes(self) -> dict[str, str]:
        """Ids of the nodes of all actors that have loaded, by the actor's name."""
        return {name: record.where.node_id for name, record in self._actors.items() if record.where is not None}

    def begin_step(self, step: int) -> None:
        """Begin a step in the timeline, and request the actors' spans."""
        self.timeline.step(step, self._at_work())

    @contextmanager
    def on_timeline(self) -> Iterator[None]:
        """Collect the actors' last spans when the block ends."""
        try:
            yield
        finally:
            self.timeline.finish(self._at_work())

    def _poll(self, check: Callable[[], None]) -> None:
        """Called regularly during a wait: collects spans, and checks whether the run should stop."""
        self.timeline.poll()
        check()

    def _at_work(self) -> Actors:
        return {name: (record.actor, record.where) for name, record in self._actors.items() if record.where is not None}

    def _write_status(self) -> None:
        if self._status is None:
            return
        context = self._context
        members = {
            name: {"state": str(record.member.state), "heard": record.heard, **_location_fields(record.where)}
            for name, record in self._actors.items()
        }
        at = {"phase": context.phase, "step": context.step, "steps": self.steps}
        status = {**at, "since": time.time(), "members": members}
        partial = self._status.with_suffix(".partial")
        with suppress(OSError):  # the status file is informative: a failure to write it must not end the run
            partial.write_text(json.dumps(status), encoding="utf-8")
            partial.replace(self._status)

    def resume(self, account: Mapping[str, Any]) -> None:
        """Resume the run's time account; the previous command's end is taken as its last write of the status file."""
        last_seen = self._status.stat().st_mtime if self._status and self._status.exists() else None
        self.goodput = Goodput.resumed(account, time.time, last_seen)

    def memory(self) -> dict[str, float]:
        """Memory metrics by role, from the actors' latest answers."""
        return self._memory.metrics(
            {name: record.actor for name, record in self._actors.items() if record.where is not None}
        )

    def summary(self) -> dict[str, float | str]:
        """Goodput and failure counts, for the summary at the end of the run."""
        numbers = self.goodput.metrics()
        failures = labelled("health/restarts", "health/redispatched", "health/set_aside", "health/seconds_lost")
        return {
            "goodput": numbers["perf/goodput"],
            **{label: numbers[name] for label, name in failures.items() if numbers[name]},
        }

    def time_lost(self) -> AbstractContextManager[None]:
        """Context whose duration counts as lost to the last failure: the run waits for replacements."""
        return self.goodput.waiting(self._lost_kind)

    def set_aside(self, faults: Sequence[tuple[int, str]], before: int, context: PhaseContext) -> int:
        """Record quarantined samples, by prompt and reason; returns their number.

        Args:
            before: number of samples quarantined earlier.

        Raises:
            MachineryError: they are more than ``recovery.bad_samples``.
        """
        for prompt, reason in faults:
            self._report("sample_set_aside", prompt=prompt, reason=reason, phase=context.phase, step=context.step)
        self.goodput.set_aside += len(faults)
        if before + len(faults) > self._bad_samples:
            prompt, reason = faults[-1]
            raise MachineryError(
                f"{before + len(faults)} samples were quarantined, more than "
                f"recovery.bad_samples = {self._bad_samples}; the last during {context}: prompt {prompt}: {reason}"
            )
        return len(faults)

    def step_done(self, step: int, seconds: float) -> None:
        """Record a completed step: every actor has taken part in it."""
        self.goodput.step(step, seconds)
        self._history = self._history.after_step()
        for record in self._actors.values():
            record.heard = time.time()

    def with_dead_actors(self, error: LostError) -> LostError:
        """Add the names of all actors that are dead by now to an error: the cause of one death often kills others too.

        An error without names stays without names if Ray reports all actors alive.
        """
        known = [name for name in error.names if name in self._actors]
        dead = dead_actors({name: record.actor for name, record in self._actors.items() if record.member.has_process})
        kind = error.kind if known or not dead else "died"
        return LostError(error.message, tuple(dict.fromkeys((*known, *dead))), kind)

    @property
    def should_replace_all(self) -> bool:
        """Whether failures without a dead actor occurred twice within one step."""
        return self._history.in_a_row.get(CLUSTER, 0) > 1

    def handle_loss(self, error: LostError, context: PhaseContext, samples: int = 0) -> None:
        """Report lost actors with a diagnosis, kill their remaining processes, and wait for the backoff.

        Actors that are lost together count as one restart, whether one rank or all ranks of a group.

        Args:
            samples: number of samples to re-dispatch.

        Raises:
            MachineryError: the restart budget is spent; the message contains the history.
        """
        self._lost_kind = error.kind
        with self.time_lost():
            incidents = self._incidents(error, context) or [self._unattributed_incident(error, context)]
            self._history = self._history.after(*incidents)
            self.goodput.restarts += 1
            self.goodput.redispatched += samples
            for index, incident in enumerate(incidents):
                redone = samples if index == 0 else 0
                self._report(f"actor_{incident.kind}", **{**incident.details(), "samples_redone": redone})
                print(incident.text(), flush=True)
            self.terminate([name for name in error.names if name in self._actors], error.kind)
            self._write_status()
            self._back_off(incidents, error)

    def _back_off(self, incidents: Sequence[Incident], error: LostError) -> None:
        waits = [self._budget.wait(self._history, incident.role) for incident in incidents]
        if any(wait is None for wait in waits):
            raise MachineryError(
                f"{incidents[-1].text()}\n  more than recovery.restarts = {self._budget.restarts} restarts:\n"
                f"{self._history.text()}"
            ) from error
        ends = time.monotonic() + max(wait or 0.0 for wait in waits)
        while (left := ends - time.monotonic()) > 0:
            self.deadlines.check()
            time.sleep(min(left, SLICE_SECONDS))

    def final_error(self, error: LostError, context: PhaseContext) -> MachineryError:
        """Report lost actors that are not replaced, and return the error that ends the run."""
        incidents = self._incidents(error, context)
        for incident in incidents:
            self._report(f"actor_{incident.kind}", **incident.details())
        text = "\n".join(incident.text() for incident in incidents)
        return MachineryError(text or str(error))

    @contextmanager
    def diagnosed(self) -> Iterator[None]:
        """Context that turns an unhandled loss of an actor into the error that ends the run, with its diagnosis."""
        try:
            yield
        except (LostError, RayError) as error:
            context = PhaseContext(phase=self.phase)
            raise self.final_error(self.with_dead_actors(as_loss(error, context)), context) from error

    def _incidents(self, error: LostError, context: PhaseContext) -> list[Incident]:
        """Diagnose lost actors, one incident per role.

        If some are dead, stopped or unresponsive, only those are reported: their peers merely wait for them.
        """
        facts = self._facts([name for name in error.names if name in self._actors], error)
        guilty = [name for name, fact in facts.items() if is_blocking(fact)] or list(facts)
        roles: dict[str, list[str]] = {}
        for name in guilty:
            roles.setdefault(_role(name), []).append(name)
        return [self._incident(names, error, context, facts[names[0]]) for names in roles.values()]

    def _incident(self, names: Sequence[str], error: LostError, context: PhaseContext, facts: Facts) -> Incident:
        """Incident of actors of one role; ``facts`` are the first one's."""
        where = self._actors[names[0]].where
        found = diagnose(facts)
        return Incident(
            when=time.time(),
            member=names[0],
            others=tuple(names[1:]),
            role=_role(names[0]),
            rank=int(names[0].rpartition(" ")[2]),
            node=where.node if where else None,
            process=where.process if where else None,
            step=context.step,
            phase=context.phase,
            kind=error.kind,  # type: ignore[arg-type]
            what=error.message,
            cause=found.cause,
            advice=found.advice,
            facts=facts,
        )

    def _unattributed_incident(self, error: LostError, context: PhaseContext) -> Incident:
        """Incident of a lost result, with no lost actor: an object that was stored on a failed node, for example."""
        found, again = diagnose(Facts(alive=False, exit_text=error.message)), self._history.in_a_row.get(CLUSTER, 0)
        follows = "the faulty one is not known, all are replaced" if again else "it is computed again"
        return Incident(
            when=time.time(),
            member="a result",
            role=CLUSTER,
            step=context.step,
            phase=context.phase,
            kind="failed",
            what=f"{error.message}; all actors are alive: {follows}",
            cause=found.cause,
            advice=found.advice,
        )

    def _facts(self, names: Sequence[str], error: LostError) -> dict[str, Facts]:
        """Facts about actors: process state on their nodes, heartbeat, current activity, error and log tail."""
        stalled, now = error.kind == "stalled", time.time()
        actors = {name: self._actors[name] for name in names}
        activity = collect_activity({name: record.actor for name, record in actors.items()}) if stalled else {}
        found = inspect([record.where for record in actors.values() if record.where is not None], stalled)
        for name in activity:
            actors[name].heard = now
        for name, record in actors.items():
            if record.where is None:  # it failed before it reported its node: use the controller's node
                found[name] = Facts(alive=stalled, oom_kills_since_start=oom_kills_since(record.oom_kills_here)), ""
        return {
            name: replace(
                found[name][0],
                heartbeat_age_seconds=now - record.heard,
                doing=activity.get(name),
                exit_text="" if stalled else f"{error.message}\n{found[name][1]}",
            )
            for name, record in actors.items()
        }

    def terminate(self, names: Sequence[str], kind: str = "failed") -> None:
        """Kill actors' remaining processes: a stopped one could resume, and an engine's child would keep its memory."""
        now = time.time()
        records = [self._actors[name] for name in names if self._actors[name].member.has_process]
        terminate([each.where for each in records if each.where is not None], spare_owner=kind == "died")
        for each in records:
            each.member = each.member.died()
            each.lost_at = each.lost_at or now


def _location_fields(where: ProcessLocation | None) -> dict[str, Any]:
    if where is None:
        return {}
    return {"node": where.node, "node_id": where.node_id, "process": where.process, "children": list(where.children)}


def as_loss(error: LostError | RayError, context: PhaseContext) -> LostError:
    """Convert an error to a ``LostError``; an error of Ray in the controller's own calls has no names.

    Raises:
        RLHFError: the error was raised deliberately by an actor.
    """
    if isinstance(error, LostError):
        return error
    own = translate_error(error, "the controller", context)
    if not isinstance(own, LostError):
        raise own from error
    return own.of(())


def _role(name: str) -> str:
    """Role as in ``events.jsonl``: ``policy`` for ``policy rank 0``, ``rollout engine`` for ``rollout engine 0``.

    Metrics and deadlines use the shorter ``role_of``, which returns ``rollout``.
    """
    return name.rpartition(" ")[0].removesuffix(" rank")


def is_blocking(facts: Facts) -> bool:
    """Whether a process blocks its peers: it is dead, stopped, waits for a device, or sends no heartbeat."""
    silent = (facts.heartbeat_age_seconds or 0.0) > FRESH_SECONDS
    return not facts.alive or facts.process_state in ("T", "t", "D") or silent
