"""What holds for every test: no network, one thread a process, and the same examples whenever and wherever they run."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, which reads it once

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # ranks and engines share few cores
settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share what they set up, so they stay together; so do all end-to-end tests: each of them wants the
    whole machine, and two at a time would wait for each other's processes."""
    for item in items:
        folder = Path(item.path).parent.name
        item.add_marker(pytest.mark.xdist_group("end_to_end" if folder == "end_to_end" else str(item.path)))
