"""The folders that a command made, and that it removes again if its input is bad."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.run import _log_of, _remove, _show
from rlhf.errors import UserError


@pytest.mark.parametrize(("beside", "stays"), [([], False), (["base"], False), (["sft"], True)])
def test_a_new_folder_is_removed_unless_another_command_has_put_a_stage_there(
    beside: list[str], stays: bool, tmp_path: Path
) -> None:
    root = tmp_path / "runs" / "name"
    for name in ("logs", *beside):
        (root / name).mkdir(parents=True)
    session: Any = SimpleNamespace(root=root)
    _remove(session, [root, root.parent])
    assert root.exists() == root.parent.exists() == stays


def test_an_older_folder_stays(tmp_path: Path) -> None:
    root = tmp_path / "name"
    (root / "logs").mkdir(parents=True)
    session: Any = SimpleNamespace(root=root)
    _remove(session, [])
    assert root.exists()


def test_a_log_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    log = _log_of(tmp_path / "new", "ppo")
    assert log.exists() and _log_of(tmp_path / "new", "ppo") == log
    (tmp_path / "other" / "logs" / "driver-ppo.log").mkdir(parents=True)  # fails to open, as another user's file does
    (tmp_path / "third").touch()
    for root in (tmp_path / "other", tmp_path / "third"):
        with pytest.raises(UserError, match="cannot write to") as caught:
            _log_of(root, "ppo")
        assert "runs_dir" in caught.value.fix


def test_a_line_for_the_user_may_name_any_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as stream:
        _show(stream, "saved run-\udcff")
    assert (tmp_path / "out").read_text() == "\nsaved run-\\udcff\n"
