"""One writer a folder at a time; the next one waits, and not for ever."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.storage.locking import sole_writer


def test_a_second_writer_waits_for_the_first_and_gives_up_in_time(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with sole_writer(tmp_path):
            entered.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(10)
    with pytest.raises(UserError, match="another command has been writing"), sole_writer(tmp_path, seconds=0.1):
        pass
    threading.Timer(0.1, leave.set).start()
    with sole_writer(tmp_path):
        assert leave.is_set()
    holder.join()
    assert list(tmp_path.iterdir()) == []
