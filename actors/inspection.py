"""Inspects and terminates actors' processes on their nodes, all in parallel: a group may have hundreds of ranks.

Every call ends within a stated time, whatever hangs: a node, a file server, Ray, or an actor.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.process import DUMP_SIGNAL, Heartbeat, ProcessLocation
from actors.threads import call_each
from rlhf.process_identity import send_signal, start_of
from rlhf.recovery.facts import Facts, read_facts
from rlhf.recovery.leftovers import remove_leftovers
from rlhf.recovery.log_tail import last_words

ASK_SECONDS = 5.0
"""Deadline of a question to Ray's control service (GCS)."""
HEARTBEAT_SECONDS = 2.0
"""How long actors have to answer a heartbeat."""
LOOK_SECONDS = 4.0
"""Deadline on a node for reading the facts about its processes, and again for the ends of their logs."""
INSPECT_SECONDS = 10.0
"""Deadline for all nodes together: it includes both, and the time in which processes write their stacks."""
LAST_LINES = 400
"""Number of last lines of a lost actor's log that are searched for the reason: a long traceback is among them."""
LAST_BYTES = 2**16
"""Largest part of a log that is read for them."""
DUMP_SECONDS = 0.5
"""How long processes have to write their stacks before they are killed."""

Inspection = tuple[Facts, str]
"""Facts about a process, and what the end of its log says of its end."""


def dead_actors(actors: Mapping[str, Any]) -> dict[str, str]:
    """Return the actors that Ray reports as dead, and what it says of their deaths (empty if nothing).

    None are returned if Ray does not answer within ``ASK_SECONDS``.
    """
    ids = {name: actor._actor_id.hex() for name, actor in actors.items() if actor is not None}
    if not ids:
        return {}
    tables = call_each(lambda state_name: state.actor_table(None, actor_state_name=state_name), ["DEAD"], ASK_SECONDS)
    dead = tables.get(0, {})
    return {name: _death_message(dead[actor_id]) for name, actor_id in ids.items() if actor_id in dead}


def _death_message(entry: Mapping[str, Any]) -> str:
    """What Ray says of a death in its table of actors: one field of several holds it, by the kind of death."""
    contexts = [context for _, context in entry["DeathCause"].ListFields()]
    return "".join(context.error_message for context in contexts if hasattr(context, "error_message"))


def collect_heartbeats(actors: Mapping[str, Any]) -> dict[str, Heartbeat]:
    """Return the heartbeat of each actor, by name.

    Actors that do not answer within ``HEARTBEAT_SECONDS`` are left out.
    """
    asked = {}
    for name, actor in actors.items():
        with suppress(Exception):  # the actor of this handle no longer exists
            asked[actor.heartbeat.remote()] = name
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=HEARTBEAT_SECONDS) if asked else ([], [])
    heartbeats = {}
    for ref in done:
        with suppress(RayError):
            heartbeats[asked[ref]] = ray.get(ref)
    return heartbeats


def inspect(processes: Sequence[ProcessLocation], dump: bool) -> dict[str, Inspection]:
    """Inspect processes on their nodes; returns facts and last words, by the actor's name.

    Processes on a node that does not answer are reported as dead.

    Args:
        dump: make each write its stacks to its log.
    """
    found = {where.name: (Facts(alive=False), "") for where in processes}
    for seen in on_nodes(inspect_here, _by_node(processes), dump):
        found |= seen or {}
    return found


def terminate(processes: Sequence[ProcessLocation], spare_owner: bool) -> None:
    """Kill processes and their children, and remove their files in shared memory.

    Args:
        spare_owner: kill only the children: the actor's own process has ended and its pid may be reused.
    """
    on_nodes(terminate_here, _by_node(processes), spare_owner)


def on_nodes(
    function: Callable[..., Any], processes: Mapping[str, Sequence[ProcessLocation]], *arguments: Any
) -> list[Any]:
    """Call a function once on each node, with that node's processes, on all nodes in parallel.

    Returns:
        The results; None for a node that does not answer within ``INSPECT_SECONDS``.
    """
    if not processes:
        return []
    here = ray.get_runtime_context().get_node_id()
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    ends = time.monotonic() + INSPECT_SECONDS
    refs = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(there, *arguments)
        for node, there in processes.items()
        if node != here
    ]
    answers = [function(processes[here], *arguments)] if here in processes else []
    for ref in refs:
        try:
            answers.append(ray.get(ref, timeout=max(0.0, ends - time.monotonic())))
        except RayError:
            answers.append(None)
    return answers


def _by_node(processes: Sequence[ProcessLocation]) -> dict[str, list[ProcessLocation]]:
    nodes = defaultdict(list)
    for where in processes:
        nodes[where.node_id].append(where)
    return dict(nodes)


def inspect_here(processes: Sequence[ProcessLocation], dump: bool) -> dict[str, Inspection]:
    """Inspect processes of this node; returns facts and last words, by the actor's name."""
    if dump:
        for where in processes:
            send_signal(where.process, where.started, DUMP_SIGNAL)
        time.sleep(DUMP_SECONDS)
    facts = call_each(_facts_of, processes, LOOK_SECONDS)
    tails = call_each(_last_words, processes, LOOK_SECONDS)  # a log's file server may hang
    unreadable = Facts(alive=True)
    return {where.name: (facts.get(i, unreadable), tails.get(i, "")) for i, where in enumerate(processes)}


def _facts_of(where: ProcessLocation) -> Facts:
    """Facts about a process; if another one has its pid by now, it is dead."""
    facts = read_facts(where.process, children=where.children, oom_kills_before=where.oom_kills)
    if where.started in (None, start_of(where.process)):
        return facts
    return replace(facts, alive=False, process_state=None, rss_bytes=None)


def _last_words(where: ProcessLocation) -> str:
    return last_words(_last_lines(where.log, where.log_begins))


def _last_lines(log: str, begins: int) -> str:
    """Last lines of a log after its first ``begins`` bytes, or of all of it if it has fewer by now."""
    try:
        with Path(log).open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(begins if begins <= end else 0, end - LAST_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-LAST_LINES:])
    except OSError:
        return ""


def terminate_here(processes: Sequence[ProcessLocation], spare_owner: bool) -> None:
    """``terminate`` for processes of this node."""
    for where in processes:
        children = zip(where.children, where.children_started, strict=True)
        for process, started in children if spare_owner else ((where.process, where.started), *children):
            send_signal(process, started, signal.SIGKILL)
    # If another process has a pid by now, files of that pid are that process's.
    gone = [where.process for where in processes if start_of(where.process) in (None, where.started)]
    call_each(remove_leftovers, gone, LOOK_SECONDS)
