"""Who is there and in which state, who was lost and why, and how much more of it the run bears."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.memory import MemoryWatch
from actors.process import DUMP_SIGNAL, Whereabouts
from actors.timeline import Actors, Timeline
from actors.waiting import START, Moment, Patience
from rlhf.config.schema import Recipe
from rlhf.errors import LostError, MachineryError
from rlhf.recovery.budget import Budget, History
from rlhf.recovery.diagnosis import FRESH_SECONDS, diagnose
from rlhf.recovery.facts import Facts, oom_kills, oom_kills_since, read_facts
from rlhf.recovery.goodput import Goodput
from rlhf.recovery.incident import Incident
from rlhf.recovery.leftovers import remove_leftovers
from rlhf.recovery.member import Member

LOOK_SECONDS = 10.0
"""How long a look at a process on another node may take."""
PULSE_SECONDS = 2.0
"""How long a process that was late has to say what it is doing."""
LAST_LINES = 40
"""Lines of a lost actor's log that are searched for the reason."""
DUMP_SECONDS = 0.5
"""How long it has to write its stacks before it is ended."""

STATUS = "status.json"
"""Where a stage tells, in its folder, what it is doing and who is at work."""


@dataclass
class Seen:
    """An actor as the supervisor knows it; clocks are ``time.time``."""

    member: Member
    actor: Any
    where: Whereabouts | None = None
    heard: float = 0.0
    """When it last gave a sign of life."""
    lost_at: float | None = None
    """When it was lost, while nobody serves in its place."""
    oom_kills_here: int | None = None
    """``oom_kills()`` of this node when its process was started, for as long as it has not said where it is."""


