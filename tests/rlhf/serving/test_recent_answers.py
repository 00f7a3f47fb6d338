"""Answers that may still be judged: bounded in bytes and in time."""

from __future__ import annotations

from rlhf.serving.recent_answers import RecentAnswer, RecentAnswers


def answer(size: int = 10, version: str = "one") -> RecentAnswer:
    return RecentAnswer(request=b"r" * size, raw=b"a" * size, is_stream=False, version=version, owner="app")


def test_the_oldest_are_forgotten_when_the_bytes_are_used_up() -> None:
    kept = RecentAnswers(100, 1000.0, lambda: 0.0)
    for number in range(7):
        kept.add(str(number), answer())
    assert [kept.get(str(number)) is not None for number in range(7)] == [False, False, True, True, True, True, True]
    kept.add("large", answer(size=200))
    assert kept.get("large") is None
    kept.add("after", answer())
    assert kept.get("after") is not None


def test_an_answer_is_forgotten_after_its_time_and_an_id_is_kept_once() -> None:
    now = [0.0]
    kept = RecentAnswers(1000, 60.0, lambda: now[0])
    kept.add("a", answer())
    kept.add("a", answer(version="two"))
    kept.add("", answer())
    now[0] = 60.0
    found = kept.get("a")
    assert found is not None
    assert found.version == "one"
    now[0] = 61.0
    assert (kept.get("a"), kept.get("")) == (None, None)
