"""Tests of which nodes see a folder; tests/end_to_end/test_hosts.py has nodes that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.shared_folder import marker, nodes_without_folder

pytestmark = pytest.mark.usefixtures("any_ray")


def test_a_folder_that_is_yet_to_be_made_is_looked_for_where_it_will_be(tmp_path: Path) -> None:
    with marker(tmp_path / "runs" / "one") as made:
        assert made.parent == tmp_path and made.exists()
    assert list(tmp_path.iterdir()) == []


def test_one_machine_sees_its_own_folder(tmp_path: Path) -> None:
    assert nodes_without_folder(tmp_path / "runs", has_gpus=False) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_an_error() -> None:
    with pytest.raises(OSError, match="/proc"):
        nodes_without_folder(Path("/proc/runs"), has_gpus=False)
