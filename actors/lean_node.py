"""A local Ray with the processes that a run needs, and no others: each takes a second of a core at the start.

A raylet ends itself when one of its agents has ended, and takes its node out of the cluster first. Within a tenth of a
second Ray then ends the controller too, with exit code 1 and without a word. Here a process that does nothing stands
between them, so that the controller has the time to end well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import list2cmdline
from typing import Any

import ray._private.node
from ray._private import services
from ray._private.node import Node
from ray._private.parameter import RayParams

from actors import setup_worker

KEEP = "/bin/sh", str(Path(__file__).with_name("keep_agent.sh"))
"""Program that runs an agent, and outlives it."""


class LeanNode(Node):
    """Ray's processes, without autoscaler, log monitor, and the server of a dashboard, for which Ray waits."""

    def __init__(self, ray_params: RayParams, **options: Any) -> None:
        ray_params.setup_worker_path = setup_worker.__file__
        super().__init__(ray_params, **options)

    def start_raylet(self, *arguments: Any, **options: Any) -> None:
        """The raylet, and through ``KEEP`` its agents."""
        start = services.start_ray_process

        def start_kept(command: list[str], *rest: Any, **more: Any) -> Any:
            return start([kept(word) for word in command], *rest, **more)

        services.start_ray_process = start_kept
        try:
            super().start_raylet(*arguments, **options)
        finally:
            services.start_ray_process = start

    def start_monitor(self) -> None:
        """The autoscaler has no nodes to start."""

    def start_log_monitor(self) -> None:
        """Actors write to files of the run."""

    def start_api_server(self, **options: Any) -> None:
        """Nobody looks at a run's own Ray."""


def kept(word: str) -> str:
    """A word of the raylet's command line; where it is the command of an agent, ``KEEP`` runs it."""
    name, equals, command = word.partition("=")
    return f"{name}{equals}{list2cmdline(KEEP)} {command}" if name.endswith("_agent_command") else word


@contextmanager
def lean_ray() -> Iterator[None]:
    """Context in which ``ray.init`` starts a ``LeanNode``."""
    ray._private.node.Node = LeanNode
    try:
        yield
    finally:
        ray._private.node.Node = Node
