"""``rlhf serve`` on the command line: keys, and what is refused before anything listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from launch.cli import main
from rlhf.serving.api_keys import read_keys
from rlhf.serving.registry import Registry

LEAST = "registry: registry.db\nmodel: travel\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "gateway.yaml"
    made.write_text(LEAST)
    return made


def serve(file: Path, *more: str) -> int:
    return main(["serve", str(file), *more])


def test_a_key_is_printed_once_and_revoked_by_its_name(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(file, "--new-key", "app") == 0
    key = capsys.readouterr().out.strip()
    keys = file.with_name("gateway-keys.jsonl")
    assert read_keys(keys).owner(key) == "app"
    assert serve(file, "--new-key", "app") == 2
    assert serve(file, "--revoke-key", "app", "--new-key", "app") == 0  # a new one in its place
    assert read_keys(keys).owner(key) is None
    assert serve(file, "--revoke-key", "other") == 2
    assert key not in capsys.readouterr().err


def test_what_is_missing_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(file) == 2
    assert "gateway-keys.jsonl has no key" in capsys.readouterr().err
    serve(file, "--new-key", "app")
    assert serve(file) == 2
    assert "registry.db" in capsys.readouterr().err
    Registry.create(file.with_name("registry.db")).close()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve(file, f"listen.port={taken.getsockname()[1]}") == 2
    said = capsys.readouterr().err
    assert "cannot serve at 127.0.0.1" in said
    assert "no model is in production yet" in said
    for setting, message in (
        ("scorer.function=nowhere.py:score", "nowhere.py"),
        ("thumbs.project=nowhere.db", "nowhere.db"),
        ("log=/nowhere/log.jsonl", "cannot be written"),
        ("canary.share=2", "canary.share"),
    ):
        assert serve(file, "listen.port=18461", setting) == 2
        assert message in capsys.readouterr().err