class Supervisor:
    """Knows every actor of a run. ``report`` writes an event; ``status`` is a file that says how the run stands."""

    def __init__(
        self,
        recipe: Recipe,
        report: Callable[..., None],
        check: Callable[[], None] = lambda: None,
        status: Path | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        config = recipe.recovery
        self.timeline = timeline or Timeline()
        self.patience = Patience(recipe, lambda: self._look(check), self.timeline.spans)
        self.goodput = Goodput(time.time)
        self.phase = START
        """Where the run is."""
        self.steps: int | None = None
        """How many the stage is to have, once that is known: for whoever looks."""
        self._report, self._status, self._bad_samples = report, status, config.bad_samples
        self._budget = Budget(
            restarts=config.restarts,
            backoff_seconds=config.backoff_seconds,
            backoff_limit_seconds=config.backoff_limit_seconds,
        )
        self._history = History()
        self._seen: dict[str, Seen] = {}
        self._memory = MemoryWatch()
        self._moment = Moment(phase=START)
        self._lost_kind = "died"
        """Of the last loss."""

    def started(self, name: str, actor: Any) -> None:
        """A process for this actor is on its way: the first, or another."""
        now, kills, seen = time.time(), oom_kills(), self._seen.get(name)
        if seen is None:
            member = Member(name=name, since=now)
            self._seen[name] = Seen(member=member, actor=actor, heard=now, oom_kills_here=kills)
            return
        if seen.member.has_process:  # a peer of one that was lost: it is ended with it
            self._bury(name, "failed")
        seen.member, seen.actor, seen.where = seen.member.restarted(now), actor, None
        seen.oom_kills_here = kills

    def built(self, where: Whereabouts) -> None:
        """An actor holds what it is to hold; it has yet to prove which weights these are."""
        seen = self._seen[where.name]
        seen.where, seen.heard = where, time.time()
        seen.member = seen.member.loaded(seen.heard)

    def published(self, name: str, version: int) -> None:
        """An actor has other weights to prove."""
        seen = self._seen[name]
        seen.member = seen.member.published_to(version, time.time())

    def proven(self, name: str, version: int) -> None:
        """An actor has proven these weights, and serves."""
        now, seen = time.time(), self._seen[name]
        seen.member = seen.member.proved(version, now).admitted(now)
        seen.heard = now
        if seen.lost_at is not None:
            seconds = now - seen.lost_at
            seen.lost_at = None
            self._history = self._history.closed(name, seconds)
            self._report("actor_replaced", member=name, seconds=round(seconds, 3), where=str(seen.where))
            self._tell()

    def serve(self, names: Sequence[str]) -> None:
        """Actors whose weights never change, or that have just been given them, serve."""
        for name in names:
            if not self._seen[name].member.serves:
                self.proven(name, self._seen[name].member.published)

    def enter(self, moment: Moment) -> None:
        """The run has come to this phase; it is written to the status file, for whoever looks."""
        self.phase, self._moment = moment.phase, moment
        self._tell()
        self.timeline.collect()

    def begin(self, step: int) -> None:
        """A step begins; everybody is asked what they did so far."""
        self.timeline.step(step, self._at_work())

    @contextmanager
    def on_timeline(self) -> Iterator[None]:
        """When the block ends, everybody is asked what they did last."""
        try:
            yield
        finally:
            self.timeline.finish(self._at_work())

    def _look(self, check: Callable[[], None]) -> None:
        """What is done every so often in a wait."""
        self.timeline.glance()
        check()

    def _at_work(self) -> Actors:
        return {name: (seen.actor, seen.where) for name, seen in self._seen.items() if seen.where is not None}

    def _tell(self) -> None:
        if self._status is None:
            return
        moment = self._moment
        members = {
            name: {"state": str(seen.member.state), "heard": seen.heard, **_place(seen.where)}
            for name, seen in self._seen.items()
        }
        at = {"phase": moment.phase, "step": moment.step, "steps": self.steps}
        status = {**at, "since": time.time(), "members": members}
        partial = self._status.with_suffix(".partial")
        with suppress(OSError):  # it is there to be looked at: no run ends for want of it
            partial.write_text(json.dumps(status), encoding="utf-8")
            partial.replace(self._status)

    def resume(self, account: Mapping[str, Any], last_status: Path) -> None:
        """Go on with the account of a run's time. The command before was last seen when it wrote its last status."""
        last_seen = last_status.stat().st_mtime if last_status.exists() else None
        self.goodput = Goodput.resumed(account, time.time, last_seen)

    def memory(self) -> dict[str, float]:
        """What the actors hold, by role, as far as they have said."""
        return self._memory.metrics({name: seen.actor for name, seen in self._seen.items() if seen.where is not None})

    def summary(self) -> dict[str, float | str]:
        """For the table at the end of the run: what it bore."""
        numbers = self.goodput.metrics()
        shown = {"restarts": "health/restarts", "samples given out again": "health/redispatched"}
        shown |= {"samples set aside": "health/set_aside", "seconds lost": "health/seconds_lost"}
        return {
            "goodput": numbers["perf/goodput"],
            **{name: numbers[key] for name, key in shown.items() if numbers[key]},
        }

    @property
    def seconds_lost(self) -> float:
        """Seconds that came to nothing, so far."""
        return self.goodput.seconds_lost

    def waiting(self) -> AbstractContextManager[None]:
        """Within the block the run waits for others in place of those that were lost last: that time is lost."""
        return self.goodput.waiting(self._lost_kind)

    def wasted(self, error: LostError, seconds: float) -> None:
        """What a step had done when it was given up has to be done again."""
        self.goodput.lost(error.kind, seconds)

    def set_aside(self, faults: Sequence[tuple[int, str]], before: int, moment: Moment) -> int:
        """Put down the samples that have no response, by prompt and reason; returns how many.

        Args:
            before: how many there were before these.

        Raises:
            MachineryError: that is more than the run bears.
        """
        for prompt, reason in faults:
            self._report("sample_set_aside", prompt=prompt, reason=reason, phase=moment.phase, step=moment.step)
        self.goodput.set_aside += len(faults)
        if before + len(faults) > self._bad_samples:
            prompt, reason = faults[-1]
            raise MachineryError(
                f"{before + len(faults)} samples were set aside, more than recovery.bad_samples = {self._bad_samples}; "
                f"the last during {moment}: prompt {prompt}: {reason}"
            )
        return len(faults)

    def step_done(self, step: int, seconds: float) -> None:
        """A step is over: everybody has taken part in it."""
        self.goodput.step(step, seconds)
        self._history = self._history.after_step()
        for seen in self._seen.values():
            seen.heard = time.time()

    def lost(self, error: LostError, moment: Moment, samples: int = 0) -> None:
        """Put down who was lost and why, end what is left of them, and wait before others are started in their place.

        Args:
            samples: how many have to be given out again.

        Raises:
            MachineryError: the run has borne as much as it is to bear; the message holds the history.
        """
        self._lost_kind = error.kind
        with self.waiting():
            incidents = self._incidents(error, moment) or [_nameless(error, moment)]
            for incident in incidents:
                self._history = self._history.after(incident)
                self.goodput.restarts += 1
                self._report(f"actor_{incident.kind}", **{**incident.details(), "samples_redone": samples})
                print(incident.text(), flush=True)
            self.goodput.redispatched += samples
            for name in error.names:
                if name in self._seen:
                    self._bury(name, error.kind)
            self._tell()
            self._back_off(incidents, error)

    def _back_off(self, incidents: Sequence[Incident], error: LostError) -> None:
        waits = [self._budget.wait(self._history, incident.role) for incident in incidents]
        if any(wait is None for wait in waits):
            raise MachineryError(
                f"{incidents[-1].text()}\n  more than recovery.restarts = {self._budget.restarts} restarts:\n"
                f"{self._history.text()}"
            ) from error
        self._rest(max(wait or 0.0 for wait in waits))

    def give_up(self, error: LostError, moment: Moment) -> MachineryError:
        """The error to end with where nobody is replaced: the same facts, in one line."""
        incidents = self._incidents(error, moment)
        for incident in incidents:
            self._report(f"actor_{incident.kind}", **incident.details())
        text = "\n".join(incident.text() for incident in incidents)
        return MachineryError(text or str(error))

    @contextmanager
    def diagnosed(self) -> Iterator[None]:
        """Within the block a loss that nobody makes up for ends the run with what is known of it."""
        try:
            yield
        except LostError as error:
            raise self.give_up(error, Moment(phase=self.phase)) from error

    def _incidents(self, error: LostError, moment: Moment) -> list[Incident]:
        """What is known of each actor that was lost. Where some hold up others by themselves, these others are left
        out: one stopped rank makes all ranks of its group late."""
        facts = {name: self._facts(self._seen[name], error) for name in error.names if name in self._seen}
        guilty = [name for name, fact in facts.items() if is_guilty(fact)]
        return [self._incident(name, error, moment, facts[name]) for name in guilty or facts]

    def _incident(self, name: str, error: LostError, moment: Moment, facts: Facts) -> Incident:
        where = self._seen[name].where
        role, _, rank = name.rpartition(" ")
        found = diagnose(facts)
        return Incident(
            when=time.time(),
            member=name,
            role=role.removesuffix(" rank"),
            rank=int(rank),
            node=where.node if where else None,
            process=where.process if where else None,
            step=moment.step,
            phase=moment.phase,
            kind=error.kind,  # type: ignore[arg-type]
            what=error.message,
            cause=found.cause,
            advice=found.advice,
            facts=facts,
        )

    def _facts(self, seen: Seen, error: LostError) -> Facts:
        """What can be seen of an actor from outside, with what it says and said itself."""
        stalled = error.kind == "stalled"
        doing = _pulse(seen) if stalled else None
        if doing is not None:
            seen.heard = time.time()
        if seen.where is None:  # it was lost before it could say where it is: this node is what can be looked at
            found = Facts(alive=stalled, oom_kills_since_start=oom_kills_since(seen.oom_kills_here)), ""
        else:
            found = on_node(seen.where, look, seen.where, stalled) or (Facts(alive=False), "")
        facts, last_words = found
        return replace(
            facts,
            heartbeat_age_seconds=time.time() - seen.heard,
            doing=doing,
            exit_text="" if stalled else f"{error.message}\n{last_words}",
        )

    def _bury(self, name: str, kind: str) -> None:
        """Nothing of a lost actor is left behind: a stopped process would come back, an engine's child stay."""
        seen, now = self._seen[name], time.time()
        if seen.where is not None:
            left = (seen.where.process, *seen.where.children) if kind != "died" else seen.where.children
            on_node(seen.where, end, left, seen.where.process)
        if seen.member.has_process:
            seen.member = (seen.member.stalled(now) if kind == "stalled" else seen.member).died(now)
        seen.lost_at = seen.lost_at or now

    def _rest(self, seconds: float) -> None:
        end_at = time.monotonic() + seconds
        while (left := end_at - time.monotonic()) > 0:
            self.patience.check()
            time.sleep(min(left, 0.25))


def _place(where: Whereabouts | None) -> dict[str, Any]:
    if where is None:
        return {}
    return {"node": where.node, "node_id": where.node_id, "process": where.process, "children": list(where.children)}


def _nameless(error: LostError, moment: Moment) -> Incident:
    """Something is lost that belonged to nobody in particular: what an actor had computed went with its node."""
    found = diagnose(Facts(alive=False, exit_text=error.message))
    return Incident(
        when=time.time(),
        member="a result",
        role="cluster",
        step=moment.step,
        phase=moment.phase,
        kind="failed",
        what=error.message,
        cause=found.cause,
        advice=found.advice,
    )


def _pulse(seen: Seen) -> str | None:
    """What an actor says that it is doing; None where it does not answer."""
    try:
        doing, seconds = ray.get(seen.actor.pulse.remote(), timeout=PULSE_SECONDS)
    except RayError:
        return None
    return f"{doing or 'nothing'} for {seconds:.0f} s"


def on_node(where: Whereabouts, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on the node of an actor; None where that node does not answer."""
    if where.node_id == ray.get_runtime_context().get_node_id():
        return function(*arguments)
    affinity = NodeAffinitySchedulingStrategy(where.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=affinity)
    try:
        return ray.get(task.remote(*arguments), timeout=LOOK_SECONDS)
    except RayError:
        return None


def look(where: Whereabouts, dump: bool) -> tuple[Facts, str]:
    """What can be seen of a process on this node, and the end of its log, where ``dump`` has it write its stacks."""
    if dump:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(where.process, DUMP_SIGNAL)
            time.sleep(DUMP_SECONDS)
    facts = read_facts(where.process, children=where.children, oom_kills_before=where.oom_kills)
    with suppress(OSError):
        return facts, "\n".join(Path(where.log).read_text(errors="replace").splitlines()[-LAST_LINES:])
    return facts, ""


def is_guilty(facts: Facts) -> bool:
    """Whether a process would hold up its peers by itself, as far as can be seen."""
    silent = (facts.heartbeat_age_seconds or 0.0) > FRESH_SECONDS
    return not facts.alive or facts.process_state in ("T", "t", "D") or silent


def end(processes: Sequence[int], owner: int) -> None:
    """End processes of this node at once, and remove what ``owner``, which is among them or dead, left in memory."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
    remove_leftovers(owner)
