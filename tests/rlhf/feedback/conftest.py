"""Folders of projects lie in memory: every commit is flushed, which costs no time there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rlhf.checkpoints.making import memory_folder


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with memory_folder() as path:
        yield Path(path)
