"""``python -m examples.travel.compare``, reduced: all stages of all arms, their answers, votes, judge and page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.travel.compare.arms import ARMS
from tests.end_to_end.small import ROOT

pytestmark = pytest.mark.slow  # tests/examples/test_travel_compare.py compares answers that no model wrote


def test_one_command_compares_all_arms(tmp_path: Path) -> None:
    """Thirteen commands of ``rlhf``, one after another: only together do their files show that they fit."""
    words = ["-m", "examples.travel.compare", "--small", "--runs", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["arms"] == [arm.name for arm in ARMS] and report["votes"] > 0
    assert {each["metric"] for each in report["agreement"]} > {"rougeL", "fact", "judge_win_rate", "quality"}
    assert "| `raft_ppo` | " in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "images" / "comparison.png").exists()
    again = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0 and "rlhf sft" not in again.stdout  # finished stages are not run again
