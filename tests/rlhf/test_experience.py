"""Experience of samples small enough to calculate by hand."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields
from typing import Any, get_args

import numpy as np
import pytest

from rlhf.algorithms.moments import Moments
from rlhf.algorithms.state import AlgorithmState
from rlhf.config.schema import AdaptiveKLConfig, AlgorithmConfig, AlgorithmName
from rlhf.errors import MachineryError
from rlhf.experience import (
    Scored,
    build_experience,
    drop_uniform_groups,
    experience_metrics,
    length_correlation,
    total_score,
)
from rlhf.types import Experience, FinishReason, RolloutBlock, Sequences

LONGEST = 10
"""Longest allowed response, in tokens."""
ORDER = np.random.default_rng(0)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def bools(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def scored(**changes: Any) -> Scored:
    """Responses of 2 and 3 tokens; the second has no end token. k = [.5, −.25, 1, 0, .5]."""
    arrays = {
        "scores": {"quality": floats(2, 5)},
        "dropped": bools(0, 0),
        "engine": floats(-1, -2, -1, -1, -1.5),
        "mask": bools(1, 1, 1, 1, 1),
        "old_logprobs": floats(-1, -2, -1, -1, -1),
        "ref_logprobs": floats(-1.5, -1.75, -2, -1, -1.5),
        "values": floats(0.5, 1, 0, 1, -1),
        "prompt_ids": np.array([0, 1]),
        **changes,
    }
    rollouts = RolloutBlock(
        sequences=Sequences.pack([([1, 2], [3, 4]), ([5], [6, 7, 8])]),
        logprobs=arrays.pop("engine"),
        response_mask=arrays.pop("mask"),
        prompt_ids=arrays.pop("prompt_ids"),
        weight_versions=np.array([3, 4]),
        finish_reasons=np.array([FinishReason.STOP, FinishReason.LENGTH], dtype=np.int32),
        seeds=np.array([0, 1]),
        cached_tokens=np.array([0, 1], dtype=np.int32),
    )
    return Scored(rollouts=rollouts, **arrays)


def total(batch: Scored) -> np.ndarray:
    return total_score(batch.scores, dict.fromkeys(batch.scores, 1.0), batch.dropped)


def built(
    batch: Scored, algorithm: AlgorithmConfig, state: AlgorithmState | None = None
) -> tuple[Experience, AlgorithmState]:
    return build_experience(batch, total(batch), algorithm, state or AlgorithmState.start(algorithm), LONGEST)


def plain(**options: Any) -> AlgorithmConfig:
    """β = .2, λ = γ = 1, nothing whitened, importance weights off, −1 where the end is missing."""
    given = {"kl_coef": 0.2, "lam": 1.0, "whiten_advantages": False, "importance_sampling": "none", **options}
    return AlgorithmConfig(**given)


def test_rewards_become_returns_and_advantages() -> None:
    """λ = γ = 1: a return is the sum of the rewards from there on. r = [−.1, 2.05 | −.2, 0, −1.1]."""
    experience, _ = built(scored(), plain())
    assert experience.scores.tolist() == [2, -1]  # the penalty in place of 5
    np.testing.assert_allclose(experience.returns, [1.95, 2.05, -1.3, -1.1, -1.1], atol=1e-6)
    np.testing.assert_allclose(experience.advantages, [1.45, 1.05, -1.3, -2.1, -0.1], atol=1e-6)
    assert experience.response_mask.tolist() == [True] * 5
    assert experience.importance_weights.tolist() == [1] * 5
    assert experience.kl_coef == 0.2


def test_advantages_are_whitened_over_the_batch_and_returns_are_not() -> None:
    unwhitened, _ = built(scored(), plain())
    experience, _ = built(scored(), plain(whiten_advantages=True))
    np.testing.assert_allclose(experience.advantages.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(experience.advantages.var(ddof=1), 1, rtol=1e-6)
    # by hand: the mean of 1.45, 1.05, −1.3, −2.1, −.1 is −.2; squared distances add up to 9.115
    np.testing.assert_allclose(
        experience.advantages, np.array([1.65, 1.25, -1.1, -1.9, 0.1]) / (9.115 / 4) ** 0.5, rtol=1e-5
    )
    np.testing.assert_array_equal(experience.returns, unwhitened.returns)


@pytest.mark.parametrize(
    ("name", "kl_in", "expected"),
    [
        ("dr_grpo", "loss", [1.5, 1.5, -1.5, -1.5, -1.5]),  # scores 2 and −1
        ("dr_grpo", "reward", [1.625, 1.625, -1.625, -1.625, -1.625]),  # totals 1.95 and −1.3
        ("rloo", "loss", [3, 3, -3, -3, -3]),
        ("rloo", "reward", [3.25, 3.25, -3.25, -3.25, -3.25]),
        ("reinforce++", "loss", [2, 2, -1, -1, -1]),
        ("reinforce++", "reward", [1.95, 2.05, -1.3, -1.1, -1.1]),
        ("reinforce++_baseline", "loss", [1.5, 1.5, -1.5, -1.5, -1.5]),
        ("reinforce++_baseline", "reward", [1.45, 1.55, -1.8, -1.6, -1.6]),
    ],
)
def test_without_a_critic_the_kl_is_in_the_advantages_only_where_it_is_in_the_reward(
    name: AlgorithmName, kl_in: Any, expected: list[float]
) -> None:
    """Both responses are to one prompt."""
    experience, _ = built(scored(values=None, prompt_ids=np.array([4, 4])), plain(name=name, kl_in=kl_in, lam=0.95))
    np.testing.assert_allclose(experience.advantages, expected, atol=1e-5)
    assert experience.values is None and experience.returns is None


def test_a_ppo_whose_kl_is_in_the_loss_has_none_in_its_returns() -> None:
    experience, _ = built(scored(), plain(kl_in="loss"))
    np.testing.assert_allclose(experience.returns, [2, 2, -1, -1, -1], atol=1e-6)


def test_importance_weights_compare_trainer_and_engine() -> None:
    """They differ at the last token alone, by e^.5 = 1.6487."""
    experience, _ = built(scored(), plain(importance_sampling="token_truncate"))
    np.testing.assert_allclose(experience.importance_weights, [1, 1, 1, 1, math.exp(0.5)], rtol=1e-6)
    experience, _ = built(scored(), plain(importance_sampling="sequence_truncate", importance_cap=1.5))
    np.testing.assert_allclose(experience.importance_weights, [1, 1, 1.5, 1.5, 1.5], rtol=1e-6)


def test_scores_are_scaled_by_all_steps_so_far_then_clipped_then_penalised() -> None:
    """Raw 2 and 5 after 0, 1: mean 2, squares 4 + 1 + 0 + 9 over 3, scale 2.16; .2 off a token that counts.

    2/2.16 = .9258 and 5/2.16 = 2.3146, clipped at 1.5; .4 and .4 off, for the gap does not count; 1 off the second.
    """
    before = AlgorithmState(kl_coef=0.2, scores=Moments().add(np.array([0.0, 1.0])))
    options = {"reward_scale": "running_std", "reward_clip": 1.5, "length_penalty": 0.2, "missing_eos": "subtract"}
    batch = scored(mask=bools(1, 1, 1, 0, 1))
    experience, after = built(batch, plain(**options), before)
    np.testing.assert_allclose(experience.scores, [2 / (14 / 3) ** 0.5 - 0.4, 1.5 - 0.4 - 1], rtol=1e-5)
    assert after.scores.count == 4 and after.scores.mean == 2 and after.scores.std == pytest.approx((14 / 3) ** 0.5)
    replaced, _ = built(batch, plain(**{**options, "missing_eos": "replace"}), before)
    np.testing.assert_allclose(replaced.scores, [2 / (14 / 3) ** 0.5 - 0.4, -1 - 0.4], rtol=1e-5)


def test_a_dropped_sample_is_not_among_the_scores_so_far() -> None:
    _, after = built(scored(scores={"quality": floats(2, np.nan)}, dropped=bools(0, 1)), plain())
    assert after.scores == Moments(count=1, mean=2.0, squares=0.0)


def test_beta_follows_the_kl_summed_over_tokens() -> None:
    """.25 and 1.5, on average .875: 9.375% over .8, and 2 of 10 responses. A mean over tokens would be below it."""
    algorithm = plain(adaptive_kl=AdaptiveKLConfig(target=0.8, horizon=10))
    experience, after = built(scored(), algorithm)
    assert experience.kl_coef == 0.2  # of this step
    assert after.kl_coef == pytest.approx(0.2 * (1 + 0.09375 * 0.2), rel=1e-6)
    assert built(scored(), plain())[1].kl_coef == 0.2


def test_beta_follows_the_responses_that_count() -> None:
    """The second is dropped: one response with a KL of .25, 1/24 over the target. With none left β stays."""
    algorithm = plain(adaptive_kl=AdaptiveKLConfig(target=0.24, horizon=10))
    expected = 0.2 * (1 + 1 / 24 * 0.1)
    assert built(scored(dropped=bools(0, 1)), algorithm)[1].kl_coef == pytest.approx(expected, rel=1e-6)
    assert built(scored(dropped=bools(1, 1)), algorithm)[1].kl_coef == 0.2


def test_the_betas_of_a_run_are_those_of_its_state() -> None:
    experience, _ = built(scored(), plain(), AlgorithmState(kl_coef=0.4))
    assert experience.kl_coef == 0.4
    np.testing.assert_allclose(experience.returns[-1], -1 - 0.4 * 0.5)


GARBAGE = [np.nan, np.inf, -np.inf, 1e30]


WHITENED = [  # Dr. GRPO refuses the division by a standard deviation
    (name, whiten) for whiten in (False, True) for name in get_args(AlgorithmName) if not (whiten and name == "dr_grpo")
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(("name", "whiten"), WHITENED)
def test_nothing_leaks_from_outside_the_mask(name: AlgorithmName, whiten: bool, garbage: float) -> None:
    """A gap in one response, and another response that is masked whole: each tensor may hold anything there."""
    outside = bools(0, 0, 0, 1, 0)
    options = {"name": name, "whiten_advantages": whiten, "importance_sampling": "sequence_mask"}

    def batch(put: float) -> Scored:
        changed = ("engine", "old_logprobs", "ref_logprobs", "values")
        arrays = {"engine": scored().rollouts.logprobs, **vars(scored())}
        return scored(
            mask=~outside,
            prompt_ids=np.array([0, 0]),
            **{key: np.where(outside, np.float32(put), arrays[key]) for key in changed},
        )

    algorithm = AlgorithmConfig(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean, clean_state = built(batch(0.0), algorithm)
        found, state = built(batch(garbage), algorithm)
        assert experience_metrics(found, total(scored()), 5) == experience_metrics(clean, total(scored()), 5)
    assert state == clean_state
    assert_same(found, clean)


def assert_same(one: Experience, other: Experience) -> None:
    """Every array of the two experiences but the rollouts themselves is the same, and finite."""
    for field in fields(Experience):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert np.isfinite(left).all(), field.name


@pytest.mark.parametrize("name", get_args(AlgorithmName))
def test_a_dropped_sample_is_as_if_its_tokens_were_masked(name: AlgorithmName) -> None:
    """Its score and token values have no effect; the remaining sample is alone in its group."""
    algorithm = AlgorithmConfig(name=name, whiten_advantages=False)
    arrays = {
        key: floats(*getattr(scored(), key)[:2], *GARBAGE[:3]) for key in ("old_logprobs", "ref_logprobs", "values")
    }
    group = {"prompt_ids": np.array([0, 0])}
    scores = {"quality": floats(2, np.nan)}
    dropped = scored(scores=scores, dropped=bools(0, 1), **arrays, **group)
    found, _ = built(dropped, algorithm)
    masked, _ = built(scored(scores={"quality": floats(2, 0)}, mask=bools(1, 1, 0, 0, 0), **group), algorithm)
    for field in ("response_mask", "old_logprobs", "ref_logprobs", "advantages", "importance_weights"):
        np.testing.assert_array_equal(getattr(found, field), getattr(masked, field), err_msg=field)
        assert not getattr(found, field)[2:].any()
    metrics = experience_metrics(found, total(dropped), 5)
    assert metrics["rollout/dropped"] == 1 and metrics["objective/scores"] == 2
    assert metrics["objective/raw_scores"] == 2 and metrics["objective/kl"] == pytest.approx(0.25)
    assert metrics["rollout/length_mean"] == 2.5 and metrics["rollout/tokens"] == 5  # they were generated all the same


@pytest.mark.parametrize("name", get_args(AlgorithmName))
def test_a_batch_of_which_nothing_is_left_gives_zeros(name: AlgorithmName) -> None:
    batch = scored(scores={"quality": floats(np.nan, np.nan)}, dropped=bools(1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experience, state = built(batch, AlgorithmConfig(name=name))
        metrics = experience_metrics(experience, total(batch), 5)
    assert not experience.response_mask.any() and not experience.advantages.any()
    assert state == AlgorithmState.start(AlgorithmConfig(name=name))
    assert metrics["rollout/dropped"] == 2 and all(math.isfinite(value) for value in metrics.values())
    assert "objective/scores" not in metrics  # a mean of nothing is no score of 0


def test_a_gap_in_a_response_is_skipped() -> None:
    """k = [.5, −.25, 1, –, .5]: the last return is −1.1, the one before the gap −1.3; nothing stands in the gap."""
    experience, _ = built(scored(mask=bools(1, 1, 1, 0, 1)), plain())
    np.testing.assert_allclose(experience.returns, [1.95, 2.05, -1.3, 0, -1.1], atol=1e-6)
    np.testing.assert_allclose(experience.advantages, [1.45, 1.05, -1.3, 0, -0.1], atol=1e-6)
    for array in (experience.old_logprobs, experience.ref_logprobs, experience.values, experience.importance_weights):
        assert array[3] == 0


def test_the_score_is_at_the_last_token_of_the_mask() -> None:
    experience, _ = built(scored(mask=bools(1, 0, 1, 1, 0)), plain(kl_in="loss", lam=0.0, gamma=0.0))
    np.testing.assert_allclose(experience.returns, [2, 0, 0, -1, 0], atol=1e-6)


def test_the_parts_of_a_reward_are_weighed_and_added() -> None:
    parts = {"quality": floats(2, 5, np.nan), "brevity": floats(1, -1, 7)}
    found = total_score(parts, {"quality": 0.5, "brevity": -2.0}, bools(0, 0, 1))
    assert found.tolist() == [-1, 4.5, 0] and found.dtype == np.float32


def test_metrics_by_hand() -> None:
    experience, _ = built(scored(), plain(importance_sampling="token_truncate"))
    metrics = experience_metrics(experience, total(scored()), version=5)
    expected = {
        "objective/kl": (0.25 + 1.5) / 2,
        "objective/kl_coef": 0.2,
        "objective/logratio_abs_mean": (0.5 + 0.25 + 1 + 0 + 0.5) / 5,
        "objective/entropy": (3 + 3) / 2,
        "objective/scores": 0.5,
        "objective/scores_std": 1.5,
        "objective/raw_scores": 3.5,
        "objective/non_score_reward": -0.2 * 0.875,
        "objective/rlhf_reward": 0.5 - 0.2 * 0.875,
        "objective/rlhf_reward_std": (1.95 + 1.3) / 2,
        "objective/score_length_correlation": -1.0,
        "rollout/logprob_gap_mean": 0.1,
        "rollout/logprob_gap_max": 0.5,
        "rollout/importance_weight_mean": (4 + math.exp(0.5)) / 5,
        "rollout/importance_weight_max": math.exp(0.5),
        "rollout/length_mean": 2.5,
        "rollout/truncated_fraction": 0.5,
        "rollout/staleness_mean": 1.5,
        "rollout/dropped": 0.0,
        "rollout/set_aside": 0.0,
        "rollout/tokens": 5.0,
        "rollout/prefix_cache_hit_rate": 1 / 3,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert metrics.keys() - expected.keys() == {"critic/explained_variance"}


def test_metrics_of_a_masked_batch_by_hand() -> None:
    """Of the second response only the first and last token count: k = 1, .5."""
    experience, _ = built(scored(mask=bools(1, 1, 1, 0, 1)), plain())
    metrics = experience_metrics(experience, total(scored()), version=5)
    assert metrics["objective/kl"] == pytest.approx((0.25 + 1.5) / 2)
    assert metrics["objective/logratio_abs_mean"] == pytest.approx((0.5 + 0.25 + 1 + 0.5) / 4)
    assert metrics["objective/entropy"] == pytest.approx((3 + 2) / 2)
    assert metrics["rollout/logprob_gap_mean"] == pytest.approx(0.5 / 4)
    assert metrics["rollout/dropped"] == 0


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one() -> None:
    def explained(values: np.ndarray) -> float:
        experience, _ = built(scored(values=values), plain())
        return experience_metrics(experience, floats(0, 0), 4)["critic/explained_variance"]

    assert explained(floats(1.95, 2.05, -1.3, -1.1, -1.1)) == pytest.approx(1, abs=1e-5)
    assert explained(floats(7, 7, 7, 7, 7)) == pytest.approx(0, abs=1e-5)


NAMES = {
    "old_logprobs": "old_logprobs (by the policy)",
    "ref_logprobs": "ref_logprobs (by the reference)",
    "engine": "logprobs (by the engine)",
    "values": "values (by the critic)",
}


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused_by_name(key: str, bad: float) -> None:
    array = floats(-1, bad, -1, -1, bad)
    with pytest.raises(MachineryError) as error:
        built(scored(**{key: array, "mask": bools(1, 1, 1, 1, 0)}), plain())
    assert str(error.value) == f"numbers that are NaN or infinite, in {NAMES[key]}: 1 of 4"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_none_is_refused_by_the_name_of_its_part(bad: float) -> None:
    parts = {"quality": floats(1, 2), "brevity": floats(3, bad)}
    with pytest.raises(MachineryError, match=r"in scores \(by the reward 'brevity'\): 1 of 2$"):
        built(scored(scores=parts), plain())
    built(scored(scores=parts, dropped=bools(0, 1)), plain())  # a reward gave up on it: known, and left out


def test_every_tensor_at_fault_is_named() -> None:
    batch = scored(values=floats(*[np.nan] * 5), ref_logprobs=floats(-1, -1, np.inf, -1, -1))
    with pytest.raises(MachineryError, match=r"ref_logprobs \(by the reference\): 1 of 5; values \(.*\): 5 of 5$"):
        batch.check()


def test_the_length_that_a_score_may_follow_is_that_of_its_own_tokens() -> None:
    """The policy sampled two tokens of the first response and one of the second; the longer one scores higher."""
    batch = scored(mask=bools(1, 1, 0, 0, 1))
    experience, _ = built(batch, plain())
    metrics = experience_metrics(experience, total(batch), version=5)
    assert metrics["objective/score_length_correlation"] == pytest.approx(1.0)
    assert metrics["rollout/length_mean"] == 2.5  # of what was generated


def test_gaps_to_the_engine_do_not_cancel() -> None:
    """Of five tokens one is half a nat above the engine, and one three quarters below."""
    batch = scored(engine=floats(-1.5, -2, -1, -1, -0.25))
    metrics = experience_metrics(built(batch, plain())[0], total(batch), version=5)
    assert metrics["rollout/logprob_gap_mean"] == pytest.approx((0.5 + 0.75) / 5)
    assert metrics["rollout/logprob_gap_max"] == pytest.approx(0.75)


def test_anscombes_first_set() -> None:
    """Anscombe 1973, The American Statistician 27, 17-21: r = 0.816."""
    x = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
    y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
    assert length_correlation(y, x) == pytest.approx(0.816, abs=5e-4)


@pytest.mark.parametrize(("scores", "lengths"), [([], []), ([1.0], [3]), ([1.0, 1.0], [3, 4]), ([1.0, 2.0], [3, 3])])
def test_undefined_is_zero(scores: list[float], lengths: list[int]) -> None:
    assert length_correlation(scores, lengths) == 0.0


def test_groups_of_equal_scores_leave_the_update_and_nothing_else_changes() -> None:
    """Both responses are to one prompt and score 2; the penalty would tell the second apart."""
    algorithm = plain(name="dapo", lam=0.95, missing_eos_penalty=None)
    same = {"values": None, "prompt_ids": np.array([4, 4])}
    experience, _ = built(scored(scores={"quality": floats(2, 2)}, **same), algorithm)
    dropped, fraction, filled = drop_uniform_groups(experience, 2, ORDER)
    assert (fraction, filled) == (1, 0) and not dropped.response_mask.any()
    for name in ("old_logprobs", "ref_logprobs", "advantages", "importance_weights"):
        assert not getattr(dropped, name).any()
    assert dropped.scores.tolist() == [2, 2]
    mixed, _ = built(scored(scores={"quality": floats(2, 3)}, **same), algorithm)
    kept, fraction, filled = drop_uniform_groups(mixed, 2, ORDER)
    assert (fraction, filled) == (0, 1) and kept.response_mask.all()
    assert_same(kept, mixed)


def test_a_response_without_a_score_does_not_tell_a_group_apart() -> None:
    batch = scored(scores={"quality": floats(2, np.nan)}, dropped=bools(0, 1), values=None, prompt_ids=np.array([4, 4]))
    dropped, fraction, _ = drop_uniform_groups(built(batch, plain(name="dapo", lam=0.95))[0], 2, ORDER)
    assert fraction == 1 and not dropped.response_mask.any()
    nothing, _ = built(scored(dropped=bools(1, 1), values=None), plain(name="dapo", lam=0.95))
    assert drop_uniform_groups(nothing, 2, ORDER)[1] == 0


def test_a_long_response_is_punished_by_the_limit_of_its_length() -> None:
    """Of at most 10 tokens the last 8 are the buffer: a response of 3 is half a quarter, 1/8, into it."""
    experience, _ = built(scored(), plain(overlong_buffer=8, missing_eos_penalty=None))
    assert experience.scores.tolist() == [2, 5 - 1 / 8]


def test_where_groups_are_missing_those_of_equal_scores_keep_their_place_without_tokens() -> None:
    """Both prompts have one response, which is a group of equal scores: any of the two fills an update of one."""
    experience, _ = built(scored(values=None), plain(name="dapo", lam=0.95))
    dropped, fraction, filled = drop_uniform_groups(experience, 1, np.random.default_rng(0))
    assert (fraction, filled) == (1, 0) and len(dropped.rollouts) == 1 and not dropped.response_mask.any()
