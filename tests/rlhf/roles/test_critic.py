"""The value update on real DeepSpeed ranks, against the same loss without packing, micro-batches or DeepSpeed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.batching import minibatches
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
from rlhf.models.packed_row import PackedRow
from rlhf.models.scalar import init_value_head
from rlhf.models.scratch import train_tokenizer
from rlhf.roles.block_result import join_tokens, token_index
from rlhf.roles.critic import CriticRole
from rlhf.types import Experience, FinishReason, RolloutBlock
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences, tiny_model, whole
from tests.rlhf.tiny_classifiers import pair_tokenizer, tiny_classifier

CLIP, LR, EPOCHS = 0.2, 0.5, 3
SEQUENCES = random_sequences((3, 5), (1, 4), (6, 1), (2, 7), (4, 3))
TOKENS = int(SEQUENCES.response_lengths.sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, the classifier's backbone."""
    path = tmp_path_factory.mktemp("critic")
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(path)
    train_tokenizer([], 258).save_pretrained(path)
    return path


def recipe(
    ranks: int,
    stage: int,
    budget: int,
    clip: float | None = CLIP,
    shared: int = 1,
    schedule: Any = "constant",
    momentum: float = 0.0,
    **algorithm: Any,
) -> Recipe:
    optimizer = OptimizerConfig(lr=LR, schedule=schedule, betas=(momentum, momentum), eps=1.0, max_grad_norm=0.0)
    role = RoleConfig(ranks=ranks, sequence_parallel=shared, zero_stage=stage, micro_batch_tokens=budget)
    return Recipe(
        name="test",
        algorithm=AlgorithmConfig(**{"value_clip_range": clip, "epochs": EPOCHS, **algorithm}),
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
            cached_tokens=np.zeros(samples, dtype=np.int32),
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
    weights = {name: tensor.numpy() for name, tensor in role.engine.full_state(role.engine.network)}
    return {"before": before, "metrics": metrics, "weights": weights, "next_rate": role.engine.engine.get_lr()[0]}


Plain = tuple[list[float], dict[str, np.ndarray]]


def plain_update(folder: Path, clip: float | None, parts: int = 1, epochs: int = EPOCHS) -> Plain:
    """The loss of each plain update, one for each of ``parts`` of the batch and epoch, and the weights after them."""
    classifier = load_classifier(folder, ModelConfig())
    init_value_head(classifier)
    whole_mask, returns = torch.from_numpy(experience().response_mask), torch.from_numpy(experience().returns)
    losses = []
    for chosen in minibatches(len(SEQUENCES), parts, epochs, [0, 0]):
        mask = torch.zeros_like(whole_mask)
        mask[token_index(SEQUENCES, chosen)] = whole_mask[token_index(SEQUENCES, chosen)]
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


@pytest.mark.parametrize(("ranks", "stage", "budget"), [(1, 1, 20), (2, 3, 11)])
def test_a_minibatchs_loss_is_a_mean_over_its_own_tokens(
    ranks: int, stage: int, budget: int, folder: Path, crews: dict[int, Crew]
) -> None:
    """Two minibatches of two of the five samples, with other numbers of tokens."""
    losses, weights = plain_update(folder, CLIP, parts=2, epochs=1)
    assert len(losses) == 2
    made = recipe(ranks, stage, budget, minibatches=2, epochs=1)
    for updated in crews[ranks].run(update, folder, made, experience()):
        assert updated["metrics"]["loss/value_avg"] == pytest.approx(np.mean(losses), rel=1e-5)
        for name, weight in weights.items():
            found = updated["weights"][f"classifier.{name}"]
            np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-5 * np.abs(weight).max(), err_msg=name)


def update_beside_garbage(rank: Rank, folder: Path, recipe: Recipe, batch: Experience) -> dict[str, np.ndarray]:
    """Weights after an update of a critic whose values at tokens outside the mask are NaN."""
    role = CriticRole(recipe, str(folder), rank)
    forward, kept = role.network.forward, set(SEQUENCES.tokens[response_places()][batch.response_mask].tolist())

    def with_garbage(row: PackedRow, places: torch.Tensor) -> torch.Tensor:
        inside = torch.tensor([token in kept for token in row.targets.tolist()], dtype=torch.bool)
        return torch.where(inside, forward(row, places), torch.nan)

    role.network.forward = with_garbage
    role.update(batch, step=0)
    return {name: tensor.numpy() for name, tensor in role.engine.full_state(role.engine.network)}


def response_places() -> np.ndarray:
    """(R,) indices of the response tokens among all tokens."""
    ends = SEQUENCES.starts + SEQUENCES.lengths
    return np.concatenate([np.arange(end - n, end) for end, n in zip(ends, SEQUENCES.response_lengths)])


