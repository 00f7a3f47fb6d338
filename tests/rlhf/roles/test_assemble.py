from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.state import AlgorithmState
from rlhf.config.schema import (
    AdaptiveKLConfig,
    AlgorithmConfig,
    EndpointConfig,
    ModelConfig,
    PPOConfig,
    Recipe,
    RewardSourceConfig,
    ScratchConfig,
    TrackingConfig,
)
from rlhf.errors import MachineryError
from rlhf.models.folder import load_tokenizer
from rlhf.models.scratch import make_scratch
from rlhf.roles.assemble import BatchReport, ResultSpec, ScoredUnit, StepInputs, assemble
from rlhf.roles.block_result import BlockResult
from rlhf.tracking.histogram import experience_histograms
from rlhf.types import Experience, FinishReason, Prompt, Rollout, RolloutBlock

RESULT_SPECS = (
    ResultSpec(kind="score", name="quality"),
    ResultSpec(kind="score", name="service"),
    ResultSpec(kind="old_logprobs"),
    ResultSpec(kind="ref_logprobs"),
    ResultSpec(kind="values"),
)
"""Two rewards, the policy, the reference and the critic."""
WITHOUT_CRITIC = RESULT_SPECS[:-1]
RANKS = {"quality": 1, "service": 2, "another": 1, "old_logprobs": 2, "ref_logprobs": 3, "values": 2}
"""Ranks that each have a part of a unit."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder whose tokenizer has one token per byte."""
    path = tmp_path_factory.mktemp("model")
    make_scratch(ScratchConfig(hidden_size=32, layers=1, heads=1, vocab_size=258), [], path, seed=0)
    return str(path)


def rollouts() -> list[Rollout]:
    """Three prompts with two responses each; all numbers of a sample are determined by its prompt and seed."""
    return [
        Rollout(
            prompt=Prompt(id=id, tokens=tuple(range(40, 43 + id))),
            tokens=np.arange(50 + seed, 52 + seed + id + seed % 3, dtype=np.int32),
            logprobs=np.full(2 + id + seed % 3, -0.5, dtype=np.float32),
            mask=np.arange(2 + id + seed % 3) != (1 if seed == 9 else -1),
            weight_version=3,
            finish_reason=FinishReason.LENGTH if id == 1 else FinishReason.STOP,
            seed=seed,
        )
        for id, seed in [(0, 5), (0, 6), (1, 3), (1, 4), (2, 1), (2, 9)]
    ]


def of_sample(rollout: Rollout) -> float:
    return rollout.prompt.id + rollout.seed / 16


def of_service(rollout: Rollout) -> float:
    """The service's score; it fails on the response with seed 4."""
    return np.nan if rollout.seed == 4 else rollout.seed / 4


def of_tokens(role: int) -> Callable[[Rollout], np.ndarray]:
    """A role's numbers, different for every token, sample and role."""
    return lambda r: -(role + of_sample(r) / 8 + np.arange(len(r.tokens)) / 64)


COMPUTES = {
    "quality": of_sample,
    "service": of_service,
    "another": lambda r: np.nan if r.seed == 9 else 1.0,
    "old_logprobs": of_tokens(1),
    "ref_logprobs": of_tokens(2),
    "values": of_tokens(3),
}


def shares(unit: list[Rollout], result_spec: ResultSpec) -> list[BlockResult]:
    """A unit distributed over ranks round robin."""
    name = result_spec.name or result_spec.kind
    dealt = [np.arange(rank, len(unit), RANKS[name]) for rank in range(RANKS[name])]
    numbers = lambda samples: [np.atleast_1d(COMPUTES[name](unit[i])) for i in samples]  # noqa: E731
    return [
        BlockResult(samples=samples, values=np.concatenate([np.zeros(0), *numbers(samples)]).astype(np.float32))
        for samples in dealt
    ]


def parts(
    blocks: list[list[Rollout]], result_specs: tuple[ResultSpec, ...] = RESULT_SPECS
) -> tuple[list[ScoredUnit], list[Any]]:
    """The actors' results. Scorers have units of one, two and three blocks; the last unit is finished first."""
    units, values = [], []
    for scorer, result_spec in enumerate(result_specs):
        size = scorer % 3 + 1
        for begin in reversed(range(0, len(blocks), size)):
            members = tuple(range(begin, min(begin + size, len(blocks))))
            found = shares([rollout for member in members for rollout in blocks[member]], result_spec)
            units.append(ScoredUnit(scorer=scorer, blocks=members, parts=len(found)))
            values += found
    return units, [*map(RolloutBlock.pack, blocks), *values]


