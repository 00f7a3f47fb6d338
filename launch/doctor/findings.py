"""What a check says: how it stands, what was found, and what mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "not applicable"]
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    status: Status
    found: str
    fix: str = ""
    """What to do; a failed check always has one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The outcome of one check on one node."""

    check: str
    node: str
    finding: Finding


@dataclass(frozen=True, kw_only=True)
class Fault:
    """In place of facts that were not had: gathering them raised an error, or took too long."""

    reason: str


def ok(found: str) -> Finding:
    """Nothing to do."""
    return Finding(status="ok", found=found)


def not_applicable(found: str) -> Finding:
    """There is nothing to check here, and why."""
    return Finding(status="not applicable", found=found)


def warning(found: str, fix: str) -> Finding:
    """A run may work, or not as well as it could."""
    return Finding(status="warning", found=found, fix=fix)


def failed(found: str, fix: str) -> Finding:
    """A run would fail, or should not be started like this."""
    return Finding(status="failed", found=found, fix=fix)


def judged(check: Callable[..., Finding], *facts: object) -> Finding:
    """What a check says of facts; ``failed`` where one of them is a fault, or where it raises an error itself."""
    faults = [fact.reason for fact in facts if isinstance(fact, Fault)]
    if faults:
        return failed(f"could not be checked: {faults[0]}", "mend the reason, then run `rlhf doctor` again")
    try:
        return check(*facts)
    except Exception as error:
        return failed(f"the check itself failed: {described(error)}", "report this as a fault of `rlhf doctor`")


def described(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return shortened(f"{type(error).__name__}: {lines[0]}") if lines else type(error).__name__


def shortened(text: str, width: int = 240) -> str:
    """A text's begin, where it is long."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


def gib(size: float) -> str:
    """Bytes as people read them: ``81.6 GiB``, or MiB where that is less than one."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
