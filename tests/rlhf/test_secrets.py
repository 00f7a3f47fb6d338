from __future__ import annotations

import time

import pytest

from rlhf.secrets import excerpt, without_secrets


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


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://anna:p@ss@host:8000/score", "http://***@host:8000/score"),
        ("http://token@host", "http://***@host"),
        ("https://host/f?code=abc", "https://host/f?code=***"),
        ("https://host/?subscription-key=abc&v=2", "https://host/?subscription-key=***&v=2"),
        ("https://host/?access_token=abc#x", "https://host/?access_token=***#x"),
        (
            "https://host/a?X-Amz-Credential=abc&X-Amz-Signature=def",
            "https://host/a?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("rewards.a.endpoint.url=http://a:b@h/", "rewards.a.endpoint.url=http://***@h/"),
        ("http://host/score?model=a@b", "http://host/score?model=a@b"),
        ("hf://org/model@main", "hf://org/model@main"),
    ],
)
def test_credentials_of_a_service_wherever_its_address_holds_them(url: str, shown: str) -> None:
    assert without_secrets({"url": url}) == {"url": shown}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer ***"),
        ('{"Authorization": "Bearer abc", "x": 1}', '{"Authorization": "Bearer ***", "x": 1}'),
        ("the service said 401 to `authorization: abcdef`", "the service said 401 to `authorization: ***`"),
        ("--token=abcdef", "--token=***"),
        ("tracking.api_key=zzzz", "tracking.api_key=***"),
        ("rlhf ppo r.yaml judge.wandb_key='zzzz' ppo.steps=3", "rlhf ppo r.yaml judge.wandb_key=*** ppo.steps=3"),
        ("WANDB_API_KEY=abcdef rlhf ppo", "WANDB_API_KEY=*** rlhf ppo"),
        ("Authorization: ApiKey abcdefgh12", "Authorization: ApiKey ***"),
        ("X-API-Key: abcdef12", "X-API-Key: ***"),
        ("{'api_key': 'abc-def', 'x': 1}", "{'api_key': '***', 'x': 1}"),
        ("HF_TOKEN: hf_abcdef", "HF_TOKEN: ***"),
        ("--api-key=abcdefgh", "--api-key=***"),
        ("password='hunter two x' y", "password=*** y"),
        ("password=ab;cdefgh", "password=***"),
    ],
)
def test_a_secret_beside_its_name(text: str, shown: str) -> None:
    assert without_secrets([text]) == [shown]


@pytest.mark.parametrize(
    "text",
    [
        "ppo.micro_batch_tokens=2048",
        "end token: 3",
        "the token: every response has one",
        "a secret of the town is the old bridge",
        "one token=1",
        "the bearer of this letter",
        "the bearer certificates.",
        "pay to the bearer immediately.",
        "kl_per_token=0.0123",
        "next_token=42, other",
        "tokenizer.eos_token='</s>' pad_token=<|end|>",
        "token=None, secret=true",
        "end_token: 12 of 34",
        "password: required",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert without_secrets(text) == text


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


def test_the_word_after_an_option_is_its_value() -> None:
    words = ["rlhf", "ppo", "--token", "abc", "--api-key", "x y", "--tokens", "12"]
    assert without_secrets(words) == ["rlhf", "ppo", "--token", "***", "--api-key", "***", "--tokens", "12"]


def test_an_excerpt_of_megabytes_is_no_long_work_and_shows_no_part_of_a_secret() -> None:
    begin = b"x" * 195 + b' {"api_key": "k-9876543210abcdef", '
    before = time.process_time()
    assert excerpt(begin + b'"token":"the",' * 300_000, 215) == "x" * 195 + ' {"api_key": "***", '[:20]
    assert time.process_time() - before < 1


@pytest.mark.parametrize("piece", ["?a", "token", "a_", "authorization:", "bearer ", "--token=", "'\"", "a.-_"])
def test_long_text_is_no_long_work(piece: str) -> None:
    """A pattern that tries again from every place would take minutes."""
    before = time.process_time()
    without_secrets(piece * (40_000 // len(piece)))
    assert time.process_time() - before < 5