def batch(
    folder: str,
    step: int = 5,
    samples: int = 4,
    on_failure: Any = "drop",
    size: int = 6,
    oversampling: int = 1,
    rounds: int = 1,
    result_specs: tuple[ResultSpec, ...] = RESULT_SPECS,
    **algorithm: Any,
) -> StepInputs:
    recipe = Recipe(
        name="test",
        ppo=PPOConfig(batch_size=size, oversampling=oversampling, samples_per_prompt=2),
        algorithm=AlgorithmConfig(missing_eos_penalty=7.0, **algorithm),
        rewards={
            "quality": RewardSourceConfig(model="trained"),
            "service": RewardSourceConfig(endpoint=EndpointConfig(url="http://h", on_failure=on_failure), weight=2.0),
        },
        tracking=TrackingConfig(samples_per_step=samples),
    )
    state = AlgorithmState.start(recipe.algorithm)
    return StepInputs(
        recipe=recipe, tokenizer_folder=folder, step=step, state=state, result_specs=result_specs, rounds=rounds
    )


def assembled(folder: str, blocks: list[list[Rollout]], **options: Any) -> tuple[Experience, BatchReport]:
    described = batch(folder, **options)
    return assemble(described, *parts(blocks, described.result_specs))


def expected_score(rollout: Rollout) -> float:
    """The two parts of the reward, the second with weight 2; −7 without an end token."""
    return -7.0 if rollout.prompt.id == 1 else of_sample(rollout) + 2 * of_service(rollout)


def test_every_number_is_beside_its_token(folder: str) -> None:
    expected = rollouts()
    experience, _ = assembled(folder, [expected[3:], expected[:3][::-1]])
    sequences = experience.rollouts.sequences
    assert experience.rollouts.prompt_ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert experience.rollouts.seeds.tolist() == [5, 6, 3, 4, 1, 9]
    assert [sequences.response(i).tolist() for i in range(6)] == [r.tokens.tolist() for r in expected]
    assert [tuple(sequences.prompt(i).tolist()) for i in range(6)] == [r.prompt.tokens for r in expected]
    mask = np.concatenate([r.mask & (r.seed != 4) for r in expected])
    np.testing.assert_array_equal(experience.response_mask, mask)
    for role, array in ((1, experience.old_logprobs), (2, experience.ref_logprobs), (3, experience.values)):
        whole = np.concatenate([of_tokens(role)(r) for r in expected])
        np.testing.assert_allclose(array, np.where(mask, whole, 0), rtol=1e-6)
    assert experience.scores.tolist() == [expected_score(r) for r in expected]


@pytest.mark.parametrize("options", [{}, {"result_specs": WITHOUT_CRITIC, "name": "grpo"}], ids=["ppo", "grpo"])
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)))
def test_nothing_depends_on_the_order_in_which_samples_and_blocks_finish(
    order: list[int], cuts: set[int], folder: str, options: dict[str, Any]
) -> None:
    samples = rollouts()
    edges = [0, *sorted(cuts), 6]
    blocks = [[samples[i] for i in order[a:b]] for a, b in zip(edges, edges[1:], strict=False)]
    experience, report = assembled(folder, blocks, **options)
    expected, expected_report = assembled(folder, [samples], **options)
    assert report == expected_report
    for field in fields(Experience):
        one, other = getattr(experience, field.name), getattr(expected, field.name)
        if field.name != "rollouts":
            np.testing.assert_array_equal(one, other, err_msg=field.name)
    for field in fields(RolloutBlock):
        if field.name != "sequences":
            one, other = getattr(experience.rollouts, field.name), getattr(expected.rollouts, field.name)
            np.testing.assert_array_equal(one, other, err_msg=field.name)
    np.testing.assert_array_equal(experience.rollouts.sequences.tokens, expected.rollouts.sequences.tokens)


