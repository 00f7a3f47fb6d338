"""Who is there and in which state, who was lost and why, and how much more of it the run bears."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from actors.inspection import dead_actors, end, inspect, pulses
from actors.losses import own_error
from actors.memory import MemoryWatch
from actors.process import Whereabouts
from actors.timeline import Actors, Timeline
from actors.waiting import START, Moment, Patience
from rlhf.config.schema import Recipe
from rlhf.errors import LostError, MachineryError
from rlhf.recovery.budget import Budget, History
from rlhf.recovery.diagnosis import FRESH_SECONDS, diagnose
from rlhf.recovery.facts import Facts, oom_kills, oom_kills_since
from rlhf.recovery.goodput import Goodput
from rlhf.recovery.incident import Incident
from rlhf.recovery.member import Member

CLUSTER = "cluster"
"""Stands for the role of an incident that concerns no actor in particular."""
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
        self.end([name])  # it may be a peer of one that was lost
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
        if self._admit(name, version):
            self._tell()

    def _admit(self, name: str, version: int) -> bool:
        """Have an actor serve; returns whether it is one that replaces another."""
        now, seen = time.time(), self._seen[name]
        seen.member = seen.member.proved(version, now).admitted(now)
        seen.heard = now
        if seen.lost_at is None:
            return False
        seconds, seen.lost_at = now - seen.lost_at, None
        self._history = self._history.closed(name, seconds)
        self._report("actor_replaced", member=name, seconds=round(seconds, 3), where=str(seen.where))
        return True

    def serve(self, names: Sequence[str]) -> None:
        """Actors whose weights never change, or that have just been given them, serve."""
        members = [self._seen[name].member for name in names]
        replaced = [self._admit(each.name, each.published) for each in members if not each.serves]
        if any(replaced):
            self._tell()  # once: a group may have hundreds

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

    def wasted(self, error: LostError | RayError, seconds: float) -> None:
        """What a step had done when it was given up has to be done again."""
        self.goodput.lost(error.kind if isinstance(error, LostError) else "failed", seconds)

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

    def located(self, error: LostError) -> LostError:
        """Add the names of all actors that are dead by now to a loss: what kills one often kills others as well.

        A loss without names stays without where Ray knows all actors to be alive.
        """
        known = [name for name in error.names if name in self._seen]
        dead = dead_actors({name: seen.actor for name, seen in self._seen.items() if seen.member.has_process})
        kind = error.kind if known or not dead else "died"
        return LostError(error.message, tuple(dict.fromkeys((*known, *dead))), kind)

    @property
    def suspects_all(self) -> bool:
        """Whether results were lost twice before a step was completed, with no dead actor to blame."""
        return self._history.in_a_row.get(CLUSTER, 0) > 1

    def lost(self, error: LostError, moment: Moment, samples: int = 0) -> None:
        """Put down who was lost and why, end what is left of them, and wait before others are started in their place.

        Whatever is lost at one moment is one restart, be it one rank or all ranks of a group.

        Args:
            samples: how many have to be given out again.

        Raises:
            MachineryError: the run has borne as much as it is to bear; the message holds the history.
        """
        self._lost_kind = error.kind
        with self.waiting():
            incidents = self._incidents(error, moment) or [self._nameless(error, moment)]
            self._history = self._history.after(*incidents)
            self.goodput.restarts += 1
            self.goodput.redispatched += samples
            for place, incident in enumerate(incidents):
                redone = samples if place == 0 else 0
                self._report(f"actor_{incident.kind}", **{**incident.details(), "samples_redone": redone})
                print(incident.text(), flush=True)
            self.end([name for name in error.names if name in self._seen], error.kind)
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
        except (LostError, RayError) as error:
            moment = Moment(phase=self.phase)
            raise self.give_up(self.located(as_loss(error, moment)), moment) from error

    def _incidents(self, error: LostError, moment: Moment) -> list[Incident]:
        """What is known of the actors that were lost, an incident a role. Where some hold up others by themselves,
        these others are left out: one stopped rank makes all ranks of its group late."""
        facts = self._facts([name for name in error.names if name in self._seen], error)
        guilty = [name for name, fact in facts.items() if is_guilty(fact)] or list(facts)
        roles: dict[str, list[str]] = {}
        for name in guilty:
            roles.setdefault(_role(name), []).append(name)
        return [self._incident(names, error, moment, facts[names[0]]) for names in roles.values()]

    def _incident(self, names: Sequence[str], error: LostError, moment: Moment, facts: Facts) -> Incident:
        """What befell members of one role; ``facts`` are of the first."""
        where = self._seen[names[0]].where
        found = diagnose(facts)
        return Incident(
            when=time.time(),
            member=names[0],
            others=tuple(names[1:]),
            role=_role(names[0]),
            rank=int(names[0].rpartition(" ")[2]),
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

    def _nameless(self, error: LostError, moment: Moment) -> Incident:
        """Something is lost that belonged to nobody in particular: what an actor had computed went with its node."""
        found, again = diagnose(Facts(alive=False, exit_text=error.message)), self._history.in_a_row.get(CLUSTER, 0)
        follows = "which one is at fault cannot be known, all are replaced" if again else "it is computed again"
        return Incident(
            when=time.time(),
            member="a result",
            role=CLUSTER,
            step=moment.step,
            phase=moment.phase,
            kind="failed",
            what=f"{error.message}; all actors are alive: {follows}",
            cause=found.cause,
            advice=found.advice,
        )

    def _facts(self, names: Sequence[str], error: LostError) -> dict[str, Facts]:
        """What can be seen of actors from outside, with what they say and said themselves."""
        stalled, now = error.kind == "stalled", time.time()
        actors = {name: self._seen[name] for name in names}
        doing = pulses({name: seen.actor for name, seen in actors.items()}) if stalled else {}
        found = inspect([seen.where for seen in actors.values() if seen.where is not None], stalled)
        for name in doing:
            actors[name].heard = now
        for name, seen in actors.items():
            if seen.where is None:  # it was lost before it could say where it is: this node is what can be looked at
                found[name] = Facts(alive=stalled, oom_kills_since_start=oom_kills_since(seen.oom_kills_here)), ""
        return {
            name: replace(
                found[name][0],
                heartbeat_age_seconds=now - seen.heard,
                doing=doing.get(name),
                exit_text="" if stalled else f"{error.message}\n{found[name][1]}",
            )
            for name, seen in actors.items()
        }

    def end(self, names: Sequence[str], kind: str = "failed") -> None:
        """End what is left of actors: a stopped process would come back, an engine's child stay."""
        now = time.time()
        seen = [self._seen[name] for name in names if self._seen[name].member.has_process]
        end([each.where for each in seen if each.where is not None], spare_owner=kind == "died")
        for each in seen:
            each.member = (each.member.stalled(now) if kind == "stalled" else each.member).died(now)
            each.lost_at = each.lost_at or now

    def _rest(self, seconds: float) -> None:
        end_at = time.monotonic() + seconds
        while (left := end_at - time.monotonic()) > 0:
            self.patience.check()
            time.sleep(min(left, 0.25))


def _place(where: Whereabouts | None) -> dict[str, Any]:
    if where is None:
        return {}
    return {"node": where.node, "node_id": where.node_id, "process": where.process, "children": list(where.children)}


def as_loss(error: LostError | RayError, moment: Moment) -> LostError:
    """Return a loss as it is, and an error of Ray in the controller's own calls as a loss without names.

    Raises:
        RLHFError: it was raised by an actor on purpose.
    """
    if isinstance(error, LostError):
        return error
    own = own_error(error, "the controller", moment)
    if not isinstance(own, LostError):
        raise own from error
    return own.of(())


def _role(name: str) -> str:
    """``policy`` of ``policy rank 0``."""
    return name.rpartition(" ")[0].removesuffix(" rank")


def is_guilty(facts: Facts) -> bool:
    """Whether a process would hold up its peers by itself, as far as can be seen."""
    silent = (facts.heartbeat_age_seconds or 0.0) > FRESH_SECONDS
    return not facts.alive or facts.process_state in ("T", "t", "D") or silent
