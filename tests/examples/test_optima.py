"""The problems with a known optimum: their closed forms, their reference models, and the checks that judge a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.optima import closed_form, rewards
from examples.optima.measure import Check, _canaries, _never_above, near, sampled_hazards
from examples.optima.problems import CLASS_LETTERS, PROBLEMS, recipe
from examples.optima.verify import page
from rlhf.config.load import load_recipe

FAMILIES = ("llama", "qwen2", "gpt_neox", "gpt2")


def test_closed_forms_give_the_published_numbers() -> None:
    """Values computed independently, as the design of the problems states them."""
    bandit = closed_form.bandit(0.2)
    assert (bandit.objective, bandit.reward, bandit.kl) == pytest.approx((0.707772, 0.864339, 0.782835), abs=1e-6)
    first = [0.001605, 0.36144, 0.015232, 0.33254, 0.144521, 0.006091, 0.132966, 0.005604]
    np.testing.assert_allclose(closed_form.bandit_policy(0.2)[0], first, atol=1e-6)
    assert closed_form.class_share(0.05) == pytest.approx(0.537775, abs=1e-6)
    assert closed_form.class_share(0.1) == pytest.approx(0.383762, abs=1e-6)
    assert closed_form.token_class(0.05).objective == pytest.approx(0.387217, abs=1e-6)
    assert closed_form.token_class(0.1).kl == pytest.approx(0.694587, abs=1e-6)
    length = closed_form.length(0.2)
    assert (length.objective, length.reward, length.kl) == pytest.approx((0.679185, 0.982447, 1.516310), abs=1e-6)
    hazards = [
        0.00335,
        0.00303,
        0.00273,
        0.36587,
        0.51927,
        0.97217,
        0.2118,
        0.24184,
        0.28709,
        0.36243,
        0.51162,
        0.94283,
    ]
    np.testing.assert_allclose(closed_form.length_hazards(0.2), hazards, atol=1e-5)
    ceilings = [closed_form.accuracy_ceiling(gain) for gain in (0.25, 0.5, 1, 2)]
    assert ceilings == pytest.approx([0.61386, 0.70052, 0.801266, 0.878475], abs=1e-5)


def test_the_best_policy_is_no_worse_than_those_around_it() -> None:
    """Independent of the closed form: every small step away from π* loses."""
    best = closed_form.bandit_policy(0.2)
    value = closed_form.bandit_value(best, 0.2).objective
    assert value == pytest.approx(closed_form.bandit(0.2).objective)
    random = np.random.default_rng(0)
    for _ in range(50):
        other = best * np.exp(0.1 * random.normal(size=best.shape))
        assert closed_form.bandit_value(other / other.sum(axis=1, keepdims=True), 0.2).objective < value


def test_the_best_policy_earns_the_same_by_every_answer_to_a_prompt() -> None:
    """At π* score − β k is β log Z whatever is answered; at the reference it is the reward, and spreads as it does."""
    assert closed_form.bandit_spread(closed_form.bandit_policy(0.2), 0.2) == pytest.approx(0, abs=1e-9)
    logits = closed_form.bandit_logits()
    reference = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rewards_of = closed_form.bandit_rewards()
    mean = (reference * rewards_of).sum(axis=1, keepdims=True)
    variance = (reference * (rewards_of - mean) ** 2).sum(axis=1).mean()
    assert closed_form.bandit_spread(reference, 0.2) == pytest.approx(variance**0.5)


def made(name: str, folder: Path, **changes: Any) -> tuple[Any, Any]:
    """The problem's reference model and tokenizer, as a run loads them."""
    recipe(replace(PROBLEMS[name], **changes), folder, seed=0)
    reference = folder / "reference"
    return AutoModelForCausalLM.from_pretrained(reference).eval(), AutoTokenizer.from_pretrained(reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bandits_reference_has_the_logits_that_the_problem_asks_for(family: str, tmp_path: Path) -> None:
    model, tokenizer = made("a-ppo", tmp_path, family=family)
    tokens = tokenizer(["0", "1", "2", "3"], return_tensors="pt").input_ids
    assert tokens.shape == (4, 1)
    with torch.no_grad():
        likely = model(tokens).logits[:, 0].double().softmax(dim=-1)
    answers = tokenizer.convert_tokens_to_ids(list(ascii_uppercase[:8]))
    expected = torch.from_numpy(closed_form.bandit_logits()).softmax(dim=-1)
    torch.testing.assert_close(likely[:, answers], expected, atol=1e-6, rtol=0)
    assert float(likely.sum() - likely[:, answers].sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_token_classes_reference_is_uniform_over_its_32_letters(family: str, tmp_path: Path) -> None:
    model, tokenizer = made("b-05", tmp_path, family=family)
    tokens = tokenizer(["0AbC", "0xwv"], return_tensors="pt").input_ids
    with torch.no_grad():
        likely = model(tokens).logits.softmax(dim=-1)
    assert likely[..., :32].unique().tolist() == [1 / 32]
    assert float(likely[..., 32:].max()) == 0.0
    assert tokenizer.decode([0, 7, 8, 31]) == "AHax"


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_the_length_reference_ends_with_probability_a_tenth_everywhere(family: str, tmp_path: Path) -> None:
    model, tokenizer = made("c", tmp_path, family=family)
    tokens = tokenizer(["0abcdefabcde", "0ffffffaaaaa"], return_tensors="pt").input_ids
    with torch.no_grad():
        likely = model(tokens).logits.softmax(dim=-1)
    np.testing.assert_allclose(likely[..., tokenizer.eos_token_id], 0.1, atol=1e-6)
    hazards, visited = sampled_hazards(model, responses=64)
    np.testing.assert_allclose(hazards, 0.1, atol=1e-6)
    np.testing.assert_allclose(visited, 0.9 ** np.arange(12), atol=1e-6)


def test_the_chains_sequences_end_after_sixteen_letters(tmp_path: Path) -> None:
    model, tokenizer = made("d", tmp_path)
    tokens = tokenizer(["01234ABCDEFGHabcdefgh", "98765xxxxxxxxxxxxxxxx"], return_tensors="pt").input_ids
    with torch.no_grad():
        end = model(tokens).logits.softmax(dim=-1)[..., tokenizer.eos_token_id]
    assert end[:, -1].tolist() == [1.0, 1.0]
    assert float(end[:, 4:-1].max()) == 0.0


def test_the_chains_comparisons_follow_bradley_and_terry(tmp_path: Path) -> None:
    recipe(PROBLEMS["d"], tmp_path, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "comparisons.jsonl").read_text().splitlines()]
    count = np.array([[sum(c in CLASS_LETTERS for c in row[side]) for side in ("chosen", "rejected")] for row in rows])
    difference = count[:, 0] - count[:, 1]
    right = (difference > 0).mean() + (difference == 0).mean() / 2
    assert right == pytest.approx(0.801266, abs=3 * (0.16 / len(rows)) ** 0.5)
    assert (difference == 0).mean() == pytest.approx(0.162493, abs=3 * (0.136 / len(rows)) ** 0.5)


def test_rewards_by_hand() -> None:
    assert rewards.bandit(["0", "2"], ["A", "F"]) == [0.0, ((2 * 2 + 3 * 5) % 5) / 4]
    assert rewards.token_class(["0"] * 2, ["ABxxxxxxxxxxxxxH", "abcdefghabcdefgh"]) == [3 / 16, 0.0]
    assert rewards.length(["0"] * 4, ["abc", "abcde", "ab", "abcdef"]) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_every_recipe_is_valid(name: str, tmp_path: Path) -> None:
    loaded = load_recipe(recipe(PROBLEMS[name], tmp_path, seed=1), [])
    assert loaded.seed == 1
    assert loaded.algorithm.name == PROBLEMS[name].algorithm
    assert loaded.algorithm.kl_coef == PROBLEMS[name].beta


def steps(reward: float, spread: float, count: int = 20) -> list[dict[str, float]]:
    return [{"objective/rlhf_reward": reward, "objective/rlhf_reward_std": spread} for _ in range(count)]


def test_an_objective_above_the_best_possible_is_found() -> None:
    """256 samples a step, ten steps: a standard error of .1/√2560 = .00198. J* = .7078."""
    assert _never_above(PROBLEMS["a-ppo"], steps(0.7078 + 0.0055, 0.1), samples=256).holds
    above = _never_above(PROBLEMS["a-ppo"], steps(0.7078 + 0.0065, 0.1), samples=256)
    assert not above.holds
    assert above.measured == pytest.approx((0.7143 - 0.707772) / 0.0019764, rel=1e-3)


def test_a_number_that_is_none_never_holds() -> None:
    assert not near("q", float("nan"), 0.5, 0.02).holds
    assert near("q", 0.52, 0.5, 0.02).holds
    assert not near("q", 0.521, 0.5, 0.02).holds


def test_a_broken_canary_is_found() -> None:
    good = {"objective/kl": 0.0, "first_pass/ratio": 1.0, "rollout/logprob_gap_mean": 0.0}
    assert all(check.holds for check in _canaries([good, good]))
    bad = [good | {"objective/kl": -0.1}, good | {"first_pass/ratio": 0.999}]
    assert [check.name[:5] for check in _canaries(bad) if not check.holds] == ["KL at", "first"]


def test_the_page_marks_what_does_not_hold(tmp_path: Path) -> None:
    folder = tmp_path / "a-ppo-0"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"seconds": 12.4}))
    columns = [[Check(name="J", measured=0.7, low=0.69, high=0.71), Check(name="q", measured=0.4, low=0.5)]]
    text = page({"a-ppo": columns}, [0], tmp_path)
    assert "**1 of 2 checks hold.**" in text
    assert "| J | 0.69 to 0.71 | 0.7 |" in text
    assert "| q | at least 0.5 | **0.4 ✗** |" in text
