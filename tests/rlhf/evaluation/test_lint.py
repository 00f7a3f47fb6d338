"""Faults that are planted in evaluation sets."""

from __future__ import annotations

import pytest

from rlhf.evaluation import lint as lint_module
from rlhf.evaluation.lint import EvaluationRow, LintLimits, duplicates, jaccard, lint, shingles
from rlhf.records import RowLocation

TEXTS = [
    "Which temples in Kyoto can be visited in the evening?",
    "How do I get from the airport to the old town by train?",
    "What should a vegetarian order in a small mountain inn?",
    "Is the museum of modern art open on national holidays?",
]


def rows(prompts: list[str], answers: list[str] | None = None, labels: list[str] | None = None) -> list[EvaluationRow]:
    return [
        EvaluationRow(
            location=RowLocation("set.jsonl", i + 1),
            prompt=prompt,
            answers=(answers[i],) if answers else (),
            label=labels[i] if labels else "",
            columns={"prompt": prompt, "reference": answers[i] if answers else None},
        )
        for i, prompt in enumerate(prompts)
    ]


def found(given: list[EvaluationRow], train: list[EvaluationRow] | None = None, **limits: object) -> list[str]:
    return [str(each) for each in lint(given, train or [], LintLimits(**limits))]  # type: ignore[arg-type]


def test_a_clean_set_has_no_findings() -> None:
    assert found(rows(TEXTS), rows(["Another question about ferries and islands?"]), longest_answer=10) == []


def test_duplicates_apart_from_case_and_space_name_both_rows() -> None:
    assert found(rows([*TEXTS, "  which temples in kyoto can be  visited in the evening? "])) == [
        "set.jsonl:5: duplicate question: as in set.jsonl:1 (similarity 1.00)"
    ]


def test_near_duplicates_have_their_exact_similarity() -> None:
    near = TEXTS[1].replace("train?", "trains?")
    similarity = jaccard(shingles(TEXTS[1]), shingles(near))
    # 54 and 55 characters: 50 and 51 shingles of 5; of the last ones "rain?" is gone, "rains" and "ains?" are new.
    assert (len(shingles(TEXTS[1])), len(shingles(near)), similarity) == (50, 51, 49 / 52)
    assert found(rows([*TEXTS, near])) == ["set.jsonl:5: near-duplicate question: as in set.jsonl:2 (similarity 0.94)"]


def test_other_questions_in_the_same_words_are_no_duplicates() -> None:
    assert found(rows(["How far is Osaka from Kyoto?", "How far is Nara from Kobe?", "京都の寺", "奈良の寺"])) == []


def test_japanese_duplicates_are_found() -> None:
    text = "京都で夜に参拝できるお寺をいくつか教えてください。電車で行ける所がいいです。"
    assert len(found(rows([text, text.replace("電車", "バス")]))) == 0  # 12 of 36 shingles differ
    assert len(found(rows([text, text + "。"]))) == 1


def test_leaks_from_training_name_the_training_row() -> None:
    train = [
        EvaluationRow(location=RowLocation("train.jsonl", 7), prompt=TEXTS[2].upper(), answers=("Tofu.",)),
        EvaluationRow(
            location=RowLocation("train.jsonl", 8),
            prompt="Elsewhere?",
            answers=("The museum opens at ten and closes at five.",),
        ),
    ]
    given = rows(TEXTS, ["", "", "Tofu.", "The museum opens at ten and closes at five!"])
    assert found(given, train) == [
        "set.jsonl:3: leak from training: question as in train.jsonl:7 (similarity 1.00)",
        "set.jsonl:4: leak from training: answer as in train.jsonl:8 (similarity 0.95)",
    ]


def test_every_reference_of_a_row_counts() -> None:
    said = "The museum opens at ten and closes at five."
    train = [EvaluationRow(location=RowLocation("train.jsonl", 8), prompt="Elsewhere?", answers=(said,))]
    location = RowLocation("set.jsonl", 9)
    other = "From ten, and on Sundays only from noon on."
    several = EvaluationRow(location=location, prompt="When is it open?", answers=(said + "!", said, other))
    assert found([*rows(TEXTS[:1], [other]), several], train, longest_answer=43) == [
        "set.jsonl:9: answer over the limit: 44 characters, and the limit is 43",
        "set.jsonl:9: duplicate answer: as in set.jsonl:1 (similarity 1.00)",
        "set.jsonl:9: leak from training: answer as in train.jsonl:8 (similarity 1.00)",
    ]


def test_equal_answers_are_compared_once_and_each_row_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[frozenset[str]] = []
    digest = lint_module._minhash
    monkeypatch.setattr(lint_module, "_minhash", lambda of: digested.append(of) or digest(of))
    answers = ["It is open on all days of the week.     ", "No, guests have to leave it before the evening."] * 50
    given = rows([chr(0x4E00 + i) * 9 for i in range(100)], answers)
    assert [str(each) for each in duplicates(given, "answer", lambda row: row.answers)] == [
        f"set.jsonl:{i}: duplicate answer: as in set.jsonl:{2 - i % 2} (similarity 1.00)" for i in range(3, 101)
    ]
    assert len(digested) == 4  # each of two texts when it is looked up, and when it is kept


def test_equal_short_answers_are_no_fault() -> None:
    prompts = [chr(0x4E00 + i) * 9 for i in range(10)]
    assert found(rows(prompts, ["yes", "no"] * 5)) == []
    assert found(rows(prompts[:2], ["x" * 39] * 2)) == []
    assert len(found(rows(prompts[:2], ["x" * 40] * 2))) == 1


def test_missing_fields_and_long_answers_are_named() -> None:
    given = rows(TEXTS[:3], ["short", " ", "x" * 11])
    assert found(given, required=("reference", "label"), longest_answer=10) == [
        "set.jsonl:1: missing field: no label",
        "set.jsonl:2: missing field: no reference",
        "set.jsonl:2: missing field: no label",
        "set.jsonl:3: missing field: no label",
        "set.jsonl:3: answer over the limit: 11 characters, and the limit is 10",
    ]


@pytest.mark.parametrize(("yes", "findings"), [(18, 0), (19, 1)])
def test_a_label_that_nearly_all_rows_have(yes: int, findings: int) -> None:
    prompts = [f"{i} {chr(97 + i) * 30}" for i in range(20)]
    given = rows(prompts, labels=["yes"] * yes + ["no"] * (20 - yes))
    assert len(found(given)) == findings
    if findings:
        assert found(given) == ["set.jsonl:1: label imbalance: 19 of 20 rows have the label 'yes'"]
