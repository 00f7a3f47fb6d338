"""The kinds of failure, told apart by who can mend them. The command line turns each into an exit code.

``UserError``      the input is wrong: exit 2, one screen, no traceback, nothing written.
``MachineryError`` a process, a device or the network failed: exit 3, one line that names the place.
``CanaryError``    a number that must hold does not: exit 3, which one, by how much, and the usual causes.
``Stopped``        nothing failed: the run was asked to stop, and did: exit 75, where it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RLHFError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 3


class UserError(RLHFError):
    """The user's recipe, data, model or function is wrong.

    Args:
        what: what is wrong, with the file, line, key or sample it was found at.
        why: why it cannot work (may be empty where it is plain).
        fix: what to do about it.
    """

    exit_code = 2

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what, why, fix)  # all three in args, so that the error survives pickling between processes

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class MachineryError(RLHFError):
    """A process, a device or a connection failed; the message names role, rank, node, step and phase where known."""


class LostError(MachineryError):
    """Processes are gone, stuck, or cut off from a peer: what they held can be made again, what they did done again.

    Args:
        names: of the actors; empty where it is not known whose process it was.
        kind: ``died``, ``stalled`` or ``failed``.
    """

    def __init__(self, message: str, names: tuple[str, ...] = (), kind: str = "died") -> None:
        super().__init__(message, names, kind)
        self.message, self.names, self.kind = message, names, kind

    def __str__(self) -> str:
        return self.message

    def of(self, names: Iterable[str]) -> LostError:
        """The same loss, of these actors."""
        return LostError(self.message, tuple(names), self.kind)


class CanaryError(RLHFError):
    """A measured quantity left the limits within which training is sound."""


class Stopped(RLHFError):
    """The run ended before its last step because it was asked to.

    Args:
        why: what asked: a signal's name, or how near the time limit is.
        commit: where the last whole checkpoint is; empty where there is none yet.
    """

    exit_code = 75

    def __init__(self, why: str, commit: str = "") -> None:
        super().__init__(why, commit)  # both in args, so that the error survives pickling between processes
        self.why, self.commit = why, commit

    def __str__(self) -> str:
        if not self.commit:
            return f"stopped on request ({self.why}); no checkpoint was made yet, the same command starts anew"
        return (
            f"stopped on request ({self.why}); the last checkpoint is {self.commit}, the same command goes on from it"
        )
