"""Public data with the settings of docs/data.md: every row of a file is used or counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.finegrained.pairs import main as write_pairs
from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations, load_preferences, load_prompts
from rlhf.records import Loaded

SharedFile = Callable[[str], str]
PANDALM = {"prompt": "instruction", "input": "input", "chosen": "response1", "rejected": "response2"}
FINEGRAINED = {"chosen": "answer_1", "rejected": "answer_2", "label": "label"}
INSTANCES = {"prompt": "instruction", "input": "instances.0.input", "completion": "instances.0.output"}
CASES: list[tuple[str, Callable[[DataConfig], Loaded], dict[str, str], int, int]] = [
    ("hh-rlhf/harmless-base.jsonl.gz", load_preferences, {}, 1734, 1725),
    ("hh-rlhf/harmless-base.jsonl.gz", load_demonstrations, {}, 1734, 1725),
    ("hh-rlhf/harmless-base.jsonl.gz", load_prompts, {}, 1734, 1725),
    ("gsm8k/train.jsonl", load_demonstrations, {}, 7473, 7473),
    ("gsm8k/test.jsonl", load_prompts, {}, 1319, 1319),
    ("self-instruct/seed_tasks.jsonl", load_demonstrations, INSTANCES, 175, 175),
    ("self-instruct/user_oriented_instructions.jsonl", load_demonstrations, INSTANCES, 252, 252),
    ("finegrained-rlhf/dev_feedback.json", load_demonstrations, {"prompt": "question", "completion": "gold"}, 500, 500),
    ("finegrained-rlhf/dev_feedback.json", load_prompts, {}, 500, 500),
]
"""File, loader, ``data.columns``, rows of the file, rows that are used."""


@pytest.mark.parametrize(("name", "load", "columns", "rows", "used"), CASES)
def test_the_counts_add_up(shared_file: SharedFile, name: str, load, columns, rows: int, used: int) -> None:
    loaded = load(DataConfig(path=shared_file(name), columns=columns))
    assert (len(loaded.rows), len(loaded.rows) + len(loaded.bad)) == (used, rows)
    assert [file.rows for file in loaded.files] == [rows]


@pytest.mark.parametrize("label", ["annotator1", "annotator1, annotator2, annotator3"])
def test_pandalms_judgements(shared_file: SharedFile, label: str) -> None:
    """Compare with a count over the file: a row is a tie, has a winner, or has an answer that is no text."""
    path = shared_file("pandalm/testset-v1.json")
    loaded = load_preferences(DataConfig(path=path, columns={**PANDALM, "label": label}))
    with open(path, encoding="utf-8") as stream:
        rows = json.load(stream)
    names, expected, ties = label.split(", "), [], 0
    for row in rows:
        votes = Counter(row[name] for name in names)
        winner = next((side for side in (1, 2) if votes[side] * 2 > len(names)), 0)
        ties += winner == 0
        answers = [row["response1"], row["response2"]]
        prompt = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
        if (
            winner
            and row["instruction"].strip()
            and all(isinstance(a, str) and a.strip() for a in answers)
            and len(set(answers)) == 2
        ):
            expected.append((prompt, *(answers if winner == 1 else answers[::-1])))
    assert [(row.prompt, row.chosen, row.rejected) for row in loaded.rows] == expected
    assert Counter(bad.category for bad in loaded.bad)["tie"] == ties
    assert len(loaded.rows) + len(loaded.bad) == 999


def test_finegrained_pairs(shared_file: SharedFile, tmp_path: Path) -> None:
    """2,616 pairs without ties, according to its documentation."""
    write_pairs([shared_file("finegrained-rlhf/dev_feedback.json"), "--out", str(tmp_path / "pairs.jsonl")])
    loaded = load_preferences(DataConfig(path=str(tmp_path / "pairs.jsonl"), columns=FINEGRAINED))
    counted = Counter(bad.category for bad in loaded.bad)
    assert len(loaded.rows) + counted.total() == 3000
    assert len(loaded.rows) + counted["chosen equals rejected"] == 2616 and counted["tie"] == 384
