from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.schema import AlgorithmConfig, ModelConfig, Recipe, ScratchConfig, TrackingConfig
from rlhf.errors import MachineryError
from rlhf.models.load import load_tokenizer
from rlhf.models.scratch import make_scratch
from rlhf.roles.assemble import Batch, BatchReport, assemble
from rlhf.roles.forward import Share
from rlhf.types import Experience, FinishReason, Prompt, Rollout, RolloutBlock

RANKS = (1, 2, 3, 2)
"""Ranks of the reward, the policy, the reference and the critic."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder whose tokenizer has one token a byte."""
    path = tmp_path_factory.mktemp("model")
    make_scratch(ScratchConfig(hidden_size=32, layers=1, heads=1, vocab_size=258), [], path, seed=0)
    return str(path)


def rollouts() -> list[Rollout]:
    """Three prompts answered twice each; every number of a sample follows from its prompt and its seed."""
    return [
        Rollout(
            prompt=Prompt(id=id, tokens=tuple(range(40, 43 + id))),
            tokens=np.arange(50 + seed, 52 + seed + id + seed % 3, dtype=np.int32),
            logprobs=np.full(2 + id + seed % 3, -0.5, dtype=np.float32),
            weight_version=3,
            finish_reason=FinishReason.LENGTH if id == 1 else FinishReason.STOP,
            seed=seed,
        )
        for id, seed in [(0, 5), (0, 6), (1, 3), (1, 4), (2, 1), (2, 9)]
    ]


def of_sample(rollout: Rollout) -> float:
    return rollout.prompt.id + rollout.seed / 16


def of_tokens(role: int) -> Callable[[Rollout], np.ndarray]:
    """A role's numbers: another for every token, sample and role."""
    return lambda r: -(role + of_sample(r) / 8 + np.arange(len(r.tokens)) / 64)


def shares(block: list[Rollout], ranks: int, compute: Callable[[Rollout], Any]) -> list[Share]:
    """The block dealt out to ranks in turn."""
    dealt = [np.arange(rank, len(block), ranks) for rank in range(ranks)]
    numbers = lambda samples: [np.atleast_1d(compute(block[i])) for i in samples]  # noqa: E731
    return [
        Share(samples=samples, values=np.concatenate([np.zeros(0), *numbers(samples)]).astype(np.float32))
        for samples in dealt
    ]


def parts(blocks: list[list[Rollout]]) -> list[Any]:
    """What the actors hand over: each block with the shares of all roles."""
    computes = [of_sample, of_tokens(1), of_tokens(2), of_tokens(3)]
    return [
        part
        for block in blocks
        for part in [
            RolloutBlock.pack(block),
            *(share for ranks, compute in zip(RANKS, computes, strict=True) for share in shares(block, ranks, compute)),
        ]
    ]


def batch(folder: str, step: int = 0, samples: int = 4) -> Batch:
    algorithm = AlgorithmConfig(missing_eos_penalty=7.0)
    recipe = Recipe(name="test", algorithm=algorithm, tracking=TrackingConfig(samples_per_step=samples))
    return Batch(recipe=recipe, tokenizer=folder, version=5, step=step, ranks=RANKS)


def assembled(folder: str, blocks: list[list[Rollout]], **options: int) -> tuple[Experience, BatchReport]:
    return assemble(batch(folder, **options), *parts(blocks))


def test_every_number_is_beside_its_token(folder: str) -> None:
    expected = rollouts()
    experience, _ = assembled(folder, [expected[3:], expected[:3][::-1]])
    sequences = experience.rollouts.sequences
    assert experience.rollouts.prompt_ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert experience.rollouts.seeds.tolist() == [5, 6, 3, 4, 1, 9]
    assert [sequences.response(i).tolist() for i in range(6)] == [r.tokens.tolist() for r in expected]
    assert [tuple(sequences.prompt(i).tolist()) for i in range(6)] == [r.prompt.tokens for r in expected]
    for role, array in ((1, experience.old_logprobs), (2, experience.ref_logprobs), (3, experience.values)):
        np.testing.assert_allclose(array, np.concatenate([of_tokens(role)(r) for r in expected]), rtol=1e-6)
    missing_end = [-7.0 if r.prompt.id == 1 else of_sample(r) for r in expected]
    assert experience.scores.tolist() == missing_end


@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)))
def test_nothing_depends_on_the_order_in_which_samples_and_blocks_finish(
    order: list[int], cuts: set[int], folder: str
) -> None:
    samples = rollouts()
    edges = [0, *sorted(cuts), 6]
    blocks = [[samples[i] for i in order[a:b]] for a, b in zip(edges, edges[1:], strict=False)]
    experience, report = assembled(folder, blocks)
    expected, expected_report = assembled(folder, [samples])
    assert report == expected_report
    for field in fields(Experience):
        one, other = getattr(experience, field.name), getattr(expected, field.name)
        if field.name != "rollouts":
            np.testing.assert_array_equal(one, other, err_msg=field.name)
    np.testing.assert_array_equal(experience.rollouts.sequences.tokens, expected.rollouts.sequences.tokens)


def test_a_share_that_is_missing_is_noticed(folder: str) -> None:
    handed_over = parts([rollouts()])
    handed_over[-1] = Share(samples=np.zeros(0, dtype=np.int64), values=np.zeros(0, dtype=np.float32))
    with pytest.raises(MachineryError, match="values: .* are NaN"):
        assemble(batch(folder), *handed_over)


def test_a_few_samples_are_shown_as_text_and_others_at_each_step(folder: str) -> None:
    tokenizer = load_tokenizer(folder, ModelConfig())
    texts = {(tokenizer.decode(r.prompt.tokens), tokenizer.decode(r.tokens)): r for r in rollouts()}
    shown = [assembled(folder, [rollouts()], step=step, samples=2)[1].samples for step in range(4)]
    assert [len(rows) for rows in shown] == [2] * 4
    assert len({tuple(row.response for row in rows) for rows in shown}) > 1
    for row in (row for rows in shown for row in rows):
        rollout = texts[row.prompt, row.response]
        truncated = rollout.prompt.id == 1
        assert row.finish_reason == ("length" if truncated else "stop")
        assert row.score == (-7.0 if truncated else of_sample(rollout))
        assert row.kl == pytest.approx(len(rollout.tokens))  # the two roles' numbers are 1 apart at every token
        assert row.weight_version == 3


def test_the_report_measures_staleness_from_the_version_in_force(folder: str) -> None:
    _, report = assembled(folder, [rollouts()])
    assert report.metrics["rollout/staleness_mean"] == 2
    assert report.metrics["rollout/truncated_fraction"] == pytest.approx(1 / 3)
