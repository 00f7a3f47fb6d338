from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from examples.gsm8k.reward import exact_answer, final_number, has_answer_line
from rlhf.errors import UserError
from rlhf.evaluation.scorers import load_scorer

FILE = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
ROWS = [
    {"answer": "She has 12-3=<<12-3=9>>9 rolls left.\nShe takes 9*2=$<<9*2=18>>18.\n#### 18"},
    {"answer": "It fell by 5 from 2.\n#### -3"},
    {"answer": "4*250=<<4*250=1000>>1000\n#### 1,000"},
    {"answer": "Half of 5 is 2.5.\n#### 2.5"},
]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"),
        ("9*2=18\n#### 18", "18"),
        ("####18", "18"),
        ("#### $18.00 in all, of 20", "18"),
        ("#### 1,000", "1000"),
        ("#### -3", "-3"),
        ("#### -$3", "-3"),
        ("#### $-3", "-3"),
        ("#### .5", "0.5"),
        ("first #### 5, no: #### 6", "6"),
        ("####\nit is 7", "7"),
        ("the answer is 42.", "42"),
        ("5-3", "3"),
        ("(4)-1", "1"),
        ("- 5 apples", "5"),
        ("from 3 to 12,345,678 cats", "12345678"),
        ("16-3=<<16-3=13>>13", "13"),
        ("50%", "50"),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no number", "####", "#### none", "$"])
def test_text_without_a_number(text):
    assert final_number(text) is None


def test_a_right_answer_scores_one():
    right = ["18", "so #### -3.0", "#### $1000", "2 and a half is 2.50"]
    assert exact_answer([""] * 4, right, ROWS) == [1.0, 1.0, 1.0, 1.0]


def test_a_wrong_answer_or_none_scores_nothing():
    wrong = ["18 of 20", "#### 3", "", "#### 25"]
    assert exact_answer([""] * 4, wrong, ROWS) == [0.0, 0.0, 0.0, 0.0]


def test_many_answers_do_not_pay():
    guesses = " ".join(f"#### {n}" for n in range(30))
    assert exact_answer([""], [guesses], ROWS[:1]) == [0.0]


def test_the_form_alone():
    assert has_answer_line([""] * 4, ["#### 5", "5", "####", "####\n5"]) == [1.0, 0.0, 0.0, 0.0]


def test_a_row_without_the_column_is_named():
    judge = load_scorer("examples/gsm8k/reward.py:exact_answer")
    assert judge.needs_rows
    with pytest.raises(UserError, match=r"failed on sample 1, prompt 'q1', row \{'solution': '4'\}") as caught:
        judge(["q0", "q1"], ["1", "4"], [ROWS[0], {"solution": "4"}])
    assert caught.value.why.startswith("KeyError: 'answer'")


@pytest.mark.skipif(not FILE.exists(), reason="the real data file gsm8k/test.jsonl is not beside this repository")
def test_every_real_solution_scores_one_and_its_neighbours_answer_nothing():
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    solutions = [row["answer"] for row in rows]
    assert exact_answer(solutions, solutions, rows) == [1.0] * 1319
    bare = [solution.split("####")[1].replace(",", "") for solution in solutions]
    assert exact_answer(bare, bare, rows) == [1.0] * 1319
    raised = [f"#### {Decimal(number.strip()) + 1}" for number in bare]
    assert not any(exact_answer(raised, raised, rows))
    assert has_answer_line(solutions, solutions) == [1.0] * 1319
