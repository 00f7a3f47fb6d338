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


END_TO_END = "tests/end_to_end/"
BESIDE = (
    "test_dpo",
    "test_early_stop",
    "test_engine",
    "test_lora",
    "test_optimum",
    "test_publish",
    "test_rewards",
    "test_staleness",
)
"""End-to-end tests that bear company. The others run one after another: they send signals, or wait for deadlines."""


class TestsByFile(LoadScopeScheduling):
    """Which tests stay together on one worker: those of a file, which share what they set up, and most end-to-end ones,
    so that no more than two of them share the machine."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        is_alone = file.startswith(END_TO_END) and not file.removeprefix(END_TO_END).startswith(BESIDE)
        return END_TO_END if is_alone else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TestsByFile:
    return TestsByFile(config, log)
