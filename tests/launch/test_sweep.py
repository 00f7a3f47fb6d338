"""The sweep as W&B's agent runs it: its process, its environment, its command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.wandb_agent import Agent

from launch.cli import parse
from rlhf.config.load import load_recipe
from rlhf.config.named_files import check_name

ROOT = Path(__file__).parents[2]
SWEEP: dict[str, Any] = yaml.safe_load((ROOT / "launch/sweep.yaml").read_text(encoding="utf-8"))
CHOSEN: dict[str, Any] = {"ppo.optimizer.lr": 0.00012, "algorithm.epochs": 4, "algorithm.clip_range": 0.15}
"""Values that the server could draw."""

STAND_IN = """#!{python}
import json, os, sys
with open({out!r}, "w") as file:
    json.dump({{"arguments": sys.argv[1:], "pid": os.getpid(), "run": os.environ["WANDB_RUN_ID"]}}, file)
"""


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of the agent's child; a stub for ``rlhf`` writes them to a file."""
    out, program = tmp_path / "called.json", tmp_path / SWEEP["program"]
    program.write_text(STAND_IN.format(python=sys.executable, out=str(out)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them for good
        monkeypatch.setenv(name, "")
    agent = Agent(api=None, queue=None, sweep_id="s1")
    agent._sweep_command = list(SWEEP["command"])
    fixed = {name: spec["value"] for name, spec in SWEEP["parameters"].items() if "value" in spec}
    args = {name: {"value": value} for name, value in {**fixed, **CHOSEN}.items()}
    agent._command_run({"run_id": "r7", "program": SWEEP["program"], "args": args})
    process = agent._run_processes["r7"]
    assert process.wait(timeout=60) == 0
    return {**json.loads(out.read_text()), "child": process._popen.pid}


def test_the_agents_command_is_one_that_rlhf_understands(called: dict[str, Any]) -> None:
    call = parse(called["arguments"])
    assert call.command == "ppo"
    recipe = load_recipe(ROOT / call.options["recipe"], call.options["overrides"])
    assert (recipe.ppo.optimizer.lr, recipe.algorithm.epochs, recipe.algorithm.clip_range) == (0.00012, 4, 0.15)
    assert recipe.ppo.policy_init == "runs/quickstart/sft/model"
    assert recipe.rewards["model"].model == "runs/quickstart/reward/model"
    assert recipe.tracking.wandb == "online"


def test_every_run_has_a_folder_of_its_own(called: dict[str, Any]) -> None:
    options = parse(called["arguments"]).options
    recipe = load_recipe(ROOT / options["recipe"], options["overrides"])
    assert (recipe.name, called["run"]) == ("sweep_r7", "r7")
    assert list(check_name(recipe)) == []


def test_a_signal_of_the_agent_reaches_rlhf(called: dict[str, Any]) -> None:
    assert called["pid"] == called["child"]


def test_every_parameter_is_a_key_of_the_recipe_and_its_range_is_allowed() -> None:
    for name, spec in SWEEP["parameters"].items():
        for value in [*spec.get("values", ()), *(spec[end] for end in ("value", "min", "max") if end in spec)]:
            load_recipe(ROOT / "recipes/quickstart.yaml", [f"{name}={value}"])
    assert set(CHOSEN) == {name for name, spec in SWEEP["parameters"].items() if "value" not in spec}
