"""Pairs for people, and their preferences as a gate's data."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.arms.answers import Arms, read_arms
from rlhf.arms.people import read_votes
from rlhf.cycle.preferences import pairs_to_compare, preference_kpi, preference_rows
from rlhf.feedback.records import Choice
from tests.rlhf.arms.comparison_files import write_rows, write_votes

PROMPTS = [f"Where is town {i}?" for i in range(5)]
NEW, OLD = ["here", "there", "same", "east", "west"], ["no", "no", "same", "no", "no"]


@pytest.fixture
def arms(tmp_path: Path) -> Arms:
    write_rows(tmp_path / "items.jsonl", [{"prompt": prompt, "group": "g"} for prompt in PROMPTS])
    files = {}
    for name, answers in (("production", OLD), ("candidate", NEW)):
        rows = [{"prompt": prompt, "response": answer} for prompt, answer in zip(PROMPTS, answers)]
        files[name] = str(write_rows(tmp_path / f"{name}.jsonl", rows))
    return read_arms(str(tmp_path / "items.jsonl"), files, "production")


def test_people_see_the_answers_that_differ(tmp_path: Path, arms: Arms) -> None:
    pairs = pairs_to_compare(arms, str(tmp_path / "items.jsonl"), "round")
    assert [item.prompt for item in pairs] == [PROMPTS[i] for i in (0, 1, 3, 4)]
    assert {item.round for item in pairs} == {"round"}
    assert [tuple(answer.text for answer in item.answers) for item in pairs[:2]] == [("here", "no"), ("there", "no")]
    assert [answer.policy for answer in pairs[0].answers] == ["candidate", "production"]


def test_preferences_are_the_candidates_and_equal_answers_are_ties(tmp_path: Path, arms: Arms) -> None:
    pairs = pairs_to_compare(arms, str(tmp_path / "items.jsonl"), "round")
    choices = (Choice.FIRST_MUCH, Choice.SECOND_SLIGHTLY, Choice.TIE)
    first, second, third = ((item.prompt, *item.answers, choice) for item, choice in zip(pairs, choices))
    prompt, ours, theirs, choice = second
    turned = (prompt, theirs, ours, choice.swapped)
    project = write_votes(tmp_path / "votes.db", [first, turned, third])  # type: ignore[list-item]
    rows = preference_rows(arms, read_votes(str(project), arms))
    assert [(row["item"], row["candidate"], row["production"]) for row in rows] == [
        (0, 1.0, 0.0),
        (1, 0.0, 1.0),
        (2, 0.5, 0.5),
        (3, 0.5, 0.5),
    ], "nobody judged the fifth"
    assert {row["cluster"] for row in rows} == {"g"}
    assert {row["metric"] for row in rows} == {"preferred"}


def test_without_votes_only_equal_answers_are_known(arms: Arms) -> None:
    assert [row["item"] for row in preference_rows(arms, None)] == [2]


def test_the_mean_has_an_interval_within_its_range() -> None:
    rows = [{"candidate": float(i < 9), "cluster": str(i)} for i in range(10)]
    kpi = preference_kpi(rows)
    assert kpi["candidate"]["value"] == 0.9 and kpi["n"] == 10
    assert 0 < kpi["candidate"]["low"] < 0.9 and kpi["candidate"]["high"] == 1.0
    assert preference_kpi([]) == {"n": 0}
