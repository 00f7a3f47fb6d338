"""Error types, one for each kind of cause. The command line maps each to an exit code.

``UserError``      the input is wrong: exit 2, a message of one screen without a traceback; nothing is written.
``MachineryError`` a process, a device or the network failed: exit 3, one line that names the location.
``NonFiniteError`` a number is NaN or infinite: exit 3, the tensor's name.
``CanaryError``    an invariant is violated: exit 3, its value, its limits and the usual causes.
``Stopped``        the run stopped on request without a failure: exit 75, the checkpoint from which it resumes.
``Waiting``        people have to do something first: exit 75, what it is; the same command then goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlhf.unicode import encodable

MOST_PROBLEMS = 12
"""Largest number of problems that one error lists, to fit on one screen."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RLHFError(Exception):
    """Base class of all errors that this package raises deliberately. Their texts can be encoded in UTF-8.

    They quote users' code, data and files, and Ray ends a process whose error it cannot encode.
    """

    exit_code = 3
    may_pass = False
    """Whether the same command may succeed if it is repeated: a scheduler may requeue it."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(encodable(given) if isinstance(given, str) else given for given in arguments))


class UserError(RLHFError):
    """The user's recipe, data, model or function is wrong.

    Args:
        what: what is wrong, with the file, line, key or sample.
        why: why it cannot work; may be empty if obvious.
        fix: how to correct it.
    """

    exit_code = 2
    what: str
    why: str
    fix: str

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix)  # all three in args, so that the error can be pickled
        self.what, self.why, self.fix = self.args

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class MachineryError(RLHFError):
    """A process, a device or a connection failed; the message names role, rank, node, step and phase where known."""

    may_pass = True


class NonFiniteError(MachineryError):
    """A number is NaN or infinite. A repetition resumes before it, with the same prompts, and would find it again."""

    may_pass = False


class LostError(MachineryError):
    """Processes died, are stuck, or lost a connection; they can be restarted and their work repeated.

    Args:
        names: names of the actors; empty if unknown.
        kind: ``died``, ``stalled`` or ``failed``.
        reason: what the message says beside actor, kind, phase and step; empty if it is the whole message.
        of_whom: names of the actors that the message is about, if there is a reason: ``names`` may have others.
    """

    message: str
    names: tuple[str, ...]
    kind: str
    reason: str
    of_whom: tuple[str, ...]

    def __init__(
        self,
        message: str,
        names: tuple[str, ...] = (),
        kind: str = "died",
        reason: str = "",
        of_whom: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, names, kind, reason, of_whom)  # all in args, so that the error can be pickled
        self.message, self.names, self.kind, self.reason, self.of_whom = self.args

    def __str__(self) -> str:
        return self.message

    def of(self, names: Iterable[str], kind: str = "") -> LostError:
        """A copy of this error for the given actors, by default of the same kind."""
        return LostError(self.message, tuple(names), kind or self.kind, self.reason, self.of_whom)

    def told_of(self, names: Sequence[str]) -> str:
        """What the error says of some of its actors, in a text that has their names, the phase and the step."""
        if self.reason and not set(self.of_whom).isdisjoint(names):
            return self.reason
        if self.reason and not set(self.of_whom).isdisjoint(self.names):
            return f"lost together with {next(name for name in self.names if name in self.of_whom)}"
        return self.message


class Unsaved(MachineryError):
    """A stop was requested, and its checkpoint was not complete in time."""


class ClusterError(MachineryError):
    """Ray itself failed, on the controller's node or as a whole: no actor can be asked, replaced or stopped."""


class CanaryError(RLHFError):
    """A metric is outside the limits within which training is correct."""


class Stopped(RLHFError):
    """The run ended before its last step on request.

    Args:
        why: the cause: a signal's name, or the remaining time.
        commit: path of the last complete checkpoint; empty if there is none, or if it is not known.
        stage: name of the stage that had begun and has no checkpoint; empty if none had begun, or if it has one.
    """

    exit_code = 75
    may_pass = True
    why: str
    commit: str
    stage: str

    def __init__(self, why: str, commit: str = "", stage: str = "") -> None:
        super().__init__(why, commit, stage)  # all three in args, so that the error can be pickled
        self.why, self.commit, self.stage = self.args

    def __str__(self) -> str:
        if self.commit:
            rest = f"the last checkpoint is {self.commit}, the same command resumes from it"
        elif self.stage:
            rest = f"no checkpoint of the {self.stage} stage exists yet, the same command starts that stage again"
        else:
            rest = "the same command starts again, or resumes from its last checkpoint if it has one"
        return f"stopped on request ({self.why}); {rest}"


class Waiting(RLHFError):
    """The command cannot go on before people have done something; what it has done so far is kept.

    Args:
        what: what is missing, with numbers.
        fix: what to do; the same command then continues.
    """

    exit_code = 75
    what: str
    fix: str

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)  # both in args, so that the error can be pickled
        self.what, self.fix = self.args

    def __str__(self) -> str:
        return f"{self.what}\n  then: {self.fix}"


def raise_all(problems: Sequence[UserError], heading: str) -> None:
    """Raise several problems as one ``UserError``, so that the user can correct all of them at once.

    Args:
        problems: the problems, in the order in which they are shown; if there are none, nothing is raised.
        heading: first line of the message if there are several, such as the name of the file.
    """
    if not problems:
        return
    if len(problems) == 1:
        raise problems[0]
    lines = [f"{heading}: {len(problems)} problems"]
    lines += [f"{number}. {problem}" for number, problem in enumerate(problems[:MOST_PROBLEMS], start=1)]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"... and {len(problems) - MOST_PROBLEMS} more")
    raise UserError("\n".join(lines))
