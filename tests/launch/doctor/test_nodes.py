"""Nodes that fail, hang or are gone: each is a fault with its reason."""

from __future__ import annotations

import time
from pathlib import Path

import ray

from launch.doctor.examine import NodeFacts, NodeRequest, NodeResources
from launch.doctor.findings import Fault
from launch.doctor.nodes import Node, NodeReply, cluster_nodes, collect, examine


def fails() -> None:
    raise OSError("Stale file handle")


def waits() -> None:
    time.sleep(600)  # until its Ray ends


def tells() -> int:
    return 42


def test_errors_and_silence_beside_an_answer(local_ray: None) -> None:
    refs = {task.__name__: ray.remote(num_cpus=0, max_retries=0)(task).remote() for task in (fails, waits, tells)}
    ray.wait([refs["fails"], refs["tells"]], num_returns=2)
    assert collect(refs, 1) == {
        "fails": Fault(reason="OSError: Stale file handle"),
        "waits": Fault(reason="no answer within 1 s"),
        "tells": 42,
    }
    assert collect({}, 1) == {}


def test_a_node_that_is_gone_is_told_beside_one_that_answers(local_ray: None, tmp_path: Path) -> None:
    [here] = cluster_nodes()
    gone = Node(
        name="gone", id="ab" * 28, address="203.0.113.1", counted=NodeResources(gpus=0, memory=0, store=0), cpus=1
    )
    asked = NodeRequest(packages=("ray",), runs=tmp_path, ray=tmp_path)
    marker = tmp_path / "marker"
    marker.touch()
    answers = {each.node.name: each for each in examine([here, gone], asked, marker).answers}
    assert isinstance(answers["gone"].facts, Fault) and answers["gone"].joined is None
    told = answers[here.name]
    assert isinstance(told, NodeReply) and isinstance(told.facts, NodeFacts) and told.joined is not None
    assert told.joined.sees_runs is True
    assert told.joined.unreached == {"gone": "no test socket there"}
    assert abs(told.joined.skew.least) < 60
