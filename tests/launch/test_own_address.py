"""The address of a named interface. ``test_cluster_file.py`` has a host of several networks."""

from __future__ import annotations

import pytest

from launch.own_address import main


def test_a_named_interface_has_precedence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RLHF_INTERFACE", "lo")
    assert main(["10.0.0.1"]) == 0
    assert capsys.readouterr().out == "127.0.0.1\n"


def test_an_interface_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLHF_INTERFACE", "ib9")
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "RLHF_INTERFACE=ib9" in said.err and "fix:" in said.err
