"""Accuracy on human comparisons and its baselines, calculated by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf.errors import MachineryError, UserError
from rlhf.evaluation.accuracy import CEILING, CEILING_DATA, accuracy_ceiling, preference_accuracy, shorter_wins
from rlhf.records import DataFile
from rlhf.types import Sequences


def test_accuracy_counts_ties_as_wrong_and_loss_uses_the_margin() -> None:
    rewards = np.array([2.0, 1.0, 0.0, 3.0, 1.0, 1.0], dtype=np.float32)  # right, wrong, tied
    result = preference_accuracy(rewards, np.array([0.0, 0.0, 0.0], dtype=np.float32), np.array([4, 7, 5]))
    assert result["eval/accuracy"] == pytest.approx(1 / 3)
    # −log σ(1) = 0.313262, −log σ(−3) = 3.048587, −log σ(0) = 0.693147
    assert result["eval/loss"] == pytest.approx((0.313262 + 3.048587 + 0.693147) / 3, abs=1e-5)
    # Wilson's interval of 1 in 3 at 95%, from scipy.stats.binomtest(1, 3).proportion_ci(method="wilson")
    assert result["eval/accuracy_ci_low"] == pytest.approx(0.061492, abs=1e-5)
    assert result["eval/accuracy_ci_high"] == pytest.approx(0.792340, abs=1e-5)
    with_margin = preference_accuracy(rewards[:2], np.array([1.0], dtype=np.float32), np.array([4]))
    assert with_margin["eval/loss"] == pytest.approx(0.693147, abs=1e-5)


def test_comparisons_of_one_prompt_make_the_interval_wider() -> None:
    """Ten prompts of four pairs that are all right or all wrong are ten observations, less what t on 9 degrees loses.

    Design effect 4 · (10/9) · (39/40), n' = 40/4.3333 · (t_39/t_9)² = 9.230769 · (2.022691/2.262157)² = 7.379916.
    Wilson's interval solves (.7 − q)² n' = 1.96² q (1 − q).
    """
    rewards = np.zeros((40, 2), dtype=np.float32)
    rewards[:28, 0], rewards[28:, 1] = 1.0, 1.0
    zeros, prompts = np.zeros(40, dtype=np.float32), np.repeat(np.arange(10), 4)
    together = preference_accuracy(rewards.ravel(), zeros, prompts)
    assert together["eval/accuracy"] == pytest.approx(0.7)
    assert together["eval/accuracy_ci_low"] == pytest.approx(0.354806, abs=1e-5)
    assert together["eval/accuracy_ci_high"] == pytest.approx(0.908260, abs=1e-5)
    apart = preference_accuracy(rewards.ravel(), zeros, np.arange(40))
    # scipy.stats.binomtest(28, 40).proportion_ci(method="wilson")
    assert apart["eval/accuracy_ci_low"] == pytest.approx(0.545700, abs=1e-5)
    assert apart["eval/accuracy_ci_high"] == pytest.approx(0.819252, abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reward_that_is_no_number_is_not_counted_as_wrong(bad: float) -> None:
    with pytest.raises(MachineryError, match="NaN or infinite, in held-out rewards: 1 of 4"):
        preference_accuracy(np.array([1, 0, 0, bad], dtype=np.float32), np.zeros(2, dtype=np.float32), np.arange(2))


def test_shorter_wins_counts_equal_lengths_one_half() -> None:
    pairs = Sequences.pack([([1], [2]), ([1], [2, 3]), ([1], [2, 3]), ([1], [2]), ([1], [2]), ([1], [3])])
    assert shorter_wins(pairs) == pytest.approx((1 + 0 + 0.5) / 3)
    mostly = Sequences.pack([([1], [2]), ([1], [2, 3]), ([1], [2]), ([1], [2, 3, 4]), ([1], [2, 3]), ([1], [3])])
    assert shorter_wins(mostly) == pytest.approx(2 / 3)  # shorter, shorter, longer


def test_the_ceiling_comes_from_the_file_or_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "meta.json"
    file.write_text(json.dumps({"accuracy_ceiling": 0.75}))
    assert accuracy_ceiling(str(file)) == {CEILING: 0.75}
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert accuracy_ceiling(str(file)) == {CEILING: 0.75}
    assert accuracy_ceiling(None) == {}
    file.write_text("{}")
    with pytest.raises(UserError, match="accuracy_ceiling"):
        accuracy_ceiling(str(file))


@pytest.mark.parametrize(
    ("of", "data", "is_shown"),
    [
        (["a"], ["a"], True),
        (["a", "b"], ["b", "a"], True),
        (["a"], ["b"], False),
        (["a"], ["a", "b"], False),
        (["a"], [], False),
        (None, ["b"], True),
        (["a"], None, True),
    ],
)
def test_a_ceiling_is_shown_only_with_the_data_that_it_was_computed_from(
    tmp_path: Path, of: list[str] | None, data: list[str] | None, is_shown: bool
) -> None:
    file = tmp_path / "meta.json"
    file.write_text(json.dumps({"accuracy_ceiling": 0.75, **({CEILING_DATA: of} if of else {})}))
    files = None if data is None else [DataFile(f"{digest}.jsonl", 3, digest) for digest in data]
    assert accuracy_ceiling(str(file), files) == ({CEILING: 0.75} if is_shown else {})


@pytest.mark.parametrize("of", [3, [["a"]], [{}]])
def test_digests_of_another_type_are_refused(tmp_path: Path, of: object) -> None:
    file = tmp_path / "meta.json"
    file.write_text(json.dumps({"accuracy_ceiling": 0.75, CEILING_DATA: of}))
    with pytest.raises(UserError, match=r"reward\.ceiling"):
        accuracy_ceiling(str(file), [DataFile("a.jsonl", 3, "a")])
