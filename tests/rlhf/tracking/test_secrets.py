from __future__ import annotations

import pytest

from rlhf.tracking.secrets import without_secrets


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "sk-0123456789")
    monkeypatch.setenv("SHORT_TOKEN", "1")


def test_secrets_are_hidden_wherever_they_stand() -> None:
    config = {
        "judge": {"api_key": "abc", "url": "https://anna:pw@host/v1?token=t0p&x=1"},
        "headers": ["Bearer sk-0123456789"],
        "env": ("plain",),
    }
    assert without_secrets(config) == {
        "judge": {"api_key": "***", "url": "https://***@host/v1?token=***&x=1"},
        "headers": ["Bearer ***"],
        "env": ["plain"],
    }


def test_ordinary_options_are_left_alone() -> None:
    config = {
        "micro_batch_tokens": 2048,
        "token_limit": "1 to 9",
        "path": "org/model-1",
        "lr": 1e-5,
        "init": None,
        "on": True,
    }
    assert without_secrets(config) == config
