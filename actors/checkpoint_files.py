"""Work on a checkpoint's files on the nodes: tasks that write shards, and that verify files before they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import nodes, worker_environment
from actors.object_copies import first_available
from actors.snapshots import Copies
from actors.waiting import AnswerDeadlines, PhaseContext, wait
from rlhf.checkpoints.manifest import FileEntry, check_files, share_files, write_files
from rlhf.checkpoints.store import Checkpoint
from rlhf.config.schema import Recipe

VERIFY = "verify"
RETRIES = 3
"""How often a verification is repeated elsewhere if its node fails."""


def task_environment(recipe: Recipe) -> Mapping[str, str]:
    """Environment variables of tasks that handle files."""
    return worker_environment(1, recipe.placement.ray_address is None)


def write_shard(parts: Sequence[Copies], folder: Path, role: str, seconds: float) -> list[FileEntry]:
    """Write the parts of one rank's shard into the role's subfolder of a checkpoint.

    Args:
        seconds: limit for fetching each part, if it is on another node.
    """
    files = [first_available(copies, seconds) for copies in parts]
    return write_files({f"{role}/{name}": content for part in files for name, content in part.items()}, folder)


def near(node: str | None) -> dict[str, Any]:
    """Ray's option for a task that runs on a node if that is alive, and else on any."""
    return {} if node is None else {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}


def verify_on_nodes(checkpoint: Checkpoint, recipe: Recipe, deadlines: AnswerDeadlines, context: PhaseContext) -> None:
    """Verify all files of a checkpoint, divided over the nodes of the cluster, which read them in parallel.

    Raises:
        UserError: a file is missing or differs.
        LostError: nodes failed, or are late.
    """
    places = [str(node["NodeID"]) for node in nodes()]
    shares = share_files(checkpoint.manifest.files, len(places))
    environment = {"env_vars": dict(task_environment(recipe))}
    task = ray.remote(num_cpus=0, max_retries=RETRIES, runtime_env=environment)(check_files)
    refs = [
        task.options(**near(place)).remote(share, checkpoint.path.resolve())
        for place, share in zip(places, shares, strict=True)
    ]
    names = [f"check of files {index}" for index in range(len(refs))]
    found = wait(refs, names, context.of(VERIFY), deadlines)
    faults = {name: fault for each in found for name, fault in each.items()}
    checkpoint.refuse(faults)
