"""A checkpoint's files, written and verified by tasks on the nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

from actors import checkpoint_files
from actors.checkpoint_files import verify_on_nodes, write_shard
from actors.waiting import AnswerDeadlines, PhaseContext
from rlhf.checkpoints.store import Checkpoint, CheckpointStore
from rlhf.config.schema import Recipe
from rlhf.errors import UserError
from tests.rlhf.checkpoints.making import commit

RECIPE = Recipe(name="x")


def verify(checkpoint: Checkpoint) -> None:
    verify_on_nodes(checkpoint, RECIPE, AnswerDeadlines(RECIPE), PhaseContext(phase="load"))


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_nodes_refuse_what_one_process_would(
    nodes: int, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds a fault, the first file of the manifest is named, and how many there are."""
    monkeypatch.setattr(checkpoint_files, "nodes", lambda: [{"NodeID": ray.nodes()[0]["NodeID"]}] * nodes)
    checkpoint = commit(CheckpointStore(tmp_path, 2, 0), 1)
    verify(checkpoint)
    for name in ("versions.json", "policy/rank_0.bin", "critic/deep/rank_0.bin"):
        content = bytearray((checkpoint.path / name).read_bytes())
        content[5] ^= 1
        (checkpoint.path / name).write_bytes(content)
        with pytest.raises(UserError) as alone:
            checkpoint.verify()
        with pytest.raises(UserError) as together:
            verify(checkpoint)
        assert str(together.value) == str(alone.value)
    assert "policy/rank_0.bin has other content than was written; 2 more of its 6 files" in str(together.value)
    checkpoint.verify_sizes()
    (checkpoint.path / "state.json").unlink()
    with pytest.raises(UserError, match="state.json is missing"):
        checkpoint.verify_sizes()


def test_a_shard_is_written_from_the_copies_that_are_left(local_ray: None, tmp_path: Path) -> None:
    def lose() -> None:
        raise ray.exceptions.ObjectLostError("ab" * 28, None, "")

    lost = ray.remote(num_cpus=0, max_retries=0)(lose).remote()
    own, shared = (
        ray.put({name: np.array([number], np.uint8)}) for name, number in (("rank_0.pt", 7), ("all.json", 9))
    )
    entries = write_shard([(lost, own), (shared,)], tmp_path, "policy", 30)
    assert [entry.name for entry in entries] == ["policy/rank_0.pt", "policy/all.json"]
    assert (tmp_path / "policy" / "rank_0.pt").read_bytes() == b"\x07"
