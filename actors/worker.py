"""A Ray actor that holds one rank of one role in a process of its own."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.cluster import node_address
from rlhf.errors import MachineryError, RLHFError
from rlhf.tracking.quiet import redirect_output


class Worker:
    """Builds what it holds, then does as it is told. Its output goes to ``log``; its failures carry its name."""

    def __init__(self, name: str, log: Path) -> None:
        redirect_output(log)
        self.name = f"{name} (node {node_address()}, process {os.getpid()})"
        self.held: Any = None

    def meeting_point(self) -> tuple[str, int]:
        """An address and a free port of this node, at which ranks can meet."""
        address = node_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, probe.getsockname()[1]

    def build(self, builder: Callable[..., Any], *arguments: Any) -> str:
        """Build what this worker holds; returns the worker's name with its node and process."""
        with named_failures(self.name, "start"):
            self.held = builder(*arguments)
        return self.name

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of what this worker holds. Arguments that are references have become their values."""
        with named_failures(self.name, method):
            return getattr(self.held, method)(*arguments)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in this worker's process."""
        with named_failures(self.name, function.__name__):
            return function(*arguments)


@contextmanager
def named_failures(name: str, doing: str) -> Iterator[None]:
    """Within the block an unexpected error becomes a ``MachineryError`` with the actor's name.

    The traceback goes to its log.
    """
    try:
        yield
    except RLHFError:
        raise
    except Exception as error:
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [""])[0]
        raise MachineryError(
            f"{name} failed in {doing}: {type(error).__name__}: {reason}; traceback in the run's logs/"
        ) from None
