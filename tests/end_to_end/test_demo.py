"""``python -m examples.travel.demo``, reduced: training, gates, gateway, vLLM servers, users and the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlhf.serving.registry import Registry
from tests.end_to_end.small import ROOT

pytestmark = pytest.mark.slow  # tests/examples/test_travel_demo.py checks what needs no model
MARK = "RLHF_TEST_OF_DEMO"


def run(folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "examples.travel.demo", "--small", "--runs", str(folder)]
    environment = {**os.environ, MARK: str(folder), "WANDB_MODE": "disabled"}
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def left_over(folder: Path) -> list[str]:
    """Processes that the demo began and that still run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def result(folder: Path, act: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "acts" / str(act) / "result.json").read_text())
    return found


def test_a_faulty_candidate_passes_offline_and_the_gateway_withdraws_it(tmp_path: Path) -> None:
    done = run(tmp_path, 900)
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]  # 1: models of this size gain by luck
    assert left_over(tmp_path) == []
    assert "the gate measured" in result(tmp_path, 3)["refusal"]
    assert result(tmp_path, 3)["decision"]["outcome"] == "pass"
    with Registry(tmp_path / "acts" / "6" / "state" / "registry.db") as registry:
        last = [entry for entry in registry.audit() if entry.version == "travel-2"][-1]
        assert (last.who, last.action) == ("gateway", "withdraw") and "thumbs_down" in last.why
        assert registry.serving().production is not None
    thumbs = result(tmp_path, 5)["thumbs"]
    assert sum(thumbs["travel-1"].values()) > 50 and thumbs["travel-2"]["down"] > thumbs["travel-2"]["up"]
    page = (tmp_path / "demo.md").read_text()
    assert "It withdrew `travel-2`" in page and "after\nthe return 0 did" in page
    assert (tmp_path / "images" / "demo-canary.png").exists()
    again = run(tmp_path, 120)
    assert again.returncode == done.returncode and again.stdout.count("done before") == 6
