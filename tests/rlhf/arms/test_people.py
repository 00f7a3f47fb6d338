"""Votes of a feedback project as votes on arms."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.arms.answers import Arms, read_arms
from rlhf.arms.people import read_votes
from rlhf.errors import UserError
from rlhf.evaluation.agreement_with_people import ArmPreference
from rlhf.evaluation.arm_strengths import PairOutcome
from rlhf.feedback.records import Answer, Choice
from tests.rlhf.arms.comparison_files import write_rows, write_votes

PROMPTS = ("p0", "p1", "p2", "p3")
TEXTS = {"base": ("b0", "b1", "b2", "same"), "arm": ("a0", "a1", "a2", "same"), "third": ("t0", "t1", "t2", "t3")}


def arms(folder: Path) -> Arms:
    items = str(write_rows(folder / "items.jsonl", [{"prompt": prompt} for prompt in PROMPTS]))
    files = {
        name: str(write_rows(folder / f"{name}.jsonl", [{"prompt": p, "response": t} for p, t in zip(PROMPTS, texts)]))
        for name, texts in TEXTS.items()
    }
    return read_arms(items, files, "base")


def test_votes_become_outcomes_of_arms(tmp_path: Path) -> None:
    path = write_votes(
        tmp_path / "votes.db",
        [
            ("p0", Answer(text="b0"), Answer(text="a0"), Choice.SECOND_MUCH),
            ("p1", Answer(text="t1 "), Answer(text="b1"), Choice.FIRST_SLIGHTLY),
            ("p2", Answer(text="b2"), Answer(text="a2"), Choice.TIE),
            ("p3", Answer(text="same", policy="arm"), Answer(text="t3"), Choice.FIRST_MUCH),
            ("p3", Answer(text="same"), Answer(text="t3"), Choice.FIRST_MUCH),  # of two arms: unknown
            ("p9", Answer(text="b0"), Answer(text="a0"), Choice.FIRST_MUCH),
            ("p0", Answer(text="b0"), Answer(text="by hand"), Choice.FIRST_MUCH),
        ],
    )
    found = read_votes(str(path), arms(tmp_path))
    assert found.preferences == (
        ArmPreference(item=0, winner=1, loser=0),
        ArmPreference(item=1, winner=2, loser=0),
        ArmPreference(item=3, winner=1, loser=2),
    )
    assert found.outcomes == (
        PairOutcome(item=0, first=0, second=1, value=0.0),
        PairOutcome(item=1, first=2, second=0, value=1.0),
        PairOutcome(item=2, first=0, second=1, value=0.5),
        PairOutcome(item=3, first=1, second=2, value=1.0),
    )
    assert (found.votes, found.unmatched, found.ambiguous) == (4, 2, 1)


def test_votes_on_a_text_of_two_arms_are_no_votes_on_another_comparison(tmp_path: Path) -> None:
    path = write_votes(tmp_path / "votes.db", [("p3", Answer(text="same"), Answer(text="t3"), Choice.FIRST_MUCH)])
    with pytest.raises(UserError, match="two arms gave this text, and the vote names no policy"):
        read_votes(str(path), arms(tmp_path))


def test_a_project_of_other_answers_and_another_file_are_refused(tmp_path: Path) -> None:
    path = write_votes(tmp_path / "votes.db", [("p9", Answer(text="x"), Answer(text="y"), Choice.FIRST_MUCH)])
    with pytest.raises(UserError, match="has no vote on this comparison"):
        read_votes(str(path), arms(tmp_path))
    with pytest.raises(UserError, match="is no feedback project"):
        read_votes(str(tmp_path / "items.jsonl"), arms(tmp_path))
