"""The value update on real DeepSpeed ranks, against the same loss without packing, micro-batches or DeepSpeed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    PPOConfig,
    Recipe,
    RoleConfig,
)
from rlhf.errors import UserError
from rlhf.models.load import load_classifier
from rlhf.models.scalar import init_value_head
from rlhf.models.scratch import train_tokenizer
from rlhf.roles.critic import CriticRole
from rlhf.roles.forward import token_index
from rlhf.types import Experience, FinishReason, RolloutBlock
from rlhf.zero.rank import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences, tiny_model, whole
from tests.rlhf.tiny_classifiers import pair_tokenizer, tiny_classifier

CLIP, LR, EPOCHS = 0.2, 0.5, 3
SEQUENCES = random_sequences((3, 5), (1, 4), (6, 1), (2, 7), (4, 3))
TOKENS = int(SEQUENCES.response_lengths.sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, of which the classifier takes the backbone."""
    path = tmp_path_factory.mktemp("critic")
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(path)
    train_tokenizer([], 258).save_pretrained(path)
    return path


def recipe(ranks: int, stage: int, budget: int, clip: float | None = CLIP, shared: int = 1) -> Recipe:
    optimizer = OptimizerConfig(lr=LR, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
    role = RoleConfig(ranks=ranks, sequence_parallel=shared, zero_stage=stage, micro_batch_tokens=budget)
    return Recipe(
        name="test",
        algorithm=AlgorithmConfig(value_clip_range=clip, epochs=EPOCHS),
        ppo=PPOConfig(steps=1, critic_optimizer=optimizer),
        placement=PlacementConfig(critic=role),
    )


def experience() -> Experience:
    """Old values 0, as the fresh critic's; returns far enough away for the clip to bind after the first update.

    The mask has gaps and leaves a whole sample out; what is outside it is NaN.
    """
    samples, random = len(SEQUENCES), np.random.default_rng(2)
    returns, mask = random.normal(size=TOKENS), random.random(TOKENS) < 0.9
    mask[token_index(SEQUENCES, [4])] = False
    unused, old = np.full(TOKENS, np.nan, np.float32), np.where(mask, 0, np.nan).astype(np.float32)
    return Experience(
        rollouts=RolloutBlock(
            sequences=SEQUENCES,
            logprobs=unused,
            response_mask=mask,
            prompt_ids=np.arange(samples),
            weight_versions=np.zeros(samples, dtype=np.int64),
            finish_reasons=np.full(samples, FinishReason.STOP, dtype=np.int32),
            seeds=np.arange(samples),
        ),
        scores=np.zeros(samples, dtype=np.float32),
        response_mask=mask,
        old_logprobs=unused,
        ref_logprobs=unused,
        advantages=unused,
        importance_weights=unused,
        kl_coef=0.1,
        values=old,
        returns=np.where(mask, returns, np.nan).astype(np.float32),
    )


def update(rank: Rank, folder: Path, recipe: Recipe, batch: Experience) -> dict[str, Any]:
    """Values before, metrics of the update, and weights after it."""
    role = CriticRole(recipe, str(folder), rank)
    before = role.values(batch.rollouts).values
    metrics = role.update(batch, step=0)
    state = role.engine.full_state(role.engine.network)
    return {"before": before, "metrics": metrics, "weights": {name: tensor.numpy() for name, tensor in state}}


Plain = tuple[list[float], dict[str, np.ndarray]]


def plain_update(folder: Path, clip: float | None) -> Plain:
    """The loss of each of three plain updates, and the weights after them."""
    classifier = load_classifier(folder, ModelConfig())
    init_value_head(classifier)
    mask, returns = torch.from_numpy(experience().response_mask), torch.from_numpy(experience().returns)
    losses = []
    for _ in range(EPOCHS):
        values = torch.cat(
            [
                classifier.score(classifier.model(whole(SEQUENCES, i)).last_hidden_state)[0, p - 1 : -1, 0]
                for i, p in enumerate(SEQUENCES.prompt_lengths)
            ]
        )[mask]
        near = values if clip is None else values.clamp(-clip, clip)
        loss = torch.maximum((values - returns[mask]) ** 2, (near - returns[mask]) ** 2).mean() / 2
        classifier.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for p in classifier.parameters():
                p -= LR * p.grad / (p.grad.abs() + 1)
    return losses, {name: tensor.numpy() for name, tensor in classifier.state_dict().items()}


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[float | None, Plain]:
    """With and without clipped values."""
    return {clip: plain_update(folder, clip) for clip in (CLIP, None)}


PLACES = [(1, 0, 1000), (1, 1, 11), (2, 1, 20), (2, 2, 11), (2, 3, 11)]


@pytest.mark.parametrize(
    ("ranks", "stage", "budget", "clip", "shared"),
    [
        *((*place, CLIP, 1) for place in PLACES),
        (1, 1, 20, None, 1),
        (2, 3, 11, None, 1),
        (2, 1, 20, CLIP, 2),
        (2, 3, 1000, CLIP, 2),
    ],
)
def test_three_updates_are_the_plain_ones(
    ranks: int,
    stage: int,
    budget: int,
    clip: float | None,
    shared: int,
    folder: Path,
    expected: Any,
    crews: dict[int, Crew],
) -> None:
    losses, weights = expected[clip]
    for updated in crews[ranks].run(update, folder, recipe(ranks, stage, budget, clip, shared), experience()):
        assert not updated["before"].any()
        assert updated["metrics"]["loss/value_avg"] == pytest.approx(np.mean(losses), rel=1e-5)
        clipped = updated["metrics"]["val/clipfrac_avg"]
        assert clipped == 0 if clip is None else 0 < clipped < 1
        for name, weight in weights.items():
            found = updated["weights"][f"classifier.{name}"]
            np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-5 * np.abs(weight).max(), err_msg=name)


def test_the_clip_makes_a_difference_that_would_be_seen(expected: dict[float | None, Plain]) -> None:
    assert expected[CLIP][0] != pytest.approx(expected[None][0], rel=1e-3)


def test_the_logged_rate_is_that_of_the_steps_last_update(folder: Path, one_rank: Crew) -> None:
    """Three updates on the way from LR to 0."""
    plain = recipe(1, 1, 1000)
    optimizer = replace(plain.ppo.critic_optimizer, schedule="linear")
    falling = replace(plain, ppo=replace(plain.ppo, critic_optimizer=optimizer))
    [updated] = one_rank.run(update, folder, falling, experience())
    assert updated["metrics"]["lr_critic"] == pytest.approx(LR / EPOCHS)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_a_batch_without_a_token_teaches_nothing(ranks: int, stage: int, folder: Path, crews: dict[int, Crew]) -> None:
    nothing = replace(experience(), response_mask=np.zeros(TOKENS, dtype=bool))
    classifier = load_classifier(folder, ModelConfig())
    init_value_head(classifier)
    for updated in crews[ranks].run(update, folder, recipe(ranks, stage, 20), nothing):
        assert updated["metrics"] == {}  # a loss of 0 would be a false report
        for name, weight in classifier.state_dict().items():
            np.testing.assert_array_equal(updated["weights"][f"classifier.{name}"], weight.numpy(), err_msg=name)


def begin(rank: Rank, folder: Path) -> None:
    CriticRole(Recipe(name="t"), str(folder), rank)


def test_an_encoder_is_no_critic(one_rank: Crew, tmp_path: Path) -> None:
    """Its head is linear, but its tokens see later ones."""
    tiny_classifier("bert").save_pretrained(tmp_path)
    pair_tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its tokens see later ones"):
        one_rank.run(begin, tmp_path)
