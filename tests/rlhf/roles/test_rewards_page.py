"""Runs the examples of docs/rewards.md."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rlhf.config.load import load_recipe
from rlhf.config.ppo_rules import check_rewards
from rlhf.config.schema import EndpointConfig
from rlhf.evaluation.scorers import load_scorer
from rlhf.roles.endpoint import Endpoint

PAGE = Path(__file__).parents[3] / "docs" / "rewards.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
YAML = [text for kind, text in BLOCKS if kind == "yaml"]
PYTHON = {text.splitlines()[0].removeprefix("# "): text for kind, text in BLOCKS if kind == "python"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the page's files."""
    for name, text in PYTHON.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def service(folder: Path) -> Iterator[str]:
    """The page's service by the page's command, on a socket that listens before it starts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "uvicorn", "service:app", "--fd", str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=folder, stderr=subprocess.DEVNULL)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/score"
        finally:
            process.terminate()
            process.wait(timeout=30)


def test_the_page_has_its_examples():
    assert set(PYTHON) == {"my_reward.py", "service.py"} and len(YAML) == 6


@pytest.mark.parametrize("text", YAML)
def test_recipes_load_and_can_run(text, folder):
    (folder / "recipe.yaml").write_text("name: a\n" + text)
    recipe = load_recipe(folder / "recipe.yaml")
    assert list(recipe.rewards) == list(yaml.safe_load(text)["rewards"])
    assert list(check_rewards(recipe)) == []


def test_the_functions_score():
    score, length = (load_scorer(f"my_reward.py:{name}") for name in ("score", "length"))
    assert score(["q", "q"], ["it is 18", "17"], [{"answer": "18"}] * 2).tolist() == [1.0, 0.0]
    assert length(["q"], ["abc"], [{}]).tolist() == [3.0]


def test_the_service_scores(service):
    endpoint = Endpoint(EndpointConfig(url=service, timeout_seconds=60.0), 120.0)
    assert endpoint(["q", "q"], ["yes!", "no"], [{}, {"x": 1}]).tolist() == [1.0, 0.0]
