"""Checkpoints whose content is a function of their step and of its repetition."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rlhf.checkpoints.manifest import write_files
from rlhf.checkpoints.store import Checkpoint, CheckpointStore

MEMORY = "/dev/shm"
CONFIG = "name: demo\nppo:\n  steps: 4\n"


def memory_folder() -> TemporaryDirectory[str]:
    """A folder in memory where there is one: a killed process loses nothing of it, and flushing it costs no time."""
    return TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)


def arrays(step: int, attempt: int = 0, size: int = 1000) -> dict[str, np.ndarray]:
    """Files of two models, one of them empty."""
    rng = np.random.default_rng([step, attempt])
    return {
        "policy/rank_0.bin": rng.standard_normal(size, dtype=np.float32),
        "critic/deep/rank_0.bin": rng.integers(0, 256, size, dtype=np.uint8),
        "critic/none.bin": np.empty(0, np.int64),
    }


def commit(
    store: CheckpointStore, step: int, *, attempt: int = 0, size: int = 1000, score: float | None = None
) -> Checkpoint:
    """Make one checkpoint from start to end."""
    entries = write_files(arrays(step, attempt, size), store.begin(step))
    return store.commit(step, entries, {"step": step, "attempt": attempt}, CONFIG, score)


def assert_whole(checkpoint: Checkpoint, size: int = 1000) -> None:
    """Assert that every byte is that of this step."""
    checkpoint.verify()
    state = checkpoint.state()
    assert state["step"] == checkpoint.step
    for name, array in arrays(checkpoint.step, state["attempt"], size).items():
        assert (checkpoint.path / name).read_bytes() == array.tobytes()
    assert checkpoint.config() == CONFIG


def names(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())
