"""Counts of a step by hand, and constants that are found again from the seconds that they make."""

from __future__ import annotations

import pytest

from benchmarks.fit import PHASES, Counts, count, fit, fit_results, measured_phases
from benchmarks.results import Entry, Results
from benchmarks.workload import WORKLOADS

MATRICES, HEAD = 4 * (4 * 256 * 256 + 3 * 256 * 688), 512 * 256
"""Of the 3M model: four layers of four attention matrices and three of the feed-forward block."""


def forward(tokens: int, length: int, answers: int) -> int:
    """Two FLOPs for each matrix element, and over the causal half 2 · length for each of 256 elements of 4 layers."""
    return tokens * (2 * MATRICES + 2 * 4 * 256 * length) + 2 * HEAD * answers


def test_counts_of_ppo_by_hand() -> None:
    """128 samples of 16 + 64 tokens: two language models and two classifiers score; updates have 64 samples."""
    found, tokens, answers = count(WORKLOADS["fixed-ppo"], 64.0), 128 * 80, 128 * 64
    generated = tokens * 2 * (MATRICES + HEAD)
    scored = 2 * forward(tokens, 80, answers) + 2 * forward(tokens, 80, 0)
    assert found.size["generate and score"] == generated + scored
    updated = 3 * forward(tokens // 2, 80, 0) + 4 * 2 * HEAD * answers // 2
    assert found.size["update"] == 8 * updated
    assert found.calls == {"generate and score": 64, "update": 8, "publish": 1, "other": 1}
    assert found.size["publish"] == 4 * (MATRICES + HEAD + 9 * 256)


def test_grpo_divides_an_update_over_two_ranks_and_scores_with_three_models() -> None:
    ppo, grpo = count(WORKLOADS["fixed-ppo"], 64.0), count(WORKLOADS["fixed-grpo"], 64.0)
    assert grpo.size["update"] == ppo.size["update"] / 2
    critic = forward(128 * 80, 80, 0)
    assert grpo.size["generate and score"] == ppo.size["generate and score"] - critic


def test_real_lengths_are_counted_by_their_mean() -> None:
    found, tokens = count(WORKLOADS["real-ppo"], 60.4), 128 * 76
    assert found.calls["generate and score"] == 256
    assert found.size["other"] == tokens


def phases(call: float, size: float) -> tuple[dict[str, float], dict[str, float]]:
    return dict.fromkeys(PHASES, call), dict.fromkeys(PHASES, size)


def test_constants_are_found_again() -> None:
    """Seconds of 0.1 a call and 0.01 a unit of size: 10 and 100 make 2, 20 and 50 make 2.5, 5 and 500 make 5.5."""
    counts = [Counts(calls=calls, size=size) for calls, size in (phases(10, 100), phases(20, 50), phases(5, 500))]
    found = fit(counts, [dict.fromkeys(PHASES, seconds) for seconds in (2.0, 2.5, 5.5)])
    assert found.calls == pytest.approx(dict.fromkeys(PHASES, 0.1))
    assert found.size == pytest.approx(dict.fromkeys(PHASES, 0.01))
    predicted = found.predict(Counts(calls=dict.fromkeys(PHASES, 1), size=dict.fromkeys(PHASES, 10)))
    assert predicted == pytest.approx({**dict.fromkeys(PHASES, 0.2), "step": 0.8})


def test_no_constant_is_negative() -> None:
    """Seconds that fall with the size are explained by calls alone."""
    counts = [Counts(calls=calls, size=size) for calls, size in (phases(1, 100), phases(1, 200))]
    found = fit(counts, [dict.fromkeys(PHASES, seconds) for seconds in (2.0, 1.0)])
    assert set(found.size.values()) == {0.0}
    assert all(1.0 < value < 2.0 for value in found.calls.values())


def test_the_rest_of_a_step_is_a_phase() -> None:
    step = {"generate": 2.0, "score": 1.0, "update": 5.0, "publish": 0.5, "step": 9.0, "samples": 128, "tokens": 8192}
    entries = {"fixed-ppo": {"rlhf": Entry(steps=[step])}}
    results = Results(date="", machine={}, options={}, workloads=WORKLOADS, entries=entries)
    expected = {"generate and score": 3.0, "update": 5.0, "publish": 0.5, "other": 0.5, "step": 9.0}
    assert measured_phases(results, "fixed-ppo") == expected
    assert fit_results(results) is None  # two constants need two workloads
