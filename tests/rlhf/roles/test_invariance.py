"""Gradients of the policy and the critic under DeepSpeed do not depend on how the work is divided.

A gradient is taken from DeepSpeed just before the optimizer's step: whole, added up over ranks and micro-batches. The
packed passes are also held to what many write instead, a padded batch with an attention mask, through transformers
alone. ``test_policy.py`` and ``test_critic.py`` compare weights with plain passes, for every option of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.algorithms.state import AlgorithmState
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
from rlhf.experience import Scored, build_experience
from rlhf.models.load import load_causal, load_classifier
from rlhf.models.scalar import init_value_head
from rlhf.models.scratch import train_tokenizer
from rlhf.roles.block_result import token_index
from rlhf.roles.critic import CriticRole
from rlhf.roles.policy import PolicyRole
from rlhf.types import Experience, FinishReason, RolloutBlock, Sequences
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import ARCHITECTURES, VOCABULARY, random_sequences, tiny_model

Gradients = dict[str, np.ndarray]
TEMPERATURE = 0.7
SIZES = ((3, 5), (1, 4), (6, 1), (2, 7), (4, 3), (5, 6), (2, 2))
"""Seven samples: uneven on two ranks. The longest sequence has 11 tokens."""
SAMPLES, TOKENS = len(SIZES), sum(r for _, r in SIZES)
SMOOTH = OptimizerConfig(lr=0.5, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
"""Adam without momentum and with ε = 1: its step is smooth in the gradient, so small differences stay small."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """How an update is divided."""

    ranks: int = 1
    stage: int = 1
    budget: int = 1000
    """Tokens of a micro-batch."""
    shared: int = 1
    """Sequence-parallel size."""
    order: tuple[int, ...] = tuple(range(SAMPLES))


def recipe(split: Split, epochs: int = 1, optimizer: OptimizerConfig = SMOOTH) -> Recipe:
    role = RoleConfig(
        ranks=split.ranks,
        sequence_parallel=split.shared,
        zero_stage=split.stage,
        micro_batch_tokens=split.budget,
    )
    return Recipe(
        name="test",
        rollout=RolloutConfig(temperature=TEMPERATURE, max_response_length=8),
        algorithm=AlgorithmConfig(epochs=epochs, kl_coef=0.1),
        ppo=PPOConfig(steps=1, batch_size=SAMPLES, optimizer=optimizer, critic_optimizer=optimizer),
        placement=PlacementConfig(policy=role, critic=role),
    )


def scored(order: tuple[int, ...]) -> tuple[Scored, np.ndarray]:
    """Rollouts with a gap in the mask, one dropped, one truncated, ratios around 1; and their raw scores."""
    whole, random = random_sequences(*SIZES), np.random.default_rng(5)
    index, samples = token_index(whole, order), np.array(order)
    old, engine, ref = (random.normal(-np.log(VOCABULARY), spread, TOKENS) for spread in (0.5, 0.5, 0.5))
    values, mask, raw = random.normal(size=TOKENS), random.random(TOKENS) < 0.9, random.normal(size=SAMPLES)
    reasons = np.where(np.arange(SAMPLES) == 3, FinishReason.LENGTH, FinishReason.STOP)
    tokenwise = (array[index].astype(np.float32) for array in (old, ref, values))
    block = RolloutBlock(
        sequences=Sequences.pack((whole.prompt(i), whole.response(i)) for i in order),
        logprobs=engine[index].astype(np.float32),
        response_mask=mask[index],
        prompt_ids=samples,
        weight_versions=np.zeros(SAMPLES, dtype=np.int64),
        finish_reasons=reasons[samples].astype(np.int32),
        seeds=samples,
        cached_tokens=np.zeros(len(samples), dtype=np.int32),
    )
    old, ref, values = tokenwise
    scores = raw[samples].astype(np.float32)
    return Scored(
        rollouts=block,
        scores={"score": scores},
        dropped=samples == 5,
        old_logprobs=old,
        ref_logprobs=ref,
        values=values,
    ), scores


def experience(split: Split, algorithm: AlgorithmConfig) -> Experience:
    """The experience as a run builds it."""
    built, _ = build_experience(*scored(split.order), algorithm, AlgorithmState.start(algorithm), 100)
    return built


def updated(rank: Rank, kind: str, folder: Path, recipe: Recipe, split: Split) -> tuple[list[Gradients], Gradients]:
    """Of a step on this rank: the gradient of every update, by parameter, and the weights after the last."""
    role = (PolicyRole if kind == "policy" else CriticRole)(recipe, str(folder), rank)
    gradients: list[Gradients] = []
    engine, step = role.engine.engine, role.engine.engine.step

    def noting_step() -> None:
        parameters = role.network.named_parameters()
        gradients.append({name: safe_get_full_grad(p).detach().float().cpu().numpy().copy() for name, p in parameters})
        step()

    engine.step = noting_step
    role.update(experience(split, recipe.algorithm), step=0)
    return gradients, {name: tensor.numpy() for name, tensor in role.engine.full_state(role.network)}


def gradients(crews: dict[int, Crew], kind: str, folder: Path, split: Split, epochs: int = 2) -> list[Gradients]:
    """The last gradient of a step on every rank. The critic's first has nothing for the backbone: its head is 0."""
    answers = crews[split.ranks].run(updated, kind, folder, recipe(split, epochs), split)
    return [every[-1] for every, _ in answers]


