"""The Ray actor that runs one rank of one role in a separate process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.cluster import node_address
from actors.object_copies import first_available
from actors.process import Activity, Heartbeat, ProcessLocation, dump_stacks_on_signal, locate_process
from rlhf.errors import LostError, MachineryError, RLHFError
from rlhf.garbage import paused_collection
from rlhf.network import use_interface_of
from rlhf.ports import free_port
from rlhf.recovery.process_faults import is_process_fault
from rlhf.tracking.memory import ActorMemory, memory_here
from rlhf.tracking.quiet import redirect_output
from rlhf.tracking.spans import Taken
from rlhf.types import RolloutBlock

HEARTBEAT = "heartbeat"
"""Ray concurrency group whose thread answers while the actor computes."""
Builder = str | Callable[..., Any]
"""Factory of a worker's role, or its name as ``module:name``, so that the controller need not import it."""


class Worker:
    """Builds one rank of a role and calls its methods. Output goes to ``log``; errors name the actor."""

    def __init__(self, name: str, log: Path) -> None:
        log_begins = redirect_output(log)
        dump_stacks_on_signal()
        self.where = locate_process(name, log, log_begins)
        use_interface_of(self.where.node)
        self.activity = Activity()
        self.role: Any = None
        self.collected: Sequence[Any] = ()
        """Parts of a snapshot, until ``restore``."""

    @ray.method(concurrency_group=HEARTBEAT)
    def heartbeat(self) -> Heartbeat:
        """Current activity and its progress; answered at any time."""
        return self.activity.heartbeat()

    @ray.method(concurrency_group=HEARTBEAT)
    def spans(self) -> Taken:
        """Spans since the last call; answered at any time."""
        return self.activity.spans.take()

    @ray.method(concurrency_group=HEARTBEAT)
    def memory(self) -> ActorMemory:
        """Memory of this worker's process; answered at any time."""
        return memory_here()

    def rendezvous_address(self) -> tuple[str, int]:
        """Address and free port of this node, for a rendezvous."""
        address = node_address()
        return address, free_port(address)

    def preload(self, builder: Builder) -> None:
        """Import the module of the role, and with it PyTorch and DeepSpeed; takes no GPU memory."""
        with self.activity("import"), paused_collection():
            if isinstance(builder, str):
                resolve_name(builder)

    def build(self, builder: Builder, *arguments: Any) -> ProcessLocation:
        """Build the role's rank; returns the worker's location."""
        with self.activity("start"), translate_failures(self.where, "start"), paused_collection():
            make = resolve_name(builder) if isinstance(builder, str) else builder
            self.role = make(*arguments)
        return self.where

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the role's rank. Ray has replaced references among the arguments by their values."""
        with self.activity(method), translate_failures(self.where, method):
            return getattr(self.role, method)(*arguments)

    def compute(self, method: str, *arguments: Any) -> tuple[Any, None]:
        """Like ``call``, and also returns a small marker that becomes ready with the result and fails with it."""
        return self.call(method, *arguments), None

    def snapshot(self) -> tuple[Any, Any, None]:
        """The two parts of the role's snapshot (see ``Role.snapshot``), and a marker as ``compute`` returns."""
        own, shared = self.call("snapshot")
        return own, shared, None

    def collect(self, parts: Sequence[Sequence[ray.ObjectRef]], seconds: float) -> None:
        """Fetch parts of a snapshot for ``restore``: of each the first copy that is available within ``seconds``.

        A part that is lost is no failure of this worker: Ray's error passes unchanged. Nothing collective happens
        here, so that all ranks can turn to another snapshot if one has not got its parts.
        """
        self.collected = ()
        end = time.monotonic() + seconds
        with self.activity("collect"):
            self.collected = [first_available(copies, end - time.monotonic()) for copies in parts]

    def restore(self) -> None:
        """Have the role resume from the parts that ``collect`` fetched."""
        parts, self.collected = self.collected, ()
        self.call("restore", *parts)

    def score(self, method: str, *blocks: RolloutBlock) -> tuple[Any, None]:
        """Call a scoring method with blocks joined to one; returns its result, and a marker as ``compute`` does."""
        return self.compute(method, RolloutBlock.concatenate(blocks))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in this worker's process, for the controller."""
        with self.activity(function.__name__), translate_failures(self.where, function.__name__):
            return function(*arguments)

    def run_on_values(self, function: Callable[..., Any], refs: Sequence[ray.ObjectRef], *arguments: Any) -> Any:
        """``run`` with the values of ``refs`` as last argument: many, which Ray passes as one where a list holds them.

        A lost value is no failure of this worker: Ray's error passes unchanged.
        """
        with self.activity(function.__name__):
            values = ray.get(list(refs))
        return self.run(function, *arguments, values)


@contextmanager
def translate_failures(where: ProcessLocation, activity: str) -> Iterator[None]:
    """Context that converts unexpected errors to ``MachineryError`` with the actor's name.

    An error that shows a lost peer, a failed device or a lack of memory, or a failure of Ray itself, becomes a
    ``LostError``: a new process may succeed. The traceback goes to the log. What is raised has no cause.
    """
    try:
        yield
    except LostError as error:
        what = f"{where} lost in {activity}: {error}"
        raise LostError(what, (where.name,), error.kind, f"{activity}: {error}", (where.name,)) from None
    except RLHFError as error:
        raise error from None  # Ray sends the text of a cause too: of a user's error, which may be anything
    except Exception as error:
        traceback.print_exc()
        message = (str(error).strip().splitlines() or [""])[0]
        reason = f"{activity}: {type(error).__name__}: {message}; traceback in the run's logs/"
        what = f"{where} failed in {reason}"
        is_rays = isinstance(error, RayError) and not isinstance(error, RayTaskError)  # a bug in another actor
        if is_rays or is_process_fault(error):
            raise LostError(what, (where.name,), "failed", reason, (where.name,)) from None
        raise MachineryError(what) from None
