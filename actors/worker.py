"""A Ray actor that holds one rank of one role in a process of its own."""

from __future__ import annotations

import re
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.cluster import node_address
from actors.process import Doing, Whereabouts, dump_stacks_on_signal, whereabouts
from rlhf.errors import LostError, MachineryError, RLHFError
from rlhf.tracking.memory import Memory, memory_here
from rlhf.tracking.quiet import redirect_output
from rlhf.tracking.spans import Taken

PULSE = "pulse"
"""Ray's name of the thread that answers while the actor computes."""
PEER_GONE = re.compile(r"gloo|NCCL|ProcessGroup|Connection (closed|reset) by peer|Broken pipe|Socket Timeout", re.I)
"""How torch.distributed says that another rank is gone: not every back end has an error type of its own for that."""
Builder = str | Callable[..., Any]
"""Makes what a worker holds; or its name, ``module:name``, where the one who starts the worker need not import it."""
ENGINE_GONE = "EngineDeadError"
"""vLLM's error when the engine's own process is gone; by name, since only a rollout actor imports vLLM."""


class Worker:
    """Builds what it holds, then does as it is told. Its output goes to ``log``; its failures carry its name."""

    def __init__(self, name: str, log: Path) -> None:
        redirect_output(log)
        dump_stacks_on_signal()
        self.where = whereabouts(name, log)
        self.doing = Doing()
        self.held: Any = None

    @ray.method(concurrency_group=PULSE)
    def pulse(self) -> tuple[str, float]:
        """What this worker is doing, and for how many seconds; answered at any time."""
        return self.doing.pulse()

    @ray.method(concurrency_group=PULSE)
    def spans(self) -> Taken:
        """What this worker did since it was asked last; answered at any time."""
        return self.doing.spans.take()

    @ray.method(concurrency_group=PULSE)
    def memory(self) -> Memory:
        """What this worker's process holds; answered at any time."""
        return memory_here()

    def meeting_point(self) -> tuple[str, int]:
        """An address and a free port of this node, at which ranks can meet."""
        address = node_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, probe.getsockname()[1]

    def build(self, builder: Builder, *arguments: Any) -> Whereabouts:
        """Build what this worker holds; returns where it is."""
        with self.doing("start"), named_failures(self.where, "start"):
            make = resolve_name(builder) if isinstance(builder, str) else builder
            self.held = make(*arguments)
        return self.where

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of what this worker holds. Arguments that are references have become their values."""
        with self.doing(method), named_failures(self.where, method):
            return getattr(self.held, method)(*arguments)

    def compute(self, method: str, *arguments: Any) -> tuple[Any, None]:
        """The same for a result that stays where it is, and a word that it is there, which shows a failure as well."""
        return self.call(method, *arguments), None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in this worker's process."""
        with self.doing(function.__name__), named_failures(self.where, function.__name__):
            return function(*arguments)


@contextmanager
def named_failures(where: Whereabouts, doing: str) -> Iterator[None]:
    """Within the block an unexpected error becomes a ``MachineryError`` with the actor's name, or a ``LostError`` where
    it says that a peer is gone or that Ray failed the actor.

    The traceback goes to its log.
    """
    try:
        yield
    except LostError as error:
        raise LostError(f"{where} lost in {doing}: {error}", (where.name,), error.kind) from None
    except RLHFError:
        raise
    except Exception as error:
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [""])[0]
        what = f"{where} failed in {doing}: {type(error).__name__}: {reason}; traceback in the run's logs/"
        if type(error).__name__ == ENGINE_GONE:
            raise LostError(what, (where.name,), "died") from None
        is_rays = isinstance(error, RayError) and not isinstance(error, RayTaskError)  # that is a bug of another actor
        if is_rays or (isinstance(error, RuntimeError) and PEER_GONE.search(str(error))):
            raise LostError(what, (where.name,), "failed") from None
        raise MachineryError(what) from None
