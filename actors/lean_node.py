"""A local Ray with the processes that a run needs, and no others: each takes a second of a core at the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray._private.node
from ray._private.node import Node
from ray._private.parameter import RayParams

from actors import setup_worker


class LeanNode(Node):
    """Ray's processes, without autoscaler, log monitor, and the server of a dashboard, for which Ray waits."""

    def __init__(self, ray_params: RayParams, **options: Any) -> None:
        ray_params.setup_worker_path = setup_worker.__file__
        super().__init__(ray_params, **options)

    def start_monitor(self) -> None:
        """The autoscaler has no nodes to start."""

    def start_log_monitor(self) -> None:
        """Actors write to files of the run."""

    def start_api_server(self, **options: Any) -> None:
        """Nobody looks at a run's own Ray."""


@contextmanager
def lean_ray() -> Iterator[None]:
    """Context in which ``ray.init`` starts a ``LeanNode``."""
    ray._private.node.Node = LeanNode
    try:
        yield
    finally:
        ray._private.node.Node = Node
