"""What holds for every test: no network, one thread a process, and the same examples whenever and wherever they run."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, which reads it once
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in the actors: threads that wait leave the cores to others
os.environ.setdefault("RAY_worker_niceness", "0")  # else the tests beside a run, which are nicer to nobody, starve it

import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

gc.disable()  # while the tests are collected, which imports everything
# rouge-score and tensorboard log by absl, whose handler closes the stream it was made with when logging is set up anew:
# pytest's own.
import_module("absl.logging").get_absl_handler().python_handler.stream = sys.__stderr__
torch.set_num_threads(1)  # ranks and engines share few cores
settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


END_TO_END, END_TO_END_SECONDS = "tests/end_to_end/", 2400
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


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # some libraries report objects that are alive at the very end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A fixture there may run several commands of a minute or two, and the machine may be slow."""
    for item in items:
        if item.nodeid.startswith(END_TO_END):
            item.add_marker(pytest.mark.timeout(END_TO_END_SECONDS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TestsByFile:
    return TestsByFile(config, log)
