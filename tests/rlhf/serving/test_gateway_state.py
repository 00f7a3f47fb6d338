"""The state of a gateway over restarts: counts go on, answers keep their age, and each gateway has its own file."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.serving.gateway_state import GatewayState
from rlhf.serving.live_counts import LiveCounts
from rlhf.serving.live_kpi import Kpi
from rlhf.serving.recent_answers import AnswerChanges, RecentAnswer, RecentAnswers


class Clock:
    """Seconds of both clocks: Unix time begins at a million."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def unix(self) -> float:
        return 1e6 + self.now


def answer(text: bytes = b"a", owner: str = "app") -> RecentAnswer:
    return RecentAnswer(request=b"\xff" + text, raw=text * 10, is_stream=True, version="one", owner=owner)


def test_counts_go_on_after_a_restart(tmp_path: Path) -> None:
    for _ in range(3):
        counts, state = LiveCounts(), GatewayState(tmp_path / "state.db")
        counts.add(state.counts())
        for digest, is_bad in (("new", True), ("new", False), ("old", False)):
            counts.record(digest, Kpi.ERRORS, is_bad)
        counts.record("new", Kpi.SLOW, False)
        state.save(counts.rows(), AnswerChanges())
        state.close()
    both = counts.compared("new", "old")
    assert both["counts"] == {"errors": {"candidate": {"successes": 3, "n": 6}, "production": {"successes": 0, "n": 3}}}


def test_answers_keep_their_age_and_are_forgotten_in_time(tmp_path: Path) -> None:
    clock = Clock()

    def begin() -> tuple[RecentAnswers, GatewayState]:
        answers = RecentAnswers(1000, 60.0, clock.monotonic, has_changes=True)
        state = GatewayState(tmp_path / "state.db", clock.unix)
        answers.restore(state.answers())
        return answers, state

    answers, state = begin()
    answers.add("first", answer(b"1"))
    clock.now = 30.0
    answers.add("second", answer(b"2", "other"))
    state.save([], answers.changes())
    assert answers.changes() == AnswerChanges(), "taken"
    state.close()
    clock.now = 50.0
    answers, state = begin()
    assert answers.get("first") == answer(b"1") and answers.get("second") == answer(b"2", "other")
    clock.now = 61.0
    assert answers.get("first") is None and answers.get("second") is not None
    state.save([], answers.changes())
    assert [each.id for each in state.answers()] == ["second"], "forgotten on the disk too"
    state.close()


def test_an_answer_that_was_kept_and_forgotten_between_two_writes_is_not_written(tmp_path: Path) -> None:
    answers = RecentAnswers(25, 60.0, lambda: 0.0, has_changes=True)
    for id in ("a", "b", "c"):
        answers.add(id, answer())
    changes = answers.changes()
    assert ([each.id for each in changes.added], changes.forgotten) == (["b", "c"], ("a",))
    with closing(GatewayState(tmp_path / "state.db")) as state:
        state.save([], changes)
        assert [each.id for each in state.answers()] == [each.id for each in changes.added]


def test_nobody_who_takes_no_changes_pays_for_them() -> None:
    answers = RecentAnswers(25, 60.0, lambda: 0.0)
    for id in ("a", "b", "c"):
        answers.add(id, answer())
    assert answers.changes() == AnswerChanges()


def test_only_its_user_reads_it_and_one_gateway_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    first = GatewayState(path)
    first.save([], AnswerChanges())
    for each in tmp_path.glob("state.db*"):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600, each
    with pytest.raises(UserError, match="another gateway has the state"):
        GatewayState(path)
    first.close()
    GatewayState(path).close()


def another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
        db.commit()


def later_version(path: Path) -> None:
    GatewayState(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_text("counts\n"), "it is no SQLite file"),
        (another_program, "another program wrote it"),
        (later_version, "has version 99"),
        (Path.mkdir, "cannot be written: Is a directory"),
        (lambda path: path.symlink_to("nowhere/else"), "cannot be written: No such file"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(make: Callable[[Path], object], why: str, tmp_path: Path) -> None:
    make(tmp_path / "state.db")
    with pytest.raises(UserError, match=why):
        GatewayState(tmp_path / "state.db")
    with pytest.raises(UserError, match=why):  # and the lock was released
        GatewayState(tmp_path / "state.db")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file"):
        GatewayState(tmp_path / "nowhere" / "state.db")
