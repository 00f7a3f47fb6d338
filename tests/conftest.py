"""What holds for every test: no network, one thread a process, and the same examples whenever and wherever they run."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, which reads it once

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)  # ranks and engines share few cores
settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


class TestsByFile(LoadScopeScheduling):
    """Which tests stay together on one worker: those of a file, which share what they set up, and all end-to-end tests:
    each of them wants the whole machine."""

    def _split_scope(self, nodeid: str) -> str:
        folder = "tests/end_to_end/"
        return folder if nodeid.startswith(folder) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TestsByFile:
    return TestsByFile(config, log)
