"""Agreement with people, and its baselines, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.evaluation.accuracy import CEILING, accuracy_ceiling, preference_accuracy, shorter_wins
from rlhf.types import Sequences


def test_accuracy_counts_ties_as_wrong_and_loss_uses_the_margin() -> None:
    rewards = np.array([2.0, 1.0, 0.0, 3.0, 1.0, 1.0], dtype=np.float32)  # right, wrong, tied
    result = preference_accuracy(rewards, np.array([0.0, 0.0, 0.0], dtype=np.float32))
    assert result["eval/accuracy"] == pytest.approx(1 / 3)
    # −log σ(1) = 0.313262, −log σ(−3) = 3.048587, −log σ(0) = 0.693147
    assert result["eval/loss"] == pytest.approx((0.313262 + 3.048587 + 0.693147) / 3, abs=1e-5)
    # Wilson's interval of 1 in 3 at 95%, from scipy.stats.binomtest(1, 3).proportion_ci(method="wilson")
    assert result["eval/accuracy_ci_low"] == pytest.approx(0.061492, abs=1e-5)
    assert result["eval/accuracy_ci_high"] == pytest.approx(0.792340, abs=1e-5)
    with_margin = preference_accuracy(rewards[:2], np.array([1.0], dtype=np.float32))
    assert with_margin["eval/loss"] == pytest.approx(0.693147, abs=1e-5)


def test_shorter_wins_counts_equal_lengths_one_half() -> None:
    pairs = Sequences.pack([([1], [2]), ([1], [2, 3]), ([1], [2, 3]), ([1], [2]), ([1], [2]), ([1], [3])])
    assert shorter_wins(pairs) == pytest.approx((1 + 0 + 0.5) / 3)


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
