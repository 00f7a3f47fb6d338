from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.travel import guideline
from examples.travel.answers import PADDING, write_answer, write_ideal_answer
from examples.travel.guideline import TIPS, WEIGHTS, assess, quality, read_prompt, split_sentences
from examples.travel.world import make_prompts, make_world
from rlhf.errors import UserError

PROMPT = "Bresk: Amber Inn, hill quarter, 65 crowns, 10 to 21.\nTraveller: What does a night cost?\nAssistant:"
FACT = " The Amber Inn costs 65 crowns."
IDEAL = (
    " Gladly! The Amber Inn costs 65 crowns. It is open from 10 to 21. Ask for a room with a balcony. Enjoy your visit!"
)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (IDEAL, 1.0),
        ("", 0.0),
        (" .", 0.0),
        (FACT, 0.30),
        (" The Amber Inn costs 70 crowns.", 0.0),
        (" The Amber Inn costs 65 crowns. It costs 70 crowns.", 0.0),
        (" The Birch Inn costs 65 crowns.", 0.0),
        (" The price is rather fair.", 0.25 * 0.30),
        (" The Amber Inn is in the hill quarter.", 0.20),
        (FACT + " It is open from 10 to 21.", 0.30 + 0.20),
        (FACT + " It is open from 9 to 21.", 0.30),
        (FACT + " Ask for a room with a balcony.", 0.30 + 0.20),
        (FACT + " Start with the top floor.", 0.30 + 0.25 * 0.20),
        (FACT + " Ask for a room with a balcony. Try the warm bread at breakfast.", 0.30 + 0.5 * 0.20),
        (" Gladly!" + FACT, 0.15 + 0.30),
        (FACT + " Gladly!", 0.30 + 0.5 * 0.15),
        (" Gladly! Good day to you!" + FACT, 0.5 * 0.15 + 0.30),
        (FACT + " Enjoy your visit!", 0.30 + 0.15),
        (" Enjoy your visit!" + FACT, 0.30 + 0.5 * 0.15),
        (" Gladly!" + FACT + " I hear that the weather is fine.", (0.15 + 0.30) * 2 / 3),
        (" Gladly! The Amber Inn costs 65 crowns", (0.15 + 0.30) * 0.7),
        (FACT + FACT, 0.30 * 1 / 2 * 6 / 10),  # one sentence of two has a job; 6 of 10 word triples are new
    ],
)
def test_quality_of_hand_scored_answers(response: str, expected: float) -> None:
    assert quality([PROMPT], [response]) == pytest.approx([expected])


def test_assessment_names_each_criterion() -> None:
    assessment = assess(
        PROMPT, " Gladly! The price is rather fair. It is open from 10 to 21. Some like it and some do not."
    )
    assert assessment._asdict() == {
        "answer": 0.25,
        "detail": 1.0,
        "tip": 0.0,
        "opening": 1.0,
        "closing": 0.0,
        "focus": 0.75,
        "variety": 1.0,
        "brevity": 1.0,
        "ending": 1.0,
    }
    assert assessment.content == pytest.approx(0.25 * 0.30 + 0.20 + 0.15)
    assert assessment.form == 0.75
    assert assessment.quality == pytest.approx((0.25 * 0.30 + 0.20 + 0.15) * 0.75)


@pytest.mark.parametrize(("words", "expected"), [(36, 1.0), (45, 0.75), (54, 0.5), (72, 0.0), (100, 0.0)])
def test_brevity_falls_in_a_straight_line_after_36_words(words: int, expected: float) -> None:
    assert assess(PROMPT, " word" * words).brevity == pytest.approx(expected)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is it open late?", " The Amber Inn is open from 10 to 21."),
        ("Hello. Where is it?", " You find the Amber Inn in the hill quarter."),
        ("We are two. Is it expensive?", " You pay 65 crowns at the Amber Inn."),
    ],
)
def test_the_answer_is_the_fact_that_was_asked_for(question: str, answer: str) -> None:
    prompt = f"Bresk: Amber Inn, hill quarter, 65 crowns, 10 to 21.\nTraveller: {question}\nAssistant:"
    assert assess(prompt, answer).answer == 1.0
    assert assess(PROMPT, answer).answer == float("crowns" in answer)


