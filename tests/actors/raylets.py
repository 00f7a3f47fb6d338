"""A Ray cluster of several raylets on one host, for programs of the tests that join one."""

from __future__ import annotations

from typing import Any

from ray.cluster_utils import Cluster

STORE = 80 * 2**20
"""Bytes of each raylet's object store."""


def make_cluster() -> Cluster:
    """A cluster of its head alone, without a dashboard, and without a worker process for each CPU that no task uses.

    A lost node is noticed within 2 s, not 15.
    """
    system = {
        "prestart_worker_first_driver": False,
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 300,
    }
    head: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    return Cluster(initialize_head=True, head_node_args={**head, "_system_config": system})
