"""Tests of the simulated controller: what it sends and waits for, which does not depend on the machine's speed."""

from __future__ import annotations

from pathlib import Path

from actors.cluster import cluster
from benchmarks.controller import Simulation


def test_tasks_and_references_grow_with_the_samples_and_not_with_the_ranks(tmp_path: Path) -> None:
    """Blocks of 32 samples have 8,192 tokens, so that a unit is two blocks. 1,024 samples are 32 blocks or 16 units,
    each of which goes to one rank of each of four scorers; ``assemble`` gets the blocks and the units' results."""
    with cluster(None):
        few, more = Simulation(4, tmp_path), Simulation(8, tmp_path)
        steps = [few.step(1024), few.step(2048), more.step(2048)]
        few.stop()
        more.stop()
    assert [step.tasks for step in steps] == [16 * 4, 32 * 4, 32 * 4]
    assert [step.references for step in steps] == [32 + 64, 64 + 128, 64 + 128]
    assert all(step.longest_wait <= 1 for step in steps), "no call of Ray looks at all pending results"
