"""Translates Ray's errors into the project's own errors, which name the lost actor and the kind of failure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from rlhf.errors import LostError, MachineryError, RLHFError, first_line
from rlhf.recovery.incident import shortened
from rlhf.recovery.process_faults import is_process_fault
from rlhf.storage.write_errors import UNWRITABLE, tell, way_on

DIED = (
    RayActorError,
    OutOfMemoryError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    ActorUnschedulableError,
    ActorPlacementGroupRemoved,
    RuntimeEnvSetupError,
)
"""Errors after which the actor's process is gone. After any other error, it may still run."""
REASON_LENGTH = 600
SPILLS = "What /dev/shm cannot hold, Ray writes below its temporary folder, by default /tmp/ray: free space there."
USED = re.compile(r"Memory on the node \(IP: ([^,]+), .*?\) was (.*? used / .*? limit)")
THRESHOLD = re.compile(r"exceeded threshold of (\d+)B")
KILLED = re.compile(r"Selected to kill: .*?\bpid=(\d+), actual memory used=([\d.]+ ?\w+)")


def translate_error(error: RayError, who: str, context: object, seconds: float = 0.0) -> RLHFError:
    """Translate the error that Ray returned in place of an answer of actor ``who``.

    Args:
        context: phase and step of the call, for the message.
        seconds: duration of the wait.

    Returns:
        An error that an actor raised deliberately, unchanged; a ``LostError`` that names the actor, or no actor if the
        error does not identify one; a ``MachineryError`` for a bug.
    """
    if isinstance(error, RayTaskError):
        return _raised(error, who, context)
    if isinstance(error, GetTimeoutError):
        return late_error((who,), context, seconds)
    if isinstance(error, ObjectLostError):
        return LostError(f"a result of {who} is lost, during {context}: {extract_reason(error)}", kind="failed")
    if isinstance(error, DIED):
        return _lost(f"{who} died during {context}", who, "died", extract_reason(error))
    reason = extract_reason(error)
    what = f"the answer of {who} cannot be read, during {context}: {reason}"
    return LostError(what, (who,), "failed", f"its answer cannot be read: {reason}", (who,))


def _raised(error: RayTaskError, who: str, context: object) -> RLHFError:
    """Translate an error raised in the process of ``who``, or in that of an actor whose result it used."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    if isinstance(cause, RLHFError):
        return cause
    if type(cause) is RayError:  # Ray's substitute for an error that could not be serialised
        return _lost(f"{who} failed during {context}", who, "failed", extract_reason(cause))
    if isinstance(cause, RayError):
        return LostError(f"an argument of {who} is lost, during {context}: {extract_reason(cause)}", kind="failed")
    if is_process_fault(cause):
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        return _lost(f"{who} failed during {context}", who, "failed", reason)
    if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
        what = f"{who} failed during {context}: {tell(cause, 'a file')}"
        return MachineryError(f"{what}. {way_on(cause)}, and give the same command")
    return MachineryError(f"{who} failed during {context}: {str(error).strip().splitlines()[-1]}")


def _lost(what: str, who: str, kind: str, reason: str) -> LostError:
    return LostError(f"{what}: {reason}", (who,), kind, reason, (who,))


def late_error(who: Sequence[str], context: object, seconds: float) -> LostError:
    """The loss of actors that missed their deadline."""
    reason, names = f"no answer within {seconds:.0f} s", tuple(who)
    return LostError(f"{reason} during {context} from {', '.join(shortened(who))}", names, "stalled", reason, names)


def extract_reason(error: BaseException) -> str:
    """Return the reason of an error in one line: Ray writes it at the end of the error's text."""
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return _memory(text)
    text = " ".join(text.split())
    text = text.rpartition("Worker exit detail: ")[2] or text
    name = "" if isinstance(error, RayActorError) else f"{type(error).__name__}: "
    text = name + text.partition(" Some common causes include")[0][:REASON_LENGTH]
    return f"{text} {SPILLS}" if isinstance(error, OutOfDiskError) else text


def _memory(text: str) -> str:
    """Extract the figures from the long message of Ray's memory monitor."""
    used, threshold = USED.search(text), THRESHOLD.search(text)
    killed = [f"process {process} ({size})" for process, size in KILLED.findall(text)]
    found = "Ray's memory monitor killed it"
    if used:
        found += f": node {used[1]} had {used[2]}"
        found += f", threshold {int(threshold[1]) / 2**30:.2f}GB" if threshold else ""
    else:
        found += f": {' '.join(text.split())[:REASON_LENGTH]}"
    return found + (f"; killed there: {', '.join(shortened(killed))}" if killed else "")