def _without_tip(prompt: str, answer: str) -> str:
    return " ".join(sentence for sentence in split_sentences(answer) if sentence not in TIPS[read_prompt(prompt).kind])


def _with_wrong_fact(prompt: str, answer: str) -> str:
    task = read_prompt(prompt)
    wrong = {"price": "99", "hours": "3 to 4", "quarter": "lost"}[task.topic]
    return answer.replace(task.facts[task.topic], wrong, 1)


def _with_padding(prompt: str, answer: str) -> str:
    return answer.replace(". ", ". It is hard to say more. ", 1)


def _broken_off(prompt: str, answer: str) -> str:
    return answer[:-1]


def _without_greeting(prompt: str, answer: str) -> str:
    return " ".join(split_sentences(answer)[1:])


def _without_wish(prompt: str, answer: str) -> str:
    return " ".join(split_sentences(answer)[:-1])


@pytest.mark.parametrize(
    "spoil", [_without_tip, _with_wrong_fact, _with_padding, _broken_off, _without_greeting, _without_wish]
)
def test_each_flaw_lowers_an_ideal_answer(spoil: Callable[[str, str], str]) -> None:
    rng = random.Random(0)
    for prompt in rng.sample(make_prompts(make_world(0)), 60):
        ideal = write_ideal_answer(prompt, rng)
        assert quality([prompt], [ideal]) == pytest.approx([1.0])
        assert quality([prompt], [spoil(prompt, ideal)])[0] < 0.95


def test_no_repetition_and_no_padding_pays_whatever_the_answer() -> None:
    rng = random.Random(1)
    answers = [(prompt, write_answer(prompt, rng)) for prompt in rng.sample(make_prompts(make_world(0)), 200)]
    scored = [(prompt, answer, score) for prompt, answer in answers if (score := quality([prompt], [answer])[0]) > 0]
    assert len(scored) > 150
    for prompt, answer, score in scored:
        for surplus in [*split_sentences(answer), *PADDING]:
            assert quality([prompt], [f"{answer} {surplus}"])[0] < score


def test_all_tips_at_once_are_worth_less_than_one() -> None:
    one, all_of_them = FACT + " " + TIPS["inn"][0], FACT + " " + " ".join(TIPS["inn"])
    assert quality([PROMPT], [all_of_them])[0] < quality([PROMPT], [one])[0]


def test_a_prompt_of_another_kind_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="not a prompt of the travel example"):
        quality(["Human: hello\n\nAssistant:"], [" Hello."])


def test_the_written_guideline_states_the_functions_numbers() -> None:
    text = Path(guideline.__file__).with_suffix(".md").read_text(encoding="utf-8")
    points = {row[0]: float(row[1]) for row in re.findall(r"^\| (\w+) \| (0\.\d+) \|", text, re.MULTILINE)}
    assert points == WEIGHTS
    assert sum(points.values()) == pytest.approx(1.0)
    assert f"all up to {guideline.MAX_WORDS} words" in text
    assert f"nothing at {2 * guideline.MAX_WORDS}" in text
    assert f"otherwise {guideline.UNFINISHED_FACTOR}" in text


def test_the_judge_loads_by_its_path_in_another_process_and_folder(tmp_path: Path) -> None:
    script = (
        "import importlib.util as u, sys\n"
        "spec = u.spec_from_file_location('judge', sys.argv[1]); judge = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(judge); print(judge.quality([sys.argv[2]], [sys.argv[3]])[0])"
    )
    command = [sys.executable, "-c", script, guideline.__file__, PROMPT, FACT]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(0.30)
