"""The update of a reward model on real DeepSpeed ranks, against the same loss on each answer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.config.schema import ModelConfig, OptimizerConfig, PlacementConfig, Recipe, RewardConfig, RoleConfig
from rlhf.errors import UserError
from rlhf.models.load import load_classifier, reward_shift
from rlhf.models.scalar import init_reward_head
from rlhf.models.scratch import train_tokenizer
from rlhf.roles.block_result import BlockResult, join_samples
from rlhf.roles.preference import RewardTrainingRole
from rlhf.roles.supervised_data import PairData
from rlhf.types import Pair
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences, tiny_model, whole
from tests.rlhf.tiny_classifiers import tiny_classifier

SEED, LR = 4, 0.5
PROMPTS = random_sequences((3, 5), (3, 2), (2, 6), (2, 1), (4, 4), (4, 4))
CHOSEN = [2, 0, 1]
"""Pairs of one update: odd on two ranks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, the classifier's backbone."""
    path = tmp_path_factory.mktemp("reward")
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(path)
    train_tokenizer([], 258).save_pretrained(path)
    return path


def pairs() -> PairData:
    return PairData.pack(
        [
            Pair(
                prompt=PROMPTS.prompt(2 * i),
                chosen=PROMPTS.response(2 * i),
                rejected=PROMPTS.response(2 * i + 1),
                margin=0.5 * i,
                prompt_id=i,
            )
            for i in range(3)
        ]
    )


def read(classifier: PreTrainedModel) -> torch.Tensor:
    """Rewards of all answers by transformers' forward pass, one at a time. One ends with the padding token."""
    return torch.stack([classifier(whole(pairs().sequences, i)).logits[0, 0] for i in range(6)])


def recipe(ranks: int, stage: int, budget: int, shared: int) -> Recipe:
    optimizer = OptimizerConfig(lr=LR, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
    role = RoleConfig(ranks=ranks, sequence_parallel=shared, zero_stage=stage, micro_batch_tokens=budget)
    return Recipe(name="t", seed=SEED, reward=RewardConfig(optimizer=optimizer), placement=PlacementConfig(reward=role))


def train(rank: Rank, folder: Path, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Metrics of two updates, rewards after them; the model is saved with a shift."""
    role = RewardTrainingRole(recipe, str(folder), 2, rank)
    role.set_data(pairs())
    metrics = [role.update(CHOSEN) for _ in range(2)]
    share = role.rewards(pairs().sequences)
    role.save_shifted(out, shift=-0.25)
    return {"metrics": metrics, "share": share}


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """Losses, accuracies and gradient norms of two plain updates, and the rewards after them."""
    classifier = load_classifier(folder, ModelConfig())
    init_reward_head(classifier, SEED)

    losses, accuracies, norms = [], [], []
    for _ in range(2):
        rewards = read(classifier)
        ahead = rewards[0::2] - rewards[1::2]
        loss = torch.log1p(torch.exp(-(ahead - torch.tensor([0.0, 0.5, 1.0])))).mean()
        classifier.zero_grad()
        loss.backward()
        losses.append(loss.item())
        accuracies.append((ahead > 0).float().mean().item())
        norms.append(torch.cat([p.grad.flatten() for p in classifier.parameters()]).norm().item())
        with torch.no_grad():
            for p in classifier.parameters():
                p -= LR * p.grad / (p.grad.abs() + 1)
    return {
        "train/loss": losses,
        "train/accuracy": accuracies,
        "train/grad_norm": norms,
        "rewards": read(classifier).detach(),
    }


@pytest.mark.parametrize(
    ("ranks", "stage", "budget", "shared"),
    [(1, 0, 1000, 1), (1, 1, 15, 1), (2, 1, 15, 1), (2, 2, 100, 1), (2, 3, 15, 1), (2, 1, 15, 2), (2, 3, 100, 2)],
)
def test_two_updates_are_the_plain_ones_and_the_model_is_saved_as_it_is(
    ranks: int,
    stage: int,
    budget: int,
    shared: int,
    folder: Path,
    expected: Any,
    crews: dict[int, Crew],
    tmp_path: Path,
) -> None:
    answers = crews[ranks].run(train, folder, recipe(ranks, stage, budget, shared), tmp_path)
    for answer in answers:
        for name in ("train/loss", "train/accuracy", "train/grad_norm"):
            assert [m[name] for m in answer["metrics"]] == pytest.approx(expected[name], rel=1e-5), name
    rewards = join_samples([answer["share"] for answer in answers], 6)
    np.testing.assert_allclose(rewards, expected["rewards"], rtol=1e-4, atol=1e-4)
    train_tokenizer([], 258).save_pretrained(tmp_path)
    saved = load_classifier(tmp_path, ModelConfig())
    assert reward_shift(saved) == -0.25
    np.testing.assert_allclose(read(saved).detach(), rewards, rtol=1e-5, atol=1e-5)


def start(rank: Rank, folder: Path) -> BlockResult:
    """Rewards before any update."""
    role = RewardTrainingRole(recipe(1, 0, 1000, 1), str(folder), 2, rank)
    return role.rewards(pairs().sequences)


def test_a_finished_reward_model_goes_on_from_its_own_head(one_rank: Crew, tmp_path: Path) -> None:
    """The shift is not trained: it is measured again at the end, on the raw output."""
    finished = tiny_classifier("mistral")
    finished.score = torch.nn.Linear(32, 1)
    finished.config.update({"rlhf_reward_shift": 5.0})
    finished.save_pretrained(tmp_path)
    found = join_samples(one_rank.run(start, tmp_path), 6)
    np.testing.assert_allclose(found, read(finished).detach(), rtol=1e-4, atol=1e-5)


def test_an_encoder_is_no_start(one_rank: Crew, tmp_path: Path) -> None:
    tiny_classifier("bert").save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="BertForSequenceClassification, which does not read its score at the last token"
    ):
        one_rank.run(start, tmp_path)
