"""Incidents: failures of one actor, or of several ranks of a role, as messages and as records in ``events.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from rlhf.recovery.diagnosis import DEVICE_CAUSES, Cause
from rlhf.recovery.facts import Facts

Kind = Literal["died", "stalled", "failed"]
GIB = 2**30
SHOWN = 4
"""Largest number of names that a message lists."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A failure after which an actor is restarted, or the run ends.

    ``seconds_lost`` is known only after the restart: ``History.closed`` sets it.
    """

    when: float
    """Seconds since 1970."""
    member: str
    """Name of the actor: ``policy rank 1`` or ``rollout engine 0``, for example."""
    others: tuple[str, ...] = ()
    """Other actors of the same role that failed at the same time."""
    role: str
    """Role of the actor; restarts are counted by role."""
    rank: int | None = None
    """Its number in the role."""
    node: str | None = None
    """Address of its node."""
    process: int | None = None
    """Its process id."""
    step: int | None = None
    """Step of the run, if it failed in one."""
    phase: str
    """Phase of the step, or of the start."""
    kind: Kind
    """``died``: the process is gone. ``stalled``: it missed a deadline. ``failed``: it answered with an error."""
    what: str
    """The observation: ``no answer within 120 s``, or the error."""
    cause: str
    """Likely cause."""
    advice: str = ""
    """What to do about it."""
    facts: Facts | None = None
    """Facts about the process."""
    seconds_lost: float = 0.0
    """Seconds until a replacement serves; repeated steps are not included."""
    samples_redone: int = 0
    """Unfinished samples of the actor that are re-dispatched; those of repeated steps are not among them."""

    @property
    def is_device_error(self) -> bool:
        """Whether a GPU, or the network between GPUs, failed."""
        return self.cause in DEVICE_CAUSES

    @property
    def is_memory_error(self) -> bool:
        """Whether the process asked for more memory than there is, which it will do again with the same work."""
        return self.cause == Cause.GPU_MEMORY or (self.cause == Cause.HOST_MEMORY and self.kind == "failed")

    def text(self) -> str:
        """The incident in one line, for the log, the console and errors."""
        parts = [f"{self._actor()} {self.kind} during {self._when()}: {self.what}", *self._symptoms()]
        parts.append(f"likely cause: {self.cause}")
        if self.advice:
            parts.append(f"what to do: {self.advice}")
        return one_line("; ".join(parts))

    def headline(self) -> str:
        """The incident in one line for people who look at the run: who, where, when and why."""
        parts = [f"{self._actor()} {self.kind} during {self._when()}: {self.cause}"]
        if self.is_device_error or self.is_memory_error:
            parts.append(f"what to do: {self.advice}")
        return one_line("; ".join(parts))

    def row(self) -> str:
        """The incident as one line of a history: time, member, phase, step, cause, and seconds lost if known."""
        moment = datetime.fromtimestamp(self.when, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        what = f"{self.member}{self._peers()} {self.kind} during {self._when()}: {self.cause}"
        lost = f"; {self.seconds_lost:.0f} s lost" if self.seconds_lost else ""
        return one_line(f"{moment} {what}{lost}")

    def details(self) -> dict[str, str | int | float | list[str] | None]:
        """Fields of the event in ``events.jsonl``, as JSON types; null is unknown."""
        facts = self.facts or Facts(alive=False)
        return {
            "when": datetime.fromtimestamp(self.when, UTC).isoformat(timespec="milliseconds"),
            **{name: getattr(self, name) for name in ("member", "role", "rank", "node", "process", "step", "phase")},
            "others": list(self.others),
            "what": one_line(self.what),
            "cause": str(self.cause),
            "advice": self.advice,
            "samples_redone": self.samples_redone,
            "heartbeat_age_seconds": facts.heartbeat_age_seconds,
            "process_state": facts.process_state,
            "doing": facts.doing,
            "memory_gib": None if facts.rss_bytes is None else facts.rss_bytes / GIB,
            "host_memory_gib": None if facts.host_total_bytes is None else facts.host_total_bytes / GIB,
        }

    def _actor(self) -> str:
        place = [f"node {self.node}"] if self.node else []
        place += [f"process {self.process}"] if self.process is not None else []
        return (f"{self.member} ({', '.join(place)})" if place else self.member) + self._peers()

    def _peers(self) -> str:
        return f" and {', '.join(shortened(self.others))}" if self.others else ""

    def _when(self) -> str:
        return self.phase if self.step is None else f"{self.phase} of step {self.step}"

    def _symptoms(self) -> Iterator[str]:
        """Known facts about the process, as parts of the message."""
        if self.facts is None:
            return
        if self.facts.heartbeat_age_seconds is not None:
            yield f"last heartbeat {self.facts.heartbeat_age_seconds:.0f} s ago"
        if self.facts.doing:
            yield f"doing {self.facts.doing}"
        if self.facts.rss_bytes:  # None or 0 for a dead process
            total = self.facts.host_total_bytes
            of = "" if total is None else f" of {total / GIB:.0f}"
            yield f"memory {self.facts.rss_bytes / GIB:.1f} GiB{of}"


def one_line(text: str) -> str:
    """Collapse line breaks and runs of spaces."""
    return " ".join(text.split())


def shortened(names: Sequence[str]) -> list[str]:
    """Shorten a long list of names to the first ones and the number of others."""
    return [*names[:SHOWN], f"{len(names) - SHOWN} more"] if len(names) > SHOWN + 1 else list(names)
