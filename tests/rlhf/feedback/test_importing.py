"""Files of feedback in a project: once, whole, and with their raters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.feedback import importing
from rlhf.feedback.formats.reading import read_feedback
from rlhf.feedback.importing import Added, import_feedback, number_of_rows
from rlhf.feedback.records import Choice
from rlhf.feedback.store import Store

SHARED = Path(__file__).parents[4] / "shared" / "data"
ROWS = [
    {"instruction": "Two?", "response1": "2", "response2": "3", "annotator1": 1, "annotator2": 1, "annotator3": 0},
    {"instruction": "Three?", "response1": "2", "response2": "3", "annotator1": 2, "annotator2": 2, "annotator3": 2},
]


def write(file: Path, rows: list[dict[str, object]]) -> str:
    """A JSONL file of these rows."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_an_import_adds_items_votes_and_raters(tmp_path: Path) -> None:
    feedback = read_feedback(write(tmp_path / "rows.jsonl", ROWS), "pandalm")
    with Store.create(tmp_path / "votes.db") as store:
        assert import_feedback(store, feedback) == Added(items=2, votes=6, thumbs=0, raters=3)
        assert tuple(store.items()) == feedback.items
        assert tuple(store.votes()) == feedback.votes
        assert all(rater.is_imported and rater.votes == 2 for rater in store.raters())


def test_the_same_file_adds_nothing_even_under_another_order(tmp_path: Path) -> None:
    with Store.create(tmp_path / "votes.db") as store:
        import_feedback(store, read_feedback(write(tmp_path / "rows.jsonl", ROWS), "pandalm"))
        before = store.digest()
        again = read_feedback(write(tmp_path / "rows.jsonl", ROWS[::-1]), "pandalm")
        assert import_feedback(store, again) == Added(items=0, votes=0, thumbs=0, raters=0)
        assert store.digest() == before


def test_an_unpaired_file_adds_thumbs_once(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "Two?", "completion": "2", "label": True}] * 3
    feedback = read_feedback(write(tmp_path / "rows.jsonl", rows), "trl-unpaired")
    with Store.create(tmp_path / "votes.db") as store:
        assert import_feedback(store, feedback).thumbs == 3
        assert import_feedback(store, feedback).thumbs == 0
        assert [thumb.is_good for thumb in store.thumbs()] == [True] * 3


def test_a_changed_label_is_refused(tmp_path: Path) -> None:
    with Store.create(tmp_path / "votes.db") as store:
        import_feedback(store, read_feedback(write(tmp_path / "rows.jsonl", ROWS), "pandalm"))
        changed = [{**ROWS[0], "annotator1": 2}]
        with pytest.raises(UserError, match="is stored with another content"):
            import_feedback(store, read_feedback(write(tmp_path / "rows.jsonl", changed), "pandalm"))
        assert [vote.choice for vote in store.votes(rater="pandalm:annotator1")] == [
            Choice.FIRST_SLIGHTLY,
            Choice.SECOND_SLIGHTLY,
        ]


def test_progress_is_reported_up_to_the_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "AT_ONCE", 4)
    feedback = read_feedback(write(tmp_path / "rows.jsonl", ROWS), "pandalm")
    done: list[int] = []
    with Store.create(tmp_path / "votes.db") as store:
        import_feedback(store, feedback, done.append)
    assert done == [2, 6, 8]
    assert number_of_rows(feedback) == 8


@pytest.mark.parametrize(
    ("name", "format", "votes"),
    [("pandalm/testset-v1.json", "pandalm", 2997), ("finegrained-rlhf/dev_feedback.json", "finegrained", 3000)],
)
def test_public_data_sets_in_a_project(tmp_path: Path, name: str, format: str, votes: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"the real data file {name} is not beside this repository")
    feedback = read_feedback(str(SHARED / name), format)
    with Store.create(tmp_path / "votes.db") as store:
        assert import_feedback(store, feedback).votes == votes
        assert import_feedback(store, feedback) == Added(items=0, votes=0, thumbs=0, raters=0)
        assert {vote.id: vote for vote in store.votes()} == {vote.id: vote for vote in feedback.votes}
        assert store.check() == []