@pytest.mark.parametrize("name", ["quality", "old_logprobs", "ref_logprobs", "values"])
def test_a_share_that_is_missing_is_noticed(folder: str, name: str) -> None:
    nothing = BlockResult(samples=np.zeros(0, dtype=np.int64), values=np.zeros(0, dtype=np.float32))
    units, values = parts([rollouts()])
    names = [name for c in RESULT_SPECS for name in [c.name or c.kind] * RANKS[c.name or c.kind]]
    values[1 + names.index(name)] = nothing
    with pytest.raises(MachineryError, match=f"NaN or infinite, in .*{name}"):
        assemble(batch(folder), units, values)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            [0, 1, 2, 4, 5],
            r"step 5 has 5 samples of ppo.batch_size = 6; prompts without 2 responses .*: prompt 1 \(1\)$",
        ),
        ([0, 1, 4, 5], r"step 5 has 4 samples of ppo.batch_size = 6$"),  # a whole prompt: only the count tells
        (
            [0, 1, 2, 3, 4, 5, 2],
            r"has 7 samples .*; duplicates: prompt 1 with seed 3; prompts without 2 responses .*: prompt 1 \(3\)$",
        ),
        ([0, 1, 2, 2, 4, 5], r"has 6 samples .*; duplicates: prompt 1 with seed 3$"),
    ],
    ids=["one missing", "a prompt missing", "one twice", "one in place of another"],
)
def test_a_step_has_every_sample_once(folder: str, chosen: list[int], message: str) -> None:
    samples = rollouts()
    with pytest.raises(MachineryError, match=message):
        assembled(folder, [[samples[i] for i in chosen[:3]], [samples[i] for i in chosen[3:]]])


def test_without_a_critic_there_are_no_values(folder: str) -> None:
    experience, report = assembled(folder, [rollouts()], result_specs=WITHOUT_CRITIC, name="rloo")
    assert experience.values is None and experience.returns is None
    assert "critic/explained_variance" not in report.metrics


def test_where_the_update_computes_the_old_logprobs_the_engines_stand_in_and_are_compared_later(folder: str) -> None:
    specs = tuple(spec for spec in WITHOUT_CRITIC if spec.kind != "old_logprobs")
    samples = [replace(r, logprobs=of_tokens(7)(r).astype(np.float32)) for r in rollouts()]
    experience, report = assembled(folder, [samples], result_specs=specs, name="grpo", epochs=1)
    engine = np.concatenate([r.logprobs for r in samples])
    np.testing.assert_array_equal(experience.old_logprobs, np.where(experience.response_mask, engine, 0))
    np.testing.assert_array_equal(experience.importance_weights, experience.response_mask)
    _, known = assembled(folder, [samples], result_specs=WITHOUT_CRITIC, name="grpo")
    gone = {f"rollout/{name}_{kind}" for name in ("logprob_gap", "importance_weight") for kind in ("mean", "max")}
    assert known.metrics.keys() - report.metrics.keys() == {*gone, "objective/logratio_abs_mean"}
    histograms = [
        set(assembled(folder, [samples], step=0, result_specs=chosen, name="grpo", epochs=epochs)[1].histograms)
        for chosen, epochs in ((WITHOUT_CRITIC, 2), (specs, 1))
    ]
    assert histograms[0] - histograms[1] == {"histogram/log_ratio_to_engine"}


def test_groups_are_those_of_the_prompts(folder: str) -> None:
    """Leave-one-out of the scores: each is its score less that of the other; the fourth is dropped, the third alone."""
    experience, _ = assembled(folder, [rollouts()], result_specs=WITHOUT_CRITIC, name="rloo", kl_coef=0.0)
    score = [expected_score(r) for r in rollouts()]
    apart = [score[0] - score[1], score[1] - score[0], 0, 0, score[4] - score[5], score[5] - score[4]]
    starts = experience.rollouts.sequences.response_starts
    np.testing.assert_allclose(experience.advantages[starts], apart, atol=1e-5)


def test_a_sample_that_a_service_gave_up_on_is_left_out_and_counted(folder: str) -> None:
    experience, report = assembled(folder, [rollouts()])
    lengths = experience.rollouts.sequences.response_lengths
    of_token = np.repeat(np.arange(6), lengths)
    assert not experience.response_mask[of_token == 3].any()
    assert report.metrics["rollout/dropped"] == 1
    assert report.metrics["objective/scores/quality"] == pytest.approx(
        np.mean([of_sample(r) for r in rollouts() if r.seed != 4])
    )
    assert report.metrics["objective/scores/service"] == pytest.approx((5 + 6 + 3 + 1 + 9) / 4 / 5)


