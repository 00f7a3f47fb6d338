from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rlhf.algorithms.canaries import CAUSES, Limits, check
from rlhf.config.schema import AlgorithmConfig, CanaryConfig
from rlhf.errors import CanaryError

SOUND = {
    "rollout/logprob_gap_mean": 3e-7,
    "first_pass/ratio": 1.0,
    "first_pass/approxkl": 0.0,
    "first_pass/clipfrac": 0.0,
    "objective/kl": 0.3,
    "objective/logratio_abs_mean": 0.0,
}
LIMITS = Limits(ratio=0.125, clipfrac=0.0, step0_kl=0.25, gap=0.5, min_kl=-1.0, max_kl=8.0)
BOUNDS = [
    ("rollout/logprob_gap_mean", 0.0, 0.5),
    ("first_pass/ratio", 0.875, 1.125),
    ("first_pass/approxkl", 0.0, 0.125),
    ("first_pass/clipfrac", 0.0, 0.0),
    ("objective/kl", -1.0, 8.0),
    ("objective/logratio_abs_mean", 0.0, 0.25),
    ("rollout/staleness_mean", 0.0, 0.0),
]


@pytest.mark.parametrize(("name", "low", "high"), BOUNDS)
def test_a_canary_holds_at_its_limits_and_not_beyond(name: str, low: float, high: float) -> None:
    for value in (low, high):
        check(SOUND | {name: value}, 0, LIMITS)
    for value in (math.nextafter(low, -math.inf), math.nextafter(high, math.inf), math.nan, math.inf, -math.inf):
        with pytest.raises(CanaryError, match=name):
            check(SOUND | {name: value}, 0, LIMITS)


def test_the_gap_to_older_weights_is_no_canary_and_their_age_is_one() -> None:
    older = SOUND | {"rollout/logprob_gap_mean": 0.75, "rollout/staleness_mean": 1.0}
    check(older, 7, replace(LIMITS, staleness=1))
    with pytest.raises(CanaryError, match=r"staleness_mean = 1 at step 7, outside \[0, 0\]"):
        check(older, 7, LIMITS)
    with pytest.raises(CanaryError, match="logprob_gap_mean"):
        check(older | {"rollout/staleness_mean": 0.0}, 7, replace(LIMITS, staleness=1))


def test_the_message_names_the_canary_the_numbers_and_the_causes() -> None:
    with pytest.raises(CanaryError) as caught:
        check(SOUND | {"rollout/logprob_gap_mean": 0.75}, 7, LIMITS)
    message = str(caught.value)
    assert message.startswith("canary rollout/logprob_gap_mean = 0.75 at step 7, outside [0, 0.5]")
    assert CAUSES["rollout/logprob_gap_mean"] in message
    assert "first_pass" not in message


def test_all_canaries_that_fail_are_named() -> None:
    with pytest.raises(CanaryError) as caught:
        check(SOUND | {"first_pass/ratio": 2.0, "objective/kl": math.nan}, 3, LIMITS)
    assert "canary first_pass/ratio = 2 " in str(caught.value)
    assert "canary objective/kl = nan " in str(caught.value)


def test_the_reference_must_agree_at_step_0_only() -> None:
    moved = SOUND | {"objective/logratio_abs_mean": 0.3}
    check(moved, 1, LIMITS)
    with pytest.raises(CanaryError, match="logratio_abs_mean"):
        check(moved, 0, LIMITS)


def test_a_step_that_measures_less_is_judged_by_what_it_measured() -> None:
    check({}, 0, LIMITS)
    with pytest.raises(CanaryError, match="objective/kl "):
        check({"objective/kl": -1.5}, 0, LIMITS)


def test_without_a_cap_a_large_kl_is_allowed_but_not_an_undefined_one() -> None:
    open_ended = Limits.of(CanaryConfig(), "float32")
    check(SOUND | {"objective/kl": 1e6}, 5, open_ended)
    with pytest.raises(CanaryError, match="objective/kl = nan"):
        check(SOUND | {"objective/kl": math.nan}, 5, open_ended)


def test_limits_are_the_recipes_where_it_names_them_and_else_those_of_its_dtype() -> None:
    assert Limits.of(CanaryConfig(), "float32") == Limits(
        ratio=1e-4, clipfrac=0.0, step0_kl=1e-4, gap=1e-4, min_kl=-1.0, max_kl=None
    )
    assert Limits.of(CanaryConfig(), "bfloat16").gap == 0.05
    gspo = AlgorithmConfig(name="gspo").narrowest_clip
    assert gspo == 3e-4 and AlgorithmConfig(name="cispo").narrowest_clip == 4
    assert AlgorithmConfig(clip_range=0.2, clip_range_high=0.1).narrowest_clip == 0.1
    assert [Limits.of(CanaryConfig(), dtype, 0, gspo).clipfrac for dtype in ("float32", "bfloat16")] == [0, 1]
    assert Limits.of(CanaryConfig(), "bfloat16", 0, 0.2).clipfrac == 0.01
    assert Limits.of(CanaryConfig(clipfrac_limit=0.1), "bfloat16", 0, gspo).clipfrac == 0.1
    strict = CanaryConfig(
        ratio_tolerance=1e-9, clipfrac_limit=0.1, step0_kl_limit=2e-9, logprob_gap_limit=3e-9, max_kl=5.0
    )
    assert Limits.of(strict, "bfloat16") == Limits(
        ratio=1e-9, clipfrac=0.1, step0_kl=2e-9, gap=3e-9, min_kl=-1.0, max_kl=5.0
    )
