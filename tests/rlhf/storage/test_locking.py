"""One writer a folder at a time; the next one waits, and not for ever. File systems without locks."""

from __future__ import annotations

import errno
import fcntl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.serving.batch_output import BatchOutput, inspect_input
from rlhf.serving.gateway_state import GatewayState
from rlhf.storage.locking import sole_writer, try_lock


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


def raising(number: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(number, "of the file system")

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", raising(number))
    with (tmp_path / "file").open("w") as file:
        assert try_lock(file) is None
    with sole_writer(tmp_path):
        (tmp_path / "in.jsonl").write_text('{"n": 1}\n')
    with BatchOutput(tmp_path / "out.jsonl", inspect_input(tmp_path / "in.jsonl"), {}) as output:
        assert output.done == 0
    GatewayState(tmp_path / "state.db").close()


def test_another_error_of_the_file_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", raising(errno.EIO))
    with pytest.raises(OSError, match="of the file system"), sole_writer(tmp_path):
        pass
    with pytest.raises(UserError, match="cannot be written"):
        GatewayState(tmp_path / "state.db")