def test_a_sample_that_one_part_of_the_reward_gave_up_on_stays_dropped(folder: str) -> None:
    """The first service fails on seed 4, the second on seed 9, and the response with seed 6 is quarantined."""
    samples = [replace(r, finish_reason=FinishReason.SET_ASIDE) if r.seed == 6 else r for r in rollouts()]
    result_specs = tuple(ResultSpec(kind="score", name=name) for name in ("service", "another"))
    described = batch(folder, result_specs=(*result_specs, *WITHOUT_CRITIC[2:]), name="rloo")
    drop = RewardSourceConfig(endpoint=EndpointConfig(url="http://h", on_failure="drop"))
    described = replace(described, recipe=replace(described.recipe, rewards={"service": drop, "another": drop}))
    experience, report = assemble(described, *parts([samples], described.result_specs))
    has_tokens = np.add.reduceat(experience.response_mask, experience.rollouts.sequences.response_starts) > 0
    assert has_tokens.tolist() == [True, False, True, False, True, False]
    assert (report.metrics["rollout/dropped"], report.metrics["rollout/set_aside"]) == (3, 1)
    assert report.metrics["rollout/truncated_fraction"] == pytest.approx(2 / 6)  # of the answers that reached the limit
    assert report.state.scores.count == 3


@pytest.mark.parametrize("on_failure", ["fail", "retry"])
def test_unless_dropping_was_asked_for_a_score_that_is_none_stops_the_run(folder: str, on_failure: str) -> None:
    with pytest.raises(MachineryError, match="in scores .by the reward 'service'.: 1 of 6"):
        assembled(folder, [rollouts()], on_failure=on_failure)


def test_the_state_goes_on_to_the_next_step(folder: str) -> None:
    """Policy and reference are 1 apart at every token: the KL is far above its target, and β rises by a fifth.

    Five of the six responses have a score.
    """
    adaptive = AdaptiveKLConfig(target=0.5, horizon=5)
    _, report = assembled(folder, [rollouts()], adaptive_kl=adaptive, kl_coef=0.1)
    assert report.state.kl_coef == pytest.approx(0.12)
    raw = [of_sample(r) + 2 * of_service(r) for r in rollouts() if r.seed != 4]
    assert report.state.scores.count == 5 and report.state.scores.mean == pytest.approx(np.mean(raw), rel=1e-6)


def test_a_few_samples_are_shown_as_text_and_others_at_each_step(folder: str) -> None:
    tokenizer = load_tokenizer(folder, ModelConfig())
    texts = {(tokenizer.decode(r.prompt.tokens), tokenizer.decode(r.tokens)): r for r in rollouts()}
    shown = [assembled(folder, [rollouts()], step=step, samples=2)[1].samples for step in range(4)]
    assert [len(rows) for rows in shown] == [2] * 4
    assert len({tuple(row.response for row in rows) for rows in shown}) > 1
    for row in (row for rows in shown for row in rows):
        rollout = texts[row.prompt, row.response]
        assert row.finish_reason == ("length" if rollout.prompt.id == 1 else "stop")
        assert row.score == expected_score(rollout)
        trained = 0 if rollout.seed == 4 else rollout.mask.sum()
        assert row.kl == pytest.approx(trained)  # the two roles' numbers are 1 apart at every token
        assert row.weight_version == 3


def test_the_best_and_the_worst_of_the_batch_are_shown_with_their_advantages(folder: str) -> None:
    experience, report = assembled(folder, [rollouts()], samples=4)
    scores = [expected_score(r) for r in rollouts() if r.seed != 4]
    assert [row.pick for row in report.samples] == ["best", "worst", "random", "random"]
    shown = [row.score for row in report.samples]
    assert (max(shown), min(shown)) == (max(scores), min(scores))
    lengths, mask = experience.rollouts.sequences.response_lengths, experience.response_mask
    of_token = np.repeat(np.arange(6), lengths)
    means = [experience.advantages[mask & (of_token == i)].mean() for i in range(6) if mask[of_token == i].any()]
    assert all(min(abs(row.advantage - mean) for mean in means) < 1e-5 for row in report.samples)


