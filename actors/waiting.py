"""Waiting for actors: always with a deadline, and with a failure that says where and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlhf.errors import MachineryError, RLHFError


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What the run is doing, for messages: the phase, and the step if there is one."""

    phase: str
    step: int | None = None

    def __str__(self) -> str:
        return self.phase if self.step is None else f"{self.phase} of step {self.step}"


def wait(
    refs: Sequence[ray.ObjectRef], who: Sequence[str], moment: Moment, seconds: float, values: bool = True
) -> list[Any]:
    """The values of all references, in their order; fails as soon as one of them fails.

    Args:
        who: the actor behind each reference.
        seconds: the longest time without any answer.
        values: without them the results stay where they are, and a failure shows when they are used.

    Raises:
        UserError, CanaryError, MachineryError: raised by the actor on purpose, passed on as they are.
        MachineryError: an actor died, or the deadline passed.
    """
    names = dict(zip(refs, who, strict=True))
    fetched: dict[ray.ObjectRef, Any] = {}
    pending = list(refs)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=seconds, fetch_local=False)
        if not done:
            raise MachineryError(late(sorted({names[ref] for ref in pending}), moment, seconds))
        if values:
            fetched |= {ref: fetch(ref, names[ref], moment, seconds) for ref in done}
    return [fetched[ref] for ref in refs if values]


def late(who: Sequence[str], moment: Moment, seconds: float) -> str:
    """What to say when a deadline passed."""
    return (
        f"no answer within {seconds:.0f} s during {moment} from {', '.join(who)}; see their logs in the run's logs/, "
        "and raise placement.phase_timeout_seconds (start_timeout_seconds at the start) if the work is really that long"
    )


def fetch(ref: ray.ObjectRef, who: str, moment: Moment, seconds: float) -> Any:
    """One value, with failures turned into the project's own errors."""
    try:
        return ray.get(ref, timeout=seconds)
    except RayTaskError as error:
        if isinstance(error.cause, RLHFError):
            raise error.cause from None
        raise MachineryError(f"{who} failed during {moment}: {str(error).strip().splitlines()[-1]}") from error
    except RayActorError as error:
        raise MachineryError(
            f"{who} died during {moment}: {' '.join(str(error).split())[:300]}. Where its log in logs/ says nothing, "
            "the host may have run out of memory (dmesg shows whom the kernel killed)."
        ) from error
    except GetTimeoutError as error:
        raise MachineryError(late([who], moment, seconds)) from error
