"""The folders that a command made, and that it removes again if its input is bad."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.run import _remove


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