@pytest.mark.parametrize(("step", "is_due"), [(20, True), (21, False)])
def test_histograms_are_made_every_so_often(folder: str, step: int, is_due: bool) -> None:
    experience, report = assembled(folder, [rollouts()], step=step)
    assert report.histograms == (experience_histograms(experience) if is_due else {})


def test_the_report_measures_staleness_from_the_version_in_force(folder: str) -> None:
    _, report = assembled(folder, [rollouts()])
    assert report.metrics["rollout/staleness_mean"] == 2
    assert report.metrics["rollout/truncated_fraction"] == pytest.approx(1 / 3)


def test_groups_of_equal_scores_are_left_out_of_the_update_and_counted(folder: str) -> None:
    """Of prompt 1 one response counts. The metrics are over all five that do; the other two prompts are trained on."""
    options = {"name": "dapo", "result_specs": WITHOUT_CRITIC}
    experience, report = assembled(folder, [rollouts()], **options)
    every, complete = assembled(folder, [rollouts()], **options, drop_uniform_groups=False)
    sampled = {"rollout/uniform_fraction": 1 / 5, "rollout/filled_fraction": 4 / 6, "rollout/sampling_rounds": 1}
    assert report.metrics == {**complete.metrics, **sampled}
    assert complete.is_full and not report.is_full
    assert "rollout/uniform_fraction" not in complete.metrics
    trained = experience.rollouts.prompt_ids[np.repeat(np.arange(6), experience.rollouts.sequences.response_lengths)]
    np.testing.assert_array_equal(experience.response_mask, every.response_mask & (trained != 1))
    assert (every.response_mask & (trained == 1)).sum() == 3  # those of the response with seed 3


def test_a_step_of_more_responses_trains_on_groups_that_tell_them_apart(folder: str) -> None:
    """Of three prompts two have unequal scores; one of these fills the update of two responses."""
    options = {"name": "dapo", "result_specs": WITHOUT_CRITIC}
    every, complete = assembled(folder, [rollouts()], **options)
    chosen = set()
    for step in range(8):
        experience, report = assembled(folder, [rollouts()], **options, size=2, oversampling=3, step=step)
        assert report.metrics["rollout/uniform_fraction"] == complete.metrics["rollout/uniform_fraction"]
        assert report.metrics["objective/scores"] == complete.metrics["objective/scores"]
        assert report.is_full  # whichever groups beyond the two responses have equal scores
        [prompt] = set(experience.rollouts.prompt_ids.tolist())
        chosen.add(prompt)
        samples = np.flatnonzero(every.rollouts.prompt_ids == prompt)
        tokens = np.repeat(every.rollouts.prompt_ids, every.rollouts.sequences.response_lengths) == prompt
        np.testing.assert_array_equal(experience.scores, every.scores[samples])
        np.testing.assert_array_equal(experience.rollouts.seeds, every.rollouts.seeds[samples])
        for name in ("response_mask", "old_logprobs", "ref_logprobs", "advantages", "importance_weights"):
            np.testing.assert_array_equal(getattr(experience, name), getattr(every, name)[tokens], err_msg=name)
    assert chosen == {0, 2}
    again, _ = assembled(folder, [rollouts()[3:], rollouts()[:3]], **options, size=2, oversampling=3, step=7)
    assert again.rollouts.prompt_ids.tolist() == experience.rollouts.prompt_ids.tolist()


def test_two_rounds_of_a_step_are_one_batch(folder: str) -> None:
    """Two of four responses in each round: all are scored together, as in one round with twice the responses."""
    options = {"name": "dapo", "result_specs": WITHOUT_CRITIC}
    in_rounds, report = assembled(folder, [rollouts()], **options, size=3, rounds=2)
    at_once, other = assembled(folder, [rollouts()], **options, size=3, oversampling=2)
    assert report.metrics == {**other.metrics, "rollout/sampling_rounds": 2}
    np.testing.assert_array_equal(in_rounds.advantages, at_once.advantages)
    with pytest.raises(MachineryError, match=r"6 samples of ppo.batch_size \* 2 rounds = 12$"):
        assembled(folder, [rollouts()], **options, size=6, rounds=2)


def test_a_step_of_more_responses_is_complete_with_all_of_them(folder: str) -> None:
    with pytest.raises(MachineryError, match=r"6 samples of ppo.batch_size \* ppo.oversampling = 12$"):
        assembled(folder, [rollouts()], name="dapo", result_specs=WITHOUT_CRITIC, oversampling=2)
