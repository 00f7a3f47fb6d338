"""Addresses at which a service listens: warnings of those that others reach."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from launch.listening import warn_of_exposure
from rlhf.ports import free_port


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org"])
def test_an_address_that_others_reach_is_warned_about(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_exposure(host, "links and votes", "docs/feedback.md")
    shown = capsys.readouterr().err
    assert host in shown and "links and votes travel unencrypted" in shown and "docs/feedback.md" in shown


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_an_address_of_this_machine_alone_is_not(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_exposure(host, "votes", "docs/feedback.md")
    assert capsys.readouterr().err == ""


def test_a_free_port_can_be_listened_at() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_commands_that_only_listen_import_no_server() -> None:
    code = "import launch.listening, launch.doctor.network, rlhf.ports, sys; assert 'uvicorn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
