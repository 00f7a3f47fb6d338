"""One failure of one actor, or of a group's ranks at once: the user's line, and the record in ``events.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from rlhf.recovery.facts import Facts

Kind = Literal["died", "stalled", "failed"]
GIB = 2**30
SHOWN = 4
"""Names of members that a message lists."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A failure after which an actor is restarted, or the run given up.

    Losses are known only once the work goes on: ``dataclasses.replace`` adds them.
    """

    when: float
    """Seconds since 1970."""
    member: str
    """``policy rank 1``, ``rollout engine 0``."""
    others: tuple[str, ...] = ()
    """Members of the same role that failed in the same way at the same moment."""
    role: str
    """Role that it belongs to; its restarts are counted together."""
    rank: int | None = None
    """Its number in the role."""
    node: str | None = None
    """Address of its node."""
    process: int | None = None
    """Its process there."""
    step: int | None = None
    """Step of the run, if it was in one."""
    phase: str
    """Phase of the step, or of the start."""
    kind: Kind
    """``died``: the process is gone. ``stalled``: it missed a deadline. ``failed``: it answered with an error."""
    what: str
    """What was seen: ``no answer for 120 s``, or the error."""
    cause: str
    """Why, as far as can be told."""
    advice: str = ""
    """What to do about it."""
    facts: Facts | None = None
    """What was known of the process."""
    seconds_lost: float = 0.0
    """From the beginning of the work that it left unfinished until that work began again. Whole steps that have to be
    done again are not in it."""
    samples_redone: int = 0
    """Samples that it had under way and that others, or its successor, were given."""
    prompts_lost: int = 0
    """Prompts that were set aside for it: no more attempts were left, or they are what it fails on."""

    def text(self) -> str:
        """The whole in one line, for the log, the console and the error."""
        parts = [f"{self._who()} {self.kind} during {self._moment()}: {self.what}", *self._signs()]
        parts.append(f"likely cause: {self.cause}")
        if self.advice:
            parts.append(f"what to do: {self.advice}")
        return one_line("; ".join(parts))

    def row(self) -> str:
        """The same as one line of a history: time, member, step, phase, cause, seconds lost where they are known."""
        moment = datetime.fromtimestamp(self.when, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        what = f"{self.member}{self._and_others()} {self.kind} during {self._moment()}: {self.cause}"
        lost = f"; {self.seconds_lost:.0f} s lost" if self.seconds_lost else ""
        return one_line(f"{moment} {what}{lost}")

    def details(self) -> dict[str, str | int | float | list[str] | None]:
        """What ``events.jsonl`` keeps under the event ``kind``, in JSON's own types; null is unknown."""
        facts = self.facts or Facts(alive=False)
        return {
            "when": datetime.fromtimestamp(self.when, UTC).isoformat(timespec="milliseconds"),
            **{name: getattr(self, name) for name in ("member", "role", "rank", "node", "process", "step", "phase")},
            "others": list(self.others),
            "what": one_line(self.what),
            "cause": str(self.cause),
            "advice": self.advice,
            "seconds_lost": self.seconds_lost,
            "samples_redone": self.samples_redone,
            "prompts_lost": self.prompts_lost,
            "heartbeat_age_seconds": facts.heartbeat_age_seconds,
            "process_state": facts.process_state,
            "doing": facts.doing,
            "memory_gib": None if facts.rss_bytes is None else facts.rss_bytes / GIB,
            "host_memory_gib": None if facts.host_total_bytes is None else facts.host_total_bytes / GIB,
        }

    def _who(self) -> str:
        place = [f"node {self.node}"] if self.node else []
        place += [f"process {self.process}"] if self.process is not None else []
        return (f"{self.member} ({', '.join(place)})" if place else self.member) + self._and_others()

    def _and_others(self) -> str:
        return f" and {', '.join(shortened(self.others))}" if self.others else ""

    def _moment(self) -> str:
        return self.phase if self.step is None else f"{self.phase} of step {self.step}"

    def _signs(self) -> Iterator[str]:
        """What the process showed, where it is known."""
        if self.facts is None:
            return
        if self.facts.heartbeat_age_seconds is not None:
            yield f"last heartbeat {self.facts.heartbeat_age_seconds:.0f} s ago"
        if self.facts.doing:
            yield f"doing {self.facts.doing}"
        if self.facts.rss_bytes:  # of a dead process there is none
            total = self.facts.host_total_bytes
            of = "" if total is None else f" of {total / GIB:.0f}"
            yield f"memory {self.facts.rss_bytes / GIB:.1f} GiB{of}"


def one_line(text: str) -> str:
    """``text`` without line breaks and runs of spaces."""
    return " ".join(text.split())


def shortened(names: Sequence[str]) -> list[str]:
    """The first names of many, and how many more there are."""
    return [*names[:SHOWN], f"{len(names) - SHOWN} more"] if len(names) > SHOWN + 1 else list(names)
