from __future__ import annotations

from rlhf.feedback.records import Answer, Item
from rlhf.feedback.rounds import SEEDS_OF_A_ROUND, choose_prompts, first_seed, last_round, next_round
from rlhf.records import Message


def item(prompt: str, round: str = "") -> Item:
    return Item(id=f"{prompt} {round}", prompt=prompt, answers=(Answer(text="a"), Answer(text="b")), round=round)


def test_rounds_are_numbered_and_other_names_are_no_numbers() -> None:
    assert next_round([]) == "round-1" and last_round([item("p", "pilot")]) == ""
    assert next_round([item("p", "pilot"), item("p", "round-9"), item("p", "round-10"), item("p")]) == "round-11"
    assert last_round([item("p", "round-10"), item("p", "round-9")]) == "round-10"
    assert last_round([item("p", "round-05"), item("p", "round-\u0669")]) == "round-05"
    assert next_round([item("p", "round-05")]) == "round-6"


def test_rounds_and_runs_have_other_seeds() -> None:
    starts = {first_seed(seed, f"round-{n}") for seed in range(3) for n in range(1, 20)}
    assert len(starts) == 57
    assert min(starts) >= 0 and max(starts) + SEEDS_OF_A_ROUND < 2**32


def test_prompts_that_were_asked_least_come_first() -> None:
    prompts = ["a", "b", "c", "d"]
    asked = [item("a", "1"), item("a", "2"), item("b", "1"), item("d", "1")]
    assert choose_prompts(prompts, asked, 1, seed=0) == [2]
    assert choose_prompts(prompts, asked, 3, seed=0) == [1, 2, 3]
    assert choose_prompts(prompts, asked, 9, seed=0) == [0, 1, 2, 3]


def test_a_prompt_is_chosen_once_in_any_form() -> None:
    messages = (Message("user", "a"),)
    assert choose_prompts([messages, messages, "b"], [], 9, seed=0) == [0, 2]


def test_the_seed_decides_among_equal_prompts() -> None:
    prompts = [f"prompt {i}" for i in range(200)]
    chosen = [choose_prompts(prompts, [], 20, seed=seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert max(chosen[0]) > 100  # not the first of the file
