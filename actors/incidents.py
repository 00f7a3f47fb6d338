"""Examines lost actors, and describes their failures as incidents with a likely cause."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.inspection import collect_heartbeats, dead_actors, inspect
from actors.process import ProcessLocation
from actors.waiting import PhaseContext
from rlhf.config.schema import Recipe
from rlhf.errors import LostError
from rlhf.recovery.diagnosis import FRESH_SECONDS, Cause, diagnose
from rlhf.recovery.facts import Facts, oom_kills_since
from rlhf.recovery.incident import Incident
from rlhf.recovery.member import Member
from rlhf.recovery.memory_advice import advise_on_memory

CLUSTER = "cluster"
"""Role of an incident that cannot be attributed to an actor."""


@dataclass
class ActorRecord:
    """What the supervisor knows of an actor; times are seconds of ``time.time``."""

    member: Member
    actor: Any
    started: float
    """Time at which its process was requested."""
    where: ProcessLocation | None = None
    heard: float = 0.0
    """Last time at which it was known to be alive."""
    lost_at: float | None = None
    """Time of its failure, until a replacement serves."""
    lost_in: PhaseContext | None = None
    """Phase and step of its failure, until a replacement serves."""
    oom_kills_here: int | None = None
    """``oom_kills()`` of the controller's node when the actor was started; used until the actor's node is known."""


Records = Mapping[str, ActorRecord]


def describe_loss(records: Records, error: LostError, context: PhaseContext, recipe: Recipe) -> list[Incident]:
    """Diagnose the lost actors that ``records`` holds, one incident per role.

    If some are dead, stopped or unresponsive, only those are reported: their peers merely wait for them.
    """
    facts = _examine(records, error)
    guilty = [name for name, fact in facts.items() if is_blocking(fact)] or list(facts)
    guilty.sort(key=lambda name: name not in error.of_whom)  # an event describes its first actor
    error = error.of(guilty)  # what it says of an actor that is not reported is not lost
    roles: dict[str, list[str]] = {}
    for name in guilty:
        roles.setdefault(_role(name), []).append(name)
    return [
        _describe(names, error, context, facts[names[0]], records[names[0]].where, recipe) for names in roles.values()
    ]


def _describe(
    names: Sequence[str],
    error: LostError,
    context: PhaseContext,
    facts: Facts,
    where: ProcessLocation | None,
    recipe: Recipe,
) -> Incident:
    """Incident of actors of one role; ``facts`` and ``where`` are the first one's."""
    found = diagnose(facts)
    incident = Incident(
        when=time.time(),
        member=names[0],
        others=tuple(names[1:]),
        role=_role(names[0]),
        rank=int(names[0].rpartition(" ")[2]),
        node=where.node if where else None,
        process=where.process if where else None,
        step=context.step,
        phase=context.phase,
        kind=_kind(error, facts),  # type: ignore[arg-type]
        what=error.told_of(names),
        cause=found.cause,
        advice=found.advice,
        facts=facts,
    )
    if not incident.is_memory_error:
        return incident
    change = advise_on_memory(recipe, incident.role, on_gpu=found.cause == Cause.GPU_MEMORY)
    return replace(incident, advice=change)


def _kind(error: LostError, facts: Facts) -> str:
    """Kind of a failure: of actors that are lost together one may have died while others are stopped."""
    if error.kind == "stalled" and not facts.alive:
        return "died"
    return "stalled" if error.kind == "died" and facts.is_stopped else error.kind


def describe_lost_result(error: LostError, context: PhaseContext, is_repeated: bool) -> Incident:
    """Incident of a lost result, with no lost actor: an object that was stored on a failed node, for example."""
    found = diagnose(Facts(alive=False, exit_text=error.message))
    follows = "the faulty one is not known, all are replaced" if is_repeated else "it is computed again"
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


def _examine(records: Records, error: LostError) -> dict[str, Facts]:
    """Facts about actors: process state on their nodes, heartbeat, current activity, error and log tail."""
    stalled, now = error.kind == "stalled", time.time()
    lost = {name: records[name] for name in error.names if name in records}
    actors = {name: record.actor for name, record in lost.items()}
    heartbeats = collect_heartbeats(actors) if stalled else {}
    deaths = {} if stalled else dead_actors(actors)
    found = inspect([record.where for record in lost.values() if record.where is not None], stalled)
    for name in heartbeats:
        lost[name].heard = now
    for name, record in lost.items():
        if record.where is None:  # it failed before it reported its node: use the controller's node
            found[name] = Facts(alive=stalled, oom_kills_since_start=oom_kills_since(record.oom_kills_here)), ""
    return {
        name: replace(
            found[name][0],
            heartbeat_age_seconds=now - record.heard,
            doing=str(heartbeats[name]) if name in heartbeats else None,
            exit_text="" if stalled else "\n".join(filter(None, (*_told(name, error, deaths), found[name][1]))),
        )
        for name, record in lost.items()
    }


def _told(name: str, error: LostError, deaths: Mapping[str, str]) -> tuple[str, str]:
    """What is said of an actor's failure: by the error, unless that is of another one, and by Ray if it died."""
    is_of_another = bool(error.of_whom) and name not in error.of_whom
    return "" if is_of_another and name in deaths else error.message, deaths.get(name, "")


def find_stopped(records: Records) -> tuple[tuple[str, ...], bool]:
    """Ask all actors for a heartbeat; returns those without one whose processes have ended or are stopped.

    The second value is whether one of the processes still exists. An actor that computes without answering is not
    among them: nothing says that it is at fault.
    """
    heartbeats = collect_heartbeats({name: record.actor for name, record in records.items()})
    silent = [record.where for name, record in records.items() if name not in heartbeats and record.where is not None]
    facts = {name: fact for name, (fact, _) in inspect(silent, dump=False).items()} if silent else {}
    stopped = tuple(name for name, fact in facts.items() if not fact.alive or fact.is_stopped)
    return stopped, any(facts[name].alive for name in stopped)


def is_blocking(facts: Facts) -> bool:
    """Whether a process blocks its peers: it is dead, stopped, waits for a device, or sends no heartbeat."""
    silent = (facts.heartbeat_age_seconds or 0.0) > FRESH_SECONDS
    return not facts.alive or facts.is_stopped or facts.process_state == "D" or silent


def _role(name: str) -> str:
    """Role as in ``events.jsonl``: ``policy`` for ``policy rank 0``, ``rollout engine`` for ``rollout engine 0``.

    Metrics and deadlines use the shorter ``role_of``, which returns ``rollout``.
    """
    return name.rpartition(" ")[0].removesuffix(" rank")
