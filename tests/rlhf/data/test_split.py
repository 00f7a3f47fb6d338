from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.hh import messages
from rlhf.data.split import canonical_prompt, split_by_prompt, split_key
from rlhf.records import Demonstration, Message, Messages, PromptRow, RowLocation

prompts = st.lists(st.text(max_size=3), max_size=40)
fractions = st.floats(0, 0.99)


@given(keys=prompts, fraction=fractions, seed=st.integers(-(2**40), 2**40))
def test_every_row_is_on_one_side_with_all_rows_of_its_prompt(keys: list[str], fraction: float, seed: int) -> None:
    train, held_out = split_by_prompt(keys, fraction, seed)
    assert sorted(train + held_out) == list(range(len(keys)))
    assert train == sorted(train) and held_out == sorted(held_out)
    assert not {keys[i] for i in train} & {keys[i] for i in held_out}
    if len(set(keys)) >= 2:
        assert train and bool(held_out) == (fraction > 0)


@pytest.mark.parametrize("fraction", [1e-9, 0.999999])
def test_neither_side_is_empty_with_two_prompts(fraction: float) -> None:
    train, held_out = split_by_prompt(["a", "b", "a"], fraction, seed=0)
    assert train and held_out


def test_a_single_prompt_or_no_fraction_leaves_rows_in_training() -> None:
    assert split_by_prompt(["a", "a"], 0.0, seed=0) == ([0, 1], [])
    assert split_by_prompt(["a", "b"], 0.0, seed=0) == ([0, 1], [])
    assert split_by_prompt([], 0.5, seed=0) == ([], [])


def test_the_share_is_met_on_average_and_seeds_differ() -> None:
    keys = [f"prompt {i}" for i in range(10_000)]
    held_out = [set(split_by_prompt(keys, 0.1, seed)[1]) for seed in (0, 1)]
    for side in held_out:  # binomial: standard deviation 30
        assert 880 <= len(side) <= 1120
    assert len(held_out[0] & held_out[1]) < 200  # 100 expected by chance


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, [1]),
        (1, [1, 5, 9, 16, 17]),
        (2, [3, 4, 5, 7, 10, 12, 13, 16]),
        (3, [8, 10, 11, 18]),
        (-1, [4, 5, 7, 9, 11, 12, 14, 16, 19]),
        (2**40, [0, 2, 7, 10, 15]),
    ],
)
def test_the_split_of_a_seed_is_this_one(seed: int, expected: list[int]) -> None:
    """From ``hashlib.blake2b`` alone: the first 53 bits of its little-endian digest as a fraction of 2^53, below .3.

    A resumed run, or one that shares its held-out prompts with others, depends on it.
    """
    assert split_by_prompt([f"prompt {i}" for i in range(20)], 0.3, seed)[1] == expected


def test_prompts_stay_on_their_side_in_another_file() -> None:
    keys = [f"prompt {i}" for i in range(500)]
    whole = {keys[i] for i in split_by_prompt(keys, 0.2, seed=3)[1]}
    part = keys[100:400][::-1]
    assert {part[i] for i in split_by_prompt(part, 0.2, seed=3)[1]} == whole & set(part)


def test_another_process_splits_alike() -> None:
    code = "from rlhf.data.split import split_by_prompt as s; print(s([str(i) for i in range(50)], 0.3, 7)[1])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(split_by_prompt([str(i) for i in range(50)], 0.3, 7)[1])


@pytest.mark.parametrize("seed", range(20))
def test_a_single_prompt_is_trained_on_whatever_the_seed(seed: int) -> None:
    assert split_by_prompt(["a", "a"], 0.9, seed) == ([0, 1], [])


SKY = (Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Sky?"))


@pytest.mark.parametrize(
    ("prompt", "key"),
    [
        ("What is the sky?", "What is the sky?"),
        (" What is the sky?\n", "What is the sky?"),
        ((Message("user", "What is the sky? "),), "What is the sky?"),
        ((Message("user", "What is the sky?", {"name": "Ada"}),), "What is the sky?"),
        ("\n\nHuman: What is the sky?\n\nAssistant:", "What is the sky?"),
        (SKY, "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant:"),
        ("\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant:",) * 2,
        ("Human: Hi \n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: ", canonical_prompt(SKY)),
        ((Message("system", "Be brief."), SKY[0]), "Be brief.\n\nHi"),
        ("Be brief.\n\nHi", "Be brief.\n\nHi"),  # as a column system before a string is read
        ((Message("system", ""), SKY[0]), "Hi"),
        (
            (Message("system", "Be brief."), *SKY),
            "\n\nSystem: Be brief.\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant:",
        ),
        (SKY[:2], "\n\nHuman: Hi\n\nAssistant: Hello!"),
        ("\n\nHuman: Hi\n\nAssistant: Hello!", "\n\nHuman: Hi\n\nAssistant: Hello!"),
        ("The Human: a novel", "The Human: a novel"),
    ],
)
def test_a_prompt_has_one_key_however_it_is_written(prompt: Messages | str, key: str) -> None:
    assert canonical_prompt(prompt) == key


def test_transcripts_and_their_messages_are_one_prompt() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman:  Sky?\n\nAssistant:"
    turns = tuple(Message(turn["role"], turn["content"]) for turn in messages(text))
    assert canonical_prompt(text) == canonical_prompt(turns) == canonical_prompt(turns[:-1])


@pytest.mark.parametrize("seed", range(31))
def test_texts_without_a_prompt_are_split_like_prompts(seed: int) -> None:
    """1,000 texts and 100 prompts: a tenth of each is held out for every seed (standard deviations 9.5 and 3)."""
    source = RowLocation("f", 1)
    texts = [split_key(Demonstration("", f"text {i}", source)) for i in range(1000)]
    prompts = [split_key(PromptRow(f"prompt {i}", source)) for i in range(100)]
    held_out = split_by_prompt([*texts, *prompts], 0.1, seed)[1]
    assert 60 <= sum(i < 1000 for i in held_out) <= 140
    assert 1 <= sum(i >= 1000 for i in held_out) <= 22


def test_a_smaller_fraction_of_the_training_prompts_is_part_of_a_larger_one() -> None:
    keys = [f"prompt {i % 500}" for i in range(1000)]
    whole, held_out = split_by_prompt(keys, 0.2, seed=3)
    sides = [split_by_prompt(keys, 0.2, seed=3, train_fraction=fraction) for fraction in (0.1, 0.25, 0.5, 1.0)]
    assert all(side[1] == held_out for side in sides)
    assert sides[-1][0] == whole
    assert all({*small} < {*large} for (small, _), (large, _) in zip(sides, sides[1:]))
    assert [len(side[0]) / len(whole) for side in sides] == pytest.approx([0.1, 0.25, 0.5, 1.0], abs=0.05)


@given(keys=prompts, fraction=fractions, part=st.floats(1e-6, 1.0))
def test_a_fraction_leaves_a_prompt_to_train_on_and_holds_out_the_same(
    keys: list[str], fraction: float, part: float
) -> None:
    train, held_out = split_by_prompt(keys, fraction, 0, part)
    whole, same = split_by_prompt(keys, fraction, 0)
    assert held_out == same and {*train} <= {*whole} and bool(train) == bool(whole)
