from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config.ppo_rules import check_rewards
from rlhf.config.schema import (
    TRAINED,
    EarlyStopConfig,
    EndpointConfig,
    PlacementConfig,
    Recipe,
    RewardSourceConfig,
)

URL = "http://127.0.0.1:8000/score"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tests' current folder: holds ``judge.py`` and ``model/``."""
    (tmp_path / "judge.py").touch()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def part(url: str | None = None, weight: float = 1.0, **kind: str) -> RewardSourceConfig:
    return RewardSourceConfig(endpoint=None if url is None else EndpointConfig(url=url), weight=weight, **kind)


def said(watcher: RewardSourceConfig | None = None, **rewards: RewardSourceConfig) -> str:
    early_stop = None if watcher is None else EarlyStopConfig(scorer=watcher)
    return "\n".join(
        str(problem) for problem in check_rewards(Recipe(name="a", rewards=rewards, early_stop=early_stop))
    )


def test_parts_that_can_be():
    good: dict[str, Any] = {
        "trained": part(model=TRAINED),
        "other": part(model="model", weight=-0.5),
        "hub": part(model="organisation/model"),
        "correct": part(function="judge.py:score"),
        "module": part(function="package.module:score"),
        "service-2": part(url=URL),
        "secure": part(url="https://scores.example/v1?model=small"),
        "six": part(url="http://[::1]:9000/score"),
        "Watched_only": part(function="judge.py:length", weight=0.0),
    }
    assert said(**good) == ""
    assert said(part(function="judge.py:other"), **good) == ""


def test_a_reward_has_a_part_and_a_weight():
    assert "rewards has no part" in said()
    message = said(a=part(url=URL, weight=0.0), b=part(function="judge.py:f", weight=0.0))
    assert "rewards.a.weight, rewards.b.weight: all are 0" in message


@pytest.mark.parametrize(
    "url",
    ["http://me:hunter22@host/x", "http://token@host/x", "https://host/x?api_key=hunter22", "http://h/?token=hunter22"],
)
def test_a_password_in_the_address_is_refused_and_not_repeated(url):
    message = said(x=part(url=url))
    assert "RLHF_REWARD_TOKEN" in message and "***" in message
    assert "hunter22" not in message and "token@" not in message


def test_a_token_of_the_environment_in_the_address_is_refused(monkeypatch):
    monkeypatch.setenv("RLHF_REWARD_TOKEN", "hunter22-and-more")
    message = said(x=part(url="http://host/hunter22-and-more/score"))
    assert "holds a password or token" in message and "hunter22" not in message


def test_files_and_folders_are_there():
    assert "there is no file gone.py" in said(x=part(function="gone.py:f"))
    assert "rewards.x.function = 'judge.py' does not name a function" in said(x=part(function="judge.py"))
    assert "rewards.x.model = './gone': there is no such file or folder" in said(x=part(model="./gone"))
    assert "rewards.x.model is empty" in said(x=part(model=""))
    assert "early_stop.scorer.model = './gone'" in said(part(model="./gone"), x=part(model=TRAINED))


def test_one_part_is_trained():
    message = said(a=part(model=TRAINED), b=part(model=TRAINED), c=part(url=URL))
    assert "rewards.a.model and rewards.b.model are all 'trained'" in message


def test_a_request_is_late_before_the_run_is():
    recipe = Recipe(
        name="a",
        rewards={"x": RewardSourceConfig(endpoint=EndpointConfig(url=URL, timeout_seconds=60.0))},
        placement=PlacementConfig(phase_timeout_seconds=60.0),
    )
    [problem] = check_rewards(recipe)
    assert "rewards.x.endpoint.timeout_seconds = 60 is not under placement.phase_timeout_seconds = 60" in str(problem)


@pytest.mark.parametrize("same", [{"model": TRAINED}, {"model": "model"}, {"function": "judge.py:f"}, {"url": URL}])
def test_who_stops_the_run_is_not_what_it_is_trained_on(same):
    other = part(model="organisation/other")
    assert "early_stop.scorer is the same as rewards.x" in said(part(**same), x=part(**same, weight=0.1), y=other)
    assert said(part(**same), y=other) == ""
    assert said(part(**same), x=part(**same, weight=0.0), y=other) == "", "it is watched, not trained on"
