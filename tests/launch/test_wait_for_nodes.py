"""The command line of ``launch.wait_for_nodes``; the wait itself is in ``test_cluster_file.py``."""

from __future__ import annotations

import pytest

from launch import wait_for_nodes
from launch.wait_for_nodes import SECONDS, USAGE, main


@pytest.mark.parametrize("words", ["", "a:6379", "a:6379 two", "a:6379 2 soon", "a:6379 2 5 6"])
def test_wrong_arguments_are_answered_with_the_usage(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert f"fix: {USAGE}" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "seconds"), [("a:6379 2", SECONDS), ("a:6379 2 5", 5.0)])
def test_right_ones_are_passed_on(words: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[tuple[str, int, float]] = []
    monkeypatch.setattr(wait_for_nodes, "wait_for_nodes", lambda *given: waits.append(given))
    assert main(words.split()) == 0
    assert waits == [("a:6379", 2, seconds)]