def test_a_value_outside_the_mask_may_be_anything(folder: Path, one_rank: Crew) -> None:
    """NaN outside the mask has no effect on the critic. Tokens with an odd index are outside the mask."""
    batch = experience()
    batch = replace(batch, response_mask=batch.response_mask & (SEQUENCES.tokens[response_places()] % 2 == 0))
    made = recipe(1, 1, 20)
    assert 0 < batch.response_mask.sum() < TOKENS
    [found], [clean] = (one_rank.run(how, folder, made, batch) for how in (update_beside_garbage, update))
    for name, weight in clean["weights"].items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


def values_of_a_trained_critic(rank: Rank, folder: Path, recipe: Recipe) -> dict[str, np.ndarray]:
    """Values after an update, and the weights that they are of."""
    role = CriticRole(recipe, str(folder), rank)
    role.update(experience(), step=0)
    share = role.values(experience().rollouts)
    weights = {name: tensor.numpy() for name, tensor in role.engine.full_state(role.engine.network)}
    return {"values": join_tokens([share], SEQUENCES), **weights}


def test_a_value_is_that_of_the_state_before_its_token(folder: Path, one_rank: Crew) -> None:
    """A response's first value is read at the prompt's last token; a new critic's values are all 0 and hide it."""
    [found] = one_rank.run(values_of_a_trained_critic, folder, recipe(1, 1, 20, epochs=1))
    classifier = load_classifier(folder, ModelConfig())
    classifier.load_state_dict({n: torch.from_numpy(found[f"classifier.{n}"]) for n in classifier.state_dict()})
    with torch.no_grad():
        hidden = [classifier.model(whole(SEQUENCES, i)).last_hidden_state for i in range(len(SEQUENCES))]
        read = [classifier.score(h)[0, p - 1 : -1, 0] for h, p in zip(hidden, SEQUENCES.prompt_lengths, strict=True)]
    np.testing.assert_allclose(found["values"], torch.cat(read).numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(found["values"]).max() > 0.1


def test_the_clip_makes_a_difference_that_would_be_seen(expected: dict[float | None, Plain]) -> None:
    assert expected[CLIP][0] != pytest.approx(expected[None][0], rel=1e-3)


def test_the_logged_rate_is_that_of_the_steps_last_update(folder: Path, one_rank: Crew) -> None:
    """Three updates on the way from LR to 0."""
    [updated] = one_rank.run(update, folder, recipe(1, 1, 1000, schedule="linear"), experience())
    assert updated["metrics"]["lr_critic"] == pytest.approx(LR / EPOCHS)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_a_batch_without_a_token_teaches_nothing(ranks: int, stage: int, folder: Path, crews: dict[int, Crew]) -> None:
    nothing = replace(experience(), response_mask=np.zeros(TOKENS, dtype=bool))
    classifier = load_classifier(folder, ModelConfig())
    init_value_head(classifier)
    for updated in crews[ranks].run(update, folder, recipe(ranks, stage, 20, schedule="linear"), nothing):
        assert updated["metrics"] == {}  # a loss of 0 would be wrong
        assert updated["next_rate"] == 0  # the schedule ends where it should
        for name, weight in classifier.state_dict().items():
            np.testing.assert_array_equal(updated["weights"][f"classifier.{name}"], weight.numpy(), err_msg=name)


@pytest.mark.parametrize("empty", [0, 1])
def test_a_minibatch_without_a_token_teaches_nothing(empty: int, folder: Path, two_ranks: Crew) -> None:
    """Adam's first step is the same with any momentum, which would make a second step without a gradient."""
    kept = token_index(SEQUENCES, minibatches(len(SEQUENCES), 2, 1, [0, 0])[1 - empty])
    mask = np.zeros(TOKENS, dtype=bool)
    mask[kept] = experience().response_mask[kept]
    half, options = replace(experience(), response_mask=mask), {"epochs": 1, "schedule": "linear", "momentum": 0.9}
    [once, _] = two_ranks.run(update, folder, recipe(2, 1, 20, **options), half)
    [of_two, _] = two_ranks.run(update, folder, recipe(2, 1, 20, minibatches=2, **options), half)
    assert of_two["metrics"]["loss/value_avg"] == pytest.approx(once["metrics"]["loss/value_avg"], rel=1e-5)
    assert of_two["next_rate"] == 0
    for name, weight in once["weights"].items():
        np.testing.assert_allclose(of_two["weights"][name], weight, rtol=1e-5, atol=1e-6, err_msg=name)


def begin(rank: Rank, folder: Path) -> None:
    CriticRole(Recipe(name="t"), str(folder), rank)


def test_an_encoder_is_no_critic(one_rank: Crew, tmp_path: Path) -> None:
    """Its head is linear, but its attention is not causal."""
    tiny_classifier("bert").save_pretrained(tmp_path)
    pair_tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="whose attention is not causal"):
        one_rank.run(begin, tmp_path)
