"""Scores that contradict chosen and rejected are counted, or refused."""

from __future__ import annotations

import pytest

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations, load_preferences, load_prompts
from rlhf.data.report import describe
from rlhf.errors import UserError
from tests.rlhf.data.conftest import Write

NUMBERED = {"prompt": "prompt", "chosen": "output_1", "rejected": "output_2"}


def pairs(names: tuple[str, str], *scores: tuple[object, object], **others: object) -> list[dict[str, object]]:
    answers = {"chosen": "one", "rejected": "two", "output_1": "one", "output_2": "two"}
    return [{"prompt": f"q{i}", **answers, **dict(zip(names, two)), **others} for i, two in enumerate(scores)]


@pytest.mark.parametrize(
    ("names", "scores"),
    [
        (("score_chosen", "score_rejected"), [(8.5, 3), (1, 4), (2, 1), (5, 5), (3, None)]),
        (("chosen-rating", "rejected-rating"), [("5", "1"), ("1", "5"), (4, 2), ("?", 9)]),
        (("chosenReward", "rejectedReward"), [(0.1, -2), (-2, 0.1), (True, 7), (3, 1)]),
        (("overall_chosen", "overall_rejected"), [(2, 1), (1, 2), (float("nan"), 2), (9, 2)]),
        (("rank_chosen", "rank_rejected"), [(1, 2), (2, 1), (1, 3)]),
    ],
)
def test_scores_that_say_otherwise_are_counted(write_jsonl: Write, names, scores) -> None:
    path = write_jsonl(*pairs(names, *scores))
    for load in (load_preferences, load_demonstrations):
        loaded = load(DataConfig(path=path, ignore=("output_1", "output_2")))
        remark = f"1 × {names[0]} is worse than {names[1]}: trained on as chosen and rejected say"
        assert loaded.remarks == (remark,) and len(loaded.rows) == len(scores)
        assert f"  {remark}" in describe(loaded, "pairs").splitlines()
    assert load_prompts(DataConfig(path=path)).remarks == ()


@pytest.mark.parametrize(
    ("names", "scores", "columns"),
    [
        (("score_chosen", "score_rejected"), [(1, 4), (2, 3), (5, 1)], {}),
        (("rank_chosen", "rank_rejected"), [(2, 1)], {}),
        (("score_1", "score_2"), [(1, 4)], NUMBERED),
        (("score_2", "score_1"), [(1, 4)], {**NUMBERED, "chosen": "output_2", "rejected": "output_1"}),
    ],
)
def test_scores_that_say_otherwise_in_most_rows_are_refused(write_jsonl: Write, names, scores, columns) -> None:
    path = write_jsonl(*pairs(names, *scores))
    with pytest.raises(UserError, match=f"{names[0]} is worse than {names[1]} in [12] of the [13] rows") as caught:
        load_preferences(DataConfig(path=path, columns=columns))
    assert f"data.ignore=[{', '.join(names)}]" in caught.value.fix
    swapped = f"chosen: {columns.get('rejected', 'rejected')}, rejected: {columns.get('chosen', 'chosen')}"
    assert swapped in caught.value.fix
    assert load_preferences(DataConfig(path=path, columns=columns, ignore=names)).rows


def test_scores_inside_of_a_column_are_compared(write_jsonl: Write) -> None:
    answers = [{"text": "one", "score": 1}, {"text": "two", "score": 4}]
    columns = {"prompt": "q", "chosen": "answers.0.text", "rejected": "answers.1.text"}
    with pytest.raises(UserError, match=r"answers\.0\.score is worse than answers\.1\.score in 1 of the 1 rows"):
        load_preferences(DataConfig(path=write_jsonl({"q": "q", "answers": answers}), columns=columns))


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("score_chosen", "score_other"), {}),
        (("length_chosen", "length_rejected"), {}),
        (("rank_score_chosen", "rank_score_rejected"), {}),  # which end is the better one, the name leaves open
        (("score_1", "score_2"), {}),
        (("scorecard_chosen", "scorecard_rejected"), {}),
    ],
)
def test_other_columns_are_no_scores(write_jsonl: Write, names, columns) -> None:
    loaded = load_preferences(DataConfig(path=write_jsonl(*pairs(names, (1, 4))), columns=columns))
    assert len(loaded.rows) == 1 and loaded.remarks == ()


WEBGPT = {"prompt": "prompt", "chosen": "answer_0", "rejected": "answer_1"}


def answers(*scores: tuple[float, float], **others: object) -> list[dict[str, object]]:
    return [
        {"prompt": f"q{i}", "answer_0": "zero", "answer_1": "one", "score_0": a, "score_1": b, **others}
        for i, (a, b) in enumerate(scores)
    ]


@pytest.mark.parametrize("against", [2, 8, 10])
def test_scores_of_counted_answers_that_say_otherwise_in_some_rows_are_refused(write_jsonl: Write, against) -> None:
    """They are the judgement: WebGPT's answers have no order."""
    path = write_jsonl(*answers(*[(-1.0, 1.0)] * against, *[(1.0, -1.0)] * (20 - against)))
    with pytest.raises(UserError, match=f"score_0 is worse than score_1 in {against} of the 20 rows") as caught:
        load_preferences(DataConfig(path=path, columns=WEBGPT))
    assert "write a column of the winner (answer_0 or answer_1)" in caught.value.fix
    assert "data.ignore=[score_0, score_1]" in caught.value.fix


def test_few_scores_of_counted_answers_that_say_otherwise_are_counted(write_jsonl: Write) -> None:
    path = write_jsonl(*answers((-1.0, 1.0), *[(1.0, -1.0)] * 20))
    remarks = load_preferences(DataConfig(path=path, columns=WEBGPT)).remarks
    assert "1 × score_0 is worse than score_1: trained on as chosen and rejected say" in remarks


def test_scores_that_say_otherwise_in_half_of_the_rows_are_refused(write_jsonl: Write) -> None:
    path = write_jsonl(*pairs(("score_chosen", "score_rejected"), (1, 4), (4, 1), (2, 3), (3, 2)))
    with pytest.raises(UserError, match="is worse than score_rejected in 2 of the 4 rows") as caught:
        load_preferences(DataConfig(path=path))
    assert "answers are swapped" not in caught.value.fix


@pytest.mark.parametrize(
    ("labels", "remarks"),
    [
        ((1, 1, 0, 0), ()),
        ((1, 1, 0, 1), ("1 × score_0 and score_1 contradict the label: trained on as the label says",)),
        ((0, 0, 1, 1), None),
        ((1, 0, 1, 0), None),
    ],
)
def test_scores_are_compared_with_the_winner_by_label(write_jsonl: Write, labels, remarks) -> None:
    scores = [(-1.0, 1.0), (-0.5, 0.5), (1.0, -1.0), (0.5, -0.5)]
    rows = [{**row, "winner": label} for row, label in zip(answers(*scores), labels, strict=True)]
    config = DataConfig(path=write_jsonl(*rows), columns={**WEBGPT, "label": "winner"})
    if remarks is not None:
        assert load_preferences(config).remarks == remarks
        return
    with pytest.raises(UserError, match=r"score_0 and score_1 contradict data\.columns\.label=winner in [24] of the 4"):
        load_preferences(config)
