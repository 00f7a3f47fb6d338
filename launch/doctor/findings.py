"""Findings of checks: status, observation, and fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rlhf.errors import RLHFError

Status = Literal["ok", "warning", "failed", "not applicable"]
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    status: Status
    found: str
    fix: str = ""
    """Instruction for the user; a failed check always has one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The outcome of one check on one node."""

    check: str
    node: str
    finding: Finding


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Placeholder for facts that could not be gathered: an error, or a timeout."""

    reason: str


def ok(found: str) -> Finding:
    """The check passed."""
    return Finding(status="ok", found=found)


def not_applicable(found: str) -> Finding:
    """Nothing to check here, with the reason."""
    return Finding(status="not applicable", found=found)


def warning(found: str, fix: str) -> Finding:
    """A run may fail, or work worse than it could."""
    return Finding(status="warning", found=found, fix=fix)


def failed(found: str, fix: str) -> Finding:
    """A run would fail, or should not be started in this state."""
    return Finding(status="failed", found=found, fix=fix)


def run_check(check: Callable[..., Finding], *facts: object) -> Finding:
    """Run a check on facts; ``failed`` if one of them is a fault, or if the check raises an error."""
    faults = [fact.reason for fact in facts if isinstance(fact, Fault)]
    if faults:
        return failed(f"could not be checked: {faults[0]}", "fix the reason, then run `rlhf doctor` again")
    try:
        return check(*facts)
    except Exception as error:
        return failed(f"the check itself failed: {described(error)}", "report this as a bug of `rlhf doctor`")


def described(error: BaseException) -> str:
    """Describe an error in one line."""
    lines = str(error).strip().splitlines()
    if lines and isinstance(error, RLHFError):
        return shortened(lines[0])  # a sentence for the user
    return shortened(f"{type(error).__name__}: {lines[0]}") if lines else type(error).__name__


def shortened(text: str, width: int = 240) -> str:
    """Shorten a long text to its beginning, if possible between words."""
    if len(text) <= width:
        return text
    whole = text[: width - 3].rpartition(" ")[0]
    return f"{whole if len(whole) > width // 2 else text[: width - 3]}..."


def gib(size: float) -> str:
    """Format bytes: ``81.6 GiB``, or MiB below one GiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