def assert_same_gradient(one: Gradients, other: Gradients) -> None:
    """Compare to 1e-5 of the largest component of each parameter's gradient."""
    assert one.keys() == other.keys()
    for name, expected in other.items():
        scale = np.abs(expected).max()
        assert scale > 0, name
        np.testing.assert_allclose(one[name] / scale, expected / scale, rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of every architecture, with a tokenizer."""
    paths = {name: tmp_path_factory.mktemp(name) for name in ARCHITECTURES}
    for name, path in paths.items():
        tiny_model(AutoModelForCausalLM, name).save_pretrained(path)
        train_tokenizer([], 258).save_pretrained(path)
    return paths


SPLITS = (
    Split(budget=11),
    Split(budget=20, order=(4, 0, 6, 2, 5, 1, 3)),
    Split(ranks=2),
    Split(ranks=2, stage=0, budget=11, order=(6, 5, 4, 3, 2, 1, 0)),
    Split(ranks=2, stage=2, budget=20),
    Split(ranks=2, stage=3, budget=20),
    Split(ranks=2, shared=2, stage=0, budget=20, order=(4, 0, 6, 2, 5, 1, 3)),
    Split(ranks=2, shared=2, stage=1),
    Split(ranks=2, shared=2, stage=2, budget=11),
    Split(ranks=2, shared=2, stage=3, budget=20),
)


@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_no_split_changes_a_gradient(kind: str, folders: dict[str, Path], crews: dict[int, Crew]) -> None:
    """Over micro-batches, ranks, parts of rows, stages, any order; of the second update, which the first one led to."""
    [expected] = gradients(crews, kind, folders["llama"], Split(stage=0))
    for split in SPLITS:
        for found in gradients(crews, kind, folders["llama"], split):
            assert_same_gradient(found, expected)


@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_all_stages_have_the_same_weights_after_three_steps_of_adam(
    kind: str, folders: dict[str, Path], crews: dict[int, Crew]
) -> None:
    """With momentum, a falling rate, and gradients clipped to a norm that every one of them exceeds."""
    optimizer = OptimizerConfig(lr=0.01, betas=(0.9, 0.95), eps=1e-3, max_grad_norm=0.05)
    after = []
    for stage in (0, 1, 2, 3):
        split = Split(ranks=2, stage=stage, budget=20)
        [(noted, weights), _] = crews[2].run(updated, kind, folders["llama"], recipe(split, 3, optimizer), split)
        assert len(noted) == 3
        after.append(weights)
    for weights in after[1:]:
        for name, expected in after[0].items():
            scale = np.abs(expected).max()
            np.testing.assert_allclose(weights[name], expected, rtol=0, atol=2e-5 * scale, err_msg=name)


Side = Literal["left", "right"]


def padded(sequences: Sequences, side: Side) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """A padded batch as a model takes it, and the (row, column) that predicts each response token."""
    longest = int(sequences.lengths.max())
    ids, mask = torch.full((len(sequences), longest), 7), torch.zeros(len(sequences), longest, dtype=torch.long)
    rows, columns = [], []
    for i, length in enumerate(sequences.lengths.tolist()):
        begin = longest - length if side == "left" else 0
        ids[i, begin : begin + length] = torch.tensor([*sequences.prompt(i), *sequences.response(i)])
        mask[i, begin : begin + length] = 1
        answer = int(sequences.response_lengths[i])
        rows += [i] * answer
        columns += range(begin + length - answer - 1, begin + length - 1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return batch, (torch.tensor(rows), torch.tensor(columns))


def policy_loss(lm: PreTrainedModel, batch: Experience, side: Side) -> Tensor:
    """PPO's loss as the paper has it: a mean over tokens."""
    inputs, places = padded(batch.rollouts.sequences, side)
    sequences = batch.rollouts.sequences
    targets = np.concatenate([sequences.response(i) for i in range(len(sequences))])
    logits = lm(**inputs, use_cache=False).logits[places] / TEMPERATURE
    logprobs = logits.log_softmax(-1)[torch.arange(len(targets)), torch.from_numpy(targets).long()]
    old, advantages, weights = map(torch.from_numpy, (batch.old_logprobs, batch.advantages, batch.importance_weights))
    ratio = torch.exp(logprobs - old)
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return -(weights * gain)[torch.from_numpy(batch.response_mask)].mean()


def value_loss(classifier: PreTrainedModel, batch: Experience, side: Side) -> Tensor:
    """½ max((V−R)², (clip(V, V_old ± .2) − R)²), a mean over tokens."""
    assert batch.values is not None and batch.returns is not None
    inputs, places = padded(batch.rollouts.sequences, side)
    hidden = classifier.base_model(**inputs, use_cache=False).last_hidden_state
    values, old, returns = (
        classifier.score(hidden)[..., 0][places],
        *map(torch.from_numpy, (batch.values, batch.returns)),
    )
    near = torch.minimum(torch.maximum(values, old - 0.2), old + 0.2)
    error = torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
    return error[torch.from_numpy(batch.response_mask)].mean()


def padded_gradient(kind: str, folder: Path, side: Side) -> Gradients:
    """Of the second of two updates, on padded batches, without DeepSpeed."""
    if kind == "policy":
        model, loss, prefix = load_causal(folder, ModelConfig()), policy_loss, "lm."
    else:
        model, loss, prefix = load_classifier(folder, ModelConfig()), value_loss, "classifier."
        init_value_head(model)
    batch = experience(Split(), recipe(Split()).algorithm)
    for _ in range(2):
        model.zero_grad()
        loss(model, batch, side).backward()
        found = {prefix + name: p.grad.numpy().copy() for name, p in model.named_parameters()}
        with torch.no_grad():
            for p in model.parameters():
                p -= SMOOTH.lr * p.grad / (p.grad.abs() + 1)
    return found


@pytest.mark.parametrize("kind", ["policy", "critic"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packing_has_the_gradient_of_a_padded_batch(
    kind: str, architecture: str, folders: dict[str, Path], crews: dict[int, Crew]
) -> None:
    [found] = gradients(crews, kind, folders[architecture], Split(budget=25))
    for side in ("left", "right"):
        assert_same_gradient(found, padded_gradient(kind, folders[architecture], side))


def test_the_comparison_sees_a_change_of_one_in_ten_thousand(folders: dict[str, Path]) -> None:
    """And the batch is one in which clips, a gap, a dropped sample and importance weights take part."""
    batch = experience(Split(), recipe(Split()).algorithm)
    assert 0 < batch.importance_weights.max() <= 2 and batch.importance_weights[batch.response_mask].std() > 0.1
    assert not batch.response_mask.all()
    expected = padded_gradient("policy", folders["llama"], "right")
    other = {name: 1.0001 * gradient for name, gradient in expected.items()}
    with pytest.raises(AssertionError):
        assert_same_gradient(other, expected)
    lm = load_causal(folders["llama"], ModelConfig())
    assert policy_loss(lm, replace(batch, advantages=2 * batch.advantages), "left").item() != pytest.approx(
        policy_loss(lm, batch, "left").item()
    )
