"""Tracks every actor's state, diagnoses failures, and enforces the restart budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from actors.incidents import CLUSTER, ActorRecord, describe_loss, describe_lost_result, find_stopped
from actors.inspection import collect_heartbeats, dead_actors, terminate
from actors.memory import MemoryWatch
from actors.process import ProcessLocation
from actors.ray_errors import translate_error
from actors.timeline import Actors, TimelineCollector
from actors.waiting import SLICE_SECONDS, START, AnswerDeadlines, PhaseContext
from rlhf.config.schema import Recipe
from rlhf.errors import LostError, MachineryError
from rlhf.metrics import labelled
from rlhf.recovery.budget import Budget, History
from rlhf.recovery.facts import oom_kills
from rlhf.recovery.goodput import Goodput
from rlhf.recovery.incident import Incident
from rlhf.recovery.member import Member, State, role_of

TOGETHER_SECONDS = 5.0
"""How long after an incident the loss of other actors, which ran when it happened, still counts as part of it: Ray
reports the actors of a node, or several killed ones, one after another."""
STATUS = "status.json"
"""File in the stage's folder with the current phase and step and the state of every actor."""


class Supervisor:
    """State of a run's actors, their failures and the restarts that remain."""

    def __init__(
        self,
        recipe: Recipe,
        report: Callable[..., None],
        check: Callable[[], None] = lambda: None,
        status: Path | None = None,
        timeline: TimelineCollector | None = None,
        show: Callable[[str], object] = lambda line: None,
    ) -> None:
        """Begin without actors; ``started`` adds each.

        Args:
            report: writes an event, given its kind and details.
            check: called regularly during waits, and ends the run by raising.
            status: path of the status file; None writes none.
            timeline: collects the actors' spans.
            show: shows a line of a loss, or of what follows from it, to the user.
        """
        config = recipe.recovery
        self.timeline = timeline or TimelineCollector()
        self.deadlines = AnswerDeadlines(recipe, lambda: self._poll(check), self.timeline.spans, self.idle_seconds)
        self.goodput = Goodput(time.time)
        self.phase = START
        """Current phase."""
        self.steps: int | None = None
        """Number of steps of the stage, once known; written to the status file."""
        self._recipe, self._report, self._status, self._show = recipe, report, status, show
        self._budget = Budget(
            restarts=config.restarts,
            device_errors=config.device_errors,
            backoff_seconds=config.backoff_seconds,
            backoff_limit_seconds=config.backoff_limit_seconds,
        )
        self._history = History()
        self._actors: dict[str, ActorRecord] = {}
        self._memory = MemoryWatch()
        self._context = PhaseContext(phase=START)
        self._lost_kind = "died"
        """Kind of the last failure."""
        self._lost_in: PhaseContext | None = None
        """Phase and step of the last failure."""
        self._incomplete_since: float | None = None
        """When the first actor was lost of those of which not all are replaced; seconds of ``time.time``."""
        self._incident_at = self._handled_at = 0.0
        """When the last incident was found, and when the lost actors had been terminated; seconds of ``time.time``."""

    def started(self, name: str, actor: Any) -> None:
        """Record that a process for this actor is starting: the first, or a replacement."""
        now, kills, record = time.time(), oom_kills(), self._actors.get(name)
        if record is None:
            self._actors[name] = ActorRecord(
                member=Member(name=name), actor=actor, started=now, heard=now, oom_kills_here=kills
            )
            return
        self.terminate([name])  # its own process may still run, if only a peer failed
        record.member, record.actor, record.where = record.member.restarted(), actor, None
        record.started = record.heard = now
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
            self._after_replacement()

    def _admit(self, name: str, version: int) -> bool:
        """Mark an actor as serving; returns whether it replaces a failed one."""
        now, record = time.time(), self._actors[name]
        record.member = record.member.verified(version)
        record.heard = now
        if record.lost_at is None:
            return False
        seconds, record.lost_at = now - record.lost_at, None
        lost_in, record.lost_in = record.lost_in or PhaseContext(phase=self.phase), None
        self._history = self._history.closed(name, seconds)
        self._report(
            "actor_replaced",
            member=name,
            seconds=round(seconds, 3),
            phase=lost_in.phase,
            step=lost_in.step,
            where=str(record.where),
        )
        return True

    def _after_replacement(self) -> None:
        """Write the status file, and tell the user if every actor serves again."""
        self._write_status()
        if self._incomplete_since is not None and all(each.lost_at is None for each in self._actors.values()):
            seconds, self._incomplete_since = time.time() - self._incomplete_since, None
            self._show(f"all actors serve again, {seconds:.1f} s after the loss")

    def serve(self, names: Sequence[str]) -> None:
        """Mark actors as serving without a verification: their weights never change, or were just restored."""
        members = [self._actors[name].member for name in names]
        replaced = [self._admit(each.name, each.published) for each in members if not each.serves]
        if any(replaced):
            self._after_replacement()  # once for all: a group may have hundreds of ranks

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
        if before + len(faults) > (most := self._recipe.recovery.bad_samples):
            prompt, reason = faults[-1]
            raise MachineryError(
                f"{before + len(faults)} samples were quarantined, more than "
                f"recovery.bad_samples = {most}; the last during {context}: prompt {prompt}: {reason}"
            )
        return len(faults)

    def step_done(self, step: int, seconds: float) -> None:
        """Record a completed step: every actor has taken part in it."""
        self.goodput.step(step, seconds)
        self._history = self._history.after_step(step, self._recipe.recovery.steps_per_restart)
        for record in self._actors.values():
            record.heard = time.time()

    def idle_seconds(self, names: Sequence[str]) -> dict[str, float]:
        """Seconds since the last progress of each actor that answers a heartbeat and made some in its current call."""
        heartbeats = collect_heartbeats({name: self._actors[name].actor for name in names if name in self._actors})
        for name in heartbeats:
            self._actors[name].heard = time.time()
        return {name: beat.idle_seconds for name, beat in heartbeats.items() if beat.idle_seconds is not None}

    def dead_actors(self) -> list[str]:
        """Names of the actors that should run, and that Ray reports as dead."""
        return list(dead_actors({name: record.actor for name, record in self._running().items()}))

    def has_process(self, name: str) -> bool:
        """Whether an actor has a process, as far as is known: it is not lost, or its replacement was started."""
        return self._actors[name].member.has_process

    def _running(self) -> dict[str, ActorRecord]:
        return {name: record for name, record in self._actors.items() if record.member.has_process}

    def with_dead_actors(self, error: LostError) -> LostError:
        """Add the names of all actors that are dead by now to an error: the cause of one death often kills others too.

        If neither the error nor Ray names an actor, all are asked; those whose processes have ended or are stopped are
        named. An error stays without names if every process runs.
        """
        known = [name for name in error.names if name in self._actors]
        dead = self.dead_actors()
        kind = error.kind if known or not dead else "died"
        if not known and not dead:
            stopped, is_alive = find_stopped(self._running())
            if stopped:
                return error.of(stopped, "stalled" if is_alive else "died")
        return error.of(dict.fromkeys((*known, *dead)), kind)

    @property
    def should_replace_all(self) -> bool:
        """Whether failures without a dead actor occurred twice within one step."""
        return self._history.in_a_row.get(CLUSTER, 0) > 1

    def handle_loss(self, error: LostError, context: PhaseContext, samples: int = 0) -> None:
        """Report lost actors with a diagnosis, kill their remaining processes, and wait for the backoff.

        Actors that are lost together count as one restart, whether one rank, all ranks of a group, or all actors of a
        node. Actors that were reported before and not yet replaced, and their groups, are not reported again.

        Args:
            samples: number of samples to re-dispatch.

        Raises:
            MachineryError: the restart budget is spent, and the message contains the history; or a role ran out of
                memory again where it did before, and the message says what to change.
        """
        self._lost_kind, self._lost_in = error.kind, context
        names = [name for name in error.names if name in self._actors]
        with self.time_lost():
            self.goodput.redispatched += samples
            lost = self._unreported(names)
            if names and not lost:
                self.terminate(names, error.kind)
                return
            is_continued = self.is_continued(error.of(lost))
            self._incident_at = self._incident_at if is_continued else time.time()
            incidents = self._describe(error.of(lost), context)
            repeated = [incident for incident in incidents if self._history.repeats(incident)]
            self._history = self._history.after(*incidents, is_continued=is_continued)
            self.goodput.restarts += not is_continued
            if names and self._incomplete_since is None:
                self._incomplete_since = time.time()
            for index, incident in enumerate(incidents):
                redone = samples if index == 0 else 0
                self._report(f"actor_{incident.kind}", **{**incident.details(), "samples_redone": redone})
                print(incident.text(), flush=True)
                self._show(incident.headline())
            self.terminate(names, error.kind)
            self._write_status()
            self._handled_at = time.time()
            self._require_budget(incidents, repeated, error)
            if not is_continued:
                self._back_off(incidents)

    def _unreported(self, names: Sequence[str]) -> list[str]:
        """Those of the actors that no incident has reported yet; a rank is lost with any rank of its group."""
        dead = {name for name, record in self._actors.items() if record.member.state is State.DEAD}
        groups = {role_of(name) for name in dead if " rank " in name}
        return [name for name in names if name not in dead and role_of(name) not in groups]

    def is_continued(self, error: LostError) -> bool:
        """Whether the last incident explains this loss: the actors ran before it, and it was handled just now."""
        lost = [self._actors[name] for name in error.names if name in self._actors]
        is_recent = time.time() - self._handled_at < TOGETHER_SECONDS
        return bool(lost) and is_recent and all(record.started < self._incident_at for record in lost)

    def _describe(self, error: LostError, context: PhaseContext) -> list[Incident]:
        incidents = describe_loss(self._actors, error, context, self._recipe)
        is_repeated = self._history.in_a_row.get(CLUSTER, 0) > 0
        return incidents or [describe_lost_result(error, context, is_repeated)]

    def _require_budget(self, incidents: Sequence[Incident], repeated: Sequence[Incident], error: LostError) -> None:
        if repeated:
            incident = repeated[0]
            raise MachineryError(
                f"{incident.text()}\n  {incident.role} ran out of memory during {incident.phase} again before "
                f"a further step was completed, so that a repetition would fail too\n  fix: {incident.advice}"
            ) from error
        if limit := self._budget.spent(self._history):
            raise MachineryError(f"{incidents[-1].text()}\n  {limit}:\n{self._history.text()}") from error

    def _back_off(self, incidents: Sequence[Incident]) -> None:
        ends = time.monotonic() + max(self._budget.wait(self._history, incident.role) for incident in incidents)
        while (left := ends - time.monotonic()) > 0:
            self.deadlines.check()
            time.sleep(min(left, SLICE_SECONDS))

    def restored(self, source: str, step: int, end: int, seconds: float) -> None:
        """Record that the trained models are restored to the state after ``step`` steps.

        Args:
            source: what they are restored from.
            end: the first step that had not begun before the loss: the steps from ``step`` on until it are repeated.
            seconds: time since the loss was found.
        """
        repeated = max(0, end - step)
        self._report("restored", step=step, source=source, steps_repeated=repeated, seconds=round(seconds, 3))
        steps = f"steps {step} to {end - 1} are" if repeated > 1 else f"step {step} is" if repeated else "no step is"
        line = f"restored {source} after {step} completed step{'s'[: step != 1]}: {steps} repeated"
        self._show(f"{line}, counted from 0 ({seconds:.1f} s)")

    def final_error(self, error: LostError, context: PhaseContext) -> MachineryError:
        """Report lost actors that are not replaced, and return the error that ends the run."""
        incidents = describe_loss(self._actors, error, context, self._recipe)
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

    def terminate(self, names: Sequence[str], kind: str = "failed") -> None:
        """Kill actors' remaining processes: a stopped one could resume, and an engine's child would keep its memory."""
        now = time.time()
        records = [self._actors[name] for name in names if self._actors[name].member.has_process]
        terminate([each.where for each in records if each.where is not None], spare_owner=kind == "died")
        if records and self._incomplete_since is None:
            self._incomplete_since = now
        for each in records:
            each.member = each.member.died()
            each.lost_at = each.lost_at or now
            each.lost_in = each.lost_in or self._lost_in


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
