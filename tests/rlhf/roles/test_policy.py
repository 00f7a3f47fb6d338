"""The policy's update on real DeepSpeed ranks: what is trained may not depend on how the work is divided."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    RolloutConfig,
)
from rlhf.models.load import load_causal
from rlhf.roles.forward import join_tokens, token_index
from rlhf.roles.policy import PolicyRole, update_metrics
from rlhf.types import Experience, FinishReason, RolloutBlock, Sequences
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import VOCABULARY, random_sequences, tiny_model

TEMPERATURE, CLIP, LR = 0.7, 0.2, 0.5
SIZES = ((3, 5), (1, 4), (6, 1), (2, 7), (4, 3), (5, 6), (2, 2))
"""Seven samples: uneven on two ranks. The longest sequence has 11 tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with an untied head."""
    path = tmp_path_factory.mktemp("policy")
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(path)
    return path


def recipe(ranks: int = 1, stage: int = 1, budget: int = 1000, epochs: int = 3, minibatches: int = 1) -> Recipe:
    """Adam without momentum and with ε = 1: its step is smooth in the gradient, so small differences stay small."""
    optimizer = OptimizerConfig(lr=LR, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
    role = RoleConfig(ranks=ranks, zero_stage=stage, micro_batch_tokens=budget)
    return Recipe(
        name="test",
        model=ModelConfig(),
        rollout=RolloutConfig(temperature=TEMPERATURE),
        algorithm=AlgorithmConfig(clip_range=CLIP, epochs=epochs, minibatches=minibatches),
        ppo=PPOConfig(steps=1, batch_size=len(SIZES), optimizer=optimizer),
        placement=PlacementConfig(policy=role),
    )


def block(sequences: Sequences) -> RolloutBlock:
    samples, tokens = len(sequences), int(sequences.response_lengths.sum())
    return RolloutBlock(
        sequences=sequences,
        logprobs=np.zeros(tokens, dtype=np.float32),
        prompt_ids=np.arange(samples),
        weight_versions=np.zeros(samples, dtype=np.int64),
        finish_reasons=np.full(samples, FinishReason.STOP, dtype=np.int32),
        seeds=np.arange(samples),
    )


def experience(order: list[int] | None = None, old_logprobs: np.ndarray | None = None) -> Experience:
    """A batch with ratios around 1, some clipped, and a mask with gaps; ``order`` shuffles its samples."""
    whole = random_sequences(*SIZES)
    order = list(range(len(SIZES))) if order is None else order
    index = token_index(whole, order)
    random = np.random.default_rng(5)
    tokens = int(whole.response_lengths.sum())
    old = -np.log(VOCABULARY) + random.normal(size=tokens) if old_logprobs is None else old_logprobs
    advantages, mask = random.normal(size=tokens), random.random(tokens) < 0.9
    unused = np.zeros(tokens, dtype=np.float32)
    return Experience(
        rollouts=block(Sequences.pack((whole.prompt(i), whole.response(i)) for i in order)),
        scores=np.zeros(len(order), dtype=np.float32),
        old_logprobs=old[index].astype(np.float32),
        ref_logprobs=unused,
        values=unused,
        advantages=advantages[index].astype(np.float32),
        returns=unused,
        response_mask=mask[index],
    )


@dataclass(frozen=True)
class Updated:
    """Metrics and weights after an update."""

    metrics: dict[str, float]
    weights: dict[str, np.ndarray]


def update(rank: Rank, folder: Path, recipe: Recipe, batch: Experience) -> Updated:
    """One step of PPO on this rank."""
    role = PolicyRole(recipe, str(folder), rank)
    metrics = role.update(batch, step=0)
    return Updated(metrics, {name: tensor.numpy() for name, tensor in role.engine.full_state(role.lm)})


def plain_update(folder: Path, batch: Experience, epochs: int) -> Updated:
    """The same without packing, micro-batches, chunks or DeepSpeed: the loss as the paper has it."""
    lm = load_causal(folder, ModelConfig())
    sequences, mask = batch.rollouts.sequences, torch.from_numpy(batch.response_mask)
    old, advantages = torch.from_numpy(batch.old_logprobs), torch.from_numpy(batch.advantages)
    rows, norms = [], []
    for _ in range(epochs):
        logprobs = []
        for i in range(len(sequences)):
            tokens = torch.tensor([*sequences.prompt(i), *sequences.response(i)], dtype=torch.long)
            begin = int(sequences.prompt_lengths[i])
            logits = lm(tokens[None]).logits[0, begin - 1 : -1] / TEMPERATURE
            logprobs.append(logits.log_softmax(-1)[torch.arange(len(tokens) - begin), tokens[begin:]])
        ratio = torch.exp(torch.cat(logprobs) - old)[mask]
        gain = torch.minimum(ratio * advantages[mask], ratio.clamp(1 - CLIP, 1 + CLIP) * advantages[mask])
        lm.zero_grad()
        (-gain.mean()).backward()
        norms.append(torch.cat([p.grad.flatten() for p in lm.parameters()]).norm().item())
        rows.append([-gain.mean().item(), ratio.mean().item(), ratio.detach().log().square().mean().item() / 2])
        with torch.no_grad():
            for p in lm.parameters():
                p -= LR * p.grad / (p.grad.abs() + 1)
    names = ("loss/policy_avg", "val/ratio", "policy/approxkl_avg")
    metrics = {**dict(zip(names, np.mean(rows, axis=0).tolist())), "policy/grad_norm": float(np.mean(norms))}
    return Updated(metrics, {name: tensor.numpy() for name, tensor in lm.state_dict().items()})


def assert_same(one: Updated, other: Updated) -> None:
    """Weights to 1e-5 of the largest in their tensor, metrics that both have to 1e-5."""
    for name in one.metrics.keys() & other.metrics.keys() - {"memory/policy_gib"}:
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-5, abs=1e-6), name
    assert one.weights.keys() == other.weights.keys()
    for name, weight in other.weights.items():
        scale = np.abs(weight).max()
        np.testing.assert_allclose(one.weights[name], weight, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Updated:
    """Three updates, plainly."""
    return plain_update(folder, experience(), epochs=3)


@pytest.mark.parametrize(
    ("ranks", "stage", "budget"),
    [(1, 0, 1000), (1, 1, 11), (1, 1, 20), (1, 3, 11), (2, 0, 11), (2, 1, 1000), (2, 1, 20), (2, 2, 11), (2, 3, 11)],
)
def test_three_updates_are_the_plain_ones_on_any_ranks_stage_and_budget(
    ranks: int, stage: int, budget: int, folder: Path, expected: Updated, crews: dict[int, Crew]
) -> None:
    for updated in crews[ranks].run(update, folder, recipe(ranks, stage, budget), experience()):
        assert_same(updated, expected)
    assert 0.05 < updated.metrics["policy/clipfrac_avg"] < 0.95  # the clip takes part in what is compared


def test_the_updates_moved_the_weights_far_enough_to_tell(folder: Path, expected: Updated) -> None:
    before = load_causal(folder, ModelConfig()).state_dict()
    moved = {name: np.abs(weight - before[name].numpy()).max() for name, weight in expected.weights.items()}
    assert min(moved.values()) > 1e-4
    once = plain_update(folder, replace(experience(), advantages=1.001 * experience().advantages), epochs=3)
    with pytest.raises(AssertionError):
        assert_same(once, expected)


def test_the_logged_rate_is_that_of_the_steps_last_update(folder: Path, one_rank: Crew) -> None:
    """Three updates on the way from LR to 0."""
    plain = recipe()
    falling = replace(plain, ppo=replace(plain.ppo, optimizer=replace(plain.ppo.optimizer, schedule="linear")))
    [updated] = one_rank.run(update, folder, falling, experience())
    assert updated.metrics["lr"] == pytest.approx(LR / 3)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_order_of_samples_does_not_matter(
    ranks: int, folder: Path, expected: Updated, crews: dict[int, Crew]
) -> None:
    shuffled = experience(order=[4, 0, 6, 2, 5, 1, 3])
    for updated in crews[ranks].run(update, folder, recipe(ranks, 1, 20), shuffled):
        assert_same(updated, expected)


def score_then_update(rank: Rank, folder: Path, recipe: Recipe, batch: Experience) -> dict[str, Any]:
    """Log-probabilities of the rollouts, then an update against them: its first pass is over fresh rollouts."""
    role = PolicyRole(recipe, str(folder), rank)
    share = role.logprobs(batch.rollouts)
    parts: list[Any] = [None] * rank.world
    torch.distributed.all_gather_object(parts, share)
    logprobs = join_tokens(parts, batch.rollouts.sequences)
    return {"logprobs": logprobs, "metrics": role.update(replace(batch, old_logprobs=logprobs), step=0)}


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_the_first_pass_over_fresh_rollouts_has_ratio_1(
    ranks: int, stage: int, folder: Path, crews: dict[int, Crew]
) -> None:
    answers = crews[ranks].run(score_then_update, folder, recipe(ranks, stage, 20, minibatches=7), experience())
    for answer in answers:
        metrics = answer["metrics"]
        assert metrics["first_pass/ratio"] == pytest.approx(1, abs=1e-5)
        assert metrics["first_pass/approxkl"] == pytest.approx(0, abs=1e-9)
        assert metrics["first_pass/clipfrac"] == 0
        assert metrics["policy/approxkl_avg"] > 1e-6  # later minibatches have moved
        np.testing.assert_array_equal(answer["logprobs"], answers[0]["logprobs"])


def test_metrics_are_means_over_tokens_of_each_update_and_then_over_updates() -> None:
    """Sums of loss, ratio, ratio², ½ log², clipped, entropy, tokens: two updates, of 4 tokens and of 2."""
    totals = torch.tensor([[8.0, 4, 4, 0, 0, 12, 4], [2.0, 3, 5, 0.5, 1, 2, 2]], dtype=torch.float64)
    assert update_metrics(totals) == pytest.approx(
        {
            "loss/policy_avg": (2 + 1) / 2,
            "val/ratio": (1 + 1.5) / 2,
            "val/ratio_var": (0 + (2.5 - 2.25)) / 2,
            "policy/approxkl_avg": (0 + 0.25) / 2,
            "policy/clipfrac_avg": (0 + 0.5) / 2,
            "policy/entropy_avg": (3 + 1) / 2,
            "first_pass/ratio": 1.0,
            "first_pass/approxkl": 0.0,
            "first_pass/clipfrac": 0.0,
        }
    )
