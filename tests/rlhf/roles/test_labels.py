"""KTO and the pointwise reward model on real DeepSpeed ranks, against the losses in plain PyTorch; and their data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config.schema import (
    DPOConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    Recipe,
    RewardConfig,
    RoleConfig,
)
from rlhf.models.load import load_causal
from rlhf.roles.block_result import join_samples
from rlhf.roles.kto import KTORole
from rlhf.roles.labelled_reward import LabelledRewardRole
from rlhf.roles.supervised_data import (
    LabelledData,
    PairData,
    held_out_kto_metrics,
    mismatched_pairs,
    response_logprobs,
)
from rlhf.types import LabelledResponse, Sequences
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences, tiny_model, whole

BETA, LR, GOOD, BAD = 0.5, 0.5, 1.0, 1.5
ANSWERS = random_sequences((3, 5), (2, 6), (4, 3), (1, 7), (5, 2))
LABELS = [True, False, False, True, True]
PROMPTS = [0, 1, 1, 2, 3]
CHOSEN = [4, 1, 2]
"""Answers of one update: odd on two ranks."""


def answers() -> list[LabelledResponse]:
    """The answers, of which the second and third are to one prompt by their id."""
    found = []
    for i, (is_good, prompt_id) in enumerate(zip(LABELS, PROMPTS, strict=True)):
        tokens, cut = whole(ANSWERS, i)[0].numpy().astype(np.int32), int(ANSWERS.prompt_lengths[i])
        found.append(LabelledResponse(prompt=tokens[:cut], response=tokens[cut:], is_good=is_good, prompt_id=prompt_id))
    return found


def recipe(ranks: int, stage: int, budget: int) -> Recipe:
    optimizer = OptimizerConfig(lr=LR, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
    role = RoleConfig(ranks=ranks, zero_stage=stage, micro_batch_tokens=budget)
    kto = DPOConfig(loss="kto", beta=BETA, desirable_weight=GOOD, undesirable_weight=BAD, optimizer=optimizer)
    return Recipe(
        name="test",
        dpo=kto,
        reward=RewardConfig(loss="pointwise", optimizer=optimizer),
        placement=PlacementConfig(policy=role, reward=role),
    )


def test_a_mismatched_response_answers_another_prompt_and_fits_the_context() -> None:
    labelled = answers()
    pairs = mismatched_pairs(labelled, context=6)
    others = [1, 3, 3, 4, 0]  # the next one whose prompt is another; the second skips the third
    for i, other in enumerate(others):
        assert pairs[i].prompt.tolist() == labelled[i].prompt.tolist()
        assert pairs[i].chosen.tolist() == labelled[i].response.tolist()
        room = 6 - len(labelled[i].prompt)
        assert pairs[i].rejected.tolist() == labelled[other].response[:room].tolist()
    [alone] = mismatched_pairs(labelled[:1], context=100)
    assert alone.rejected.tolist() == labelled[0].response.tolist()


def test_held_out_metrics_of_kto_by_hand() -> None:
    data = replace(LabelledData.pack(answers()[:2]), prompt_ids=np.array([0, 1]))
    # true answers: h = 1 (good) and 1 (bad); mismatched: 0.5 and 0.1, so z = 0.3
    logprobs = np.array([-4.0, -2.5, -6.0, -3.9], dtype=np.float32)
    reference = np.array([-5.0, -3.0, -7.0, -4.0], dtype=np.float32)
    found = held_out_kto_metrics(logprobs, reference, data, DPOConfig(loss="kto", beta=2.0))
    assert found["eval/accuracy"] == 0.5
    assert found["eval/loss"] == pytest.approx((0.197816 + 0.802184) / 2, abs=1e-5)  # 1 − σ(1.4), σ(1.4)
    assert found["eval/rewards_margin"] == pytest.approx(0.0, abs=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2."""
    path = tmp_path_factory.mktemp("labels")
    tiny_model(AutoModelForCausalLM, "qwen2").save_pretrained(path)
    return path


def train_kto(rank: Rank, folder: Path, recipe: Recipe) -> list[dict[str, float]]:
    """Metrics of two updates."""
    role = KTORole(recipe, str(folder), 2, rank)
    pairs = PairData.pack(mismatched_pairs(answers(), context=100)).sequences
    parts: list[Any] = [None] * rank.world
    own = role.logprobs(pairs)
    if rank.world > 1:
        torch.distributed.all_gather_object(parts, own)
    else:
        parts = [own]
    role.set_data(pairs, response_logprobs(parts, pairs))
    role.set_labels(np.array(LABELS))
    return [role.update(CHOSEN) for _ in range(2)]


def plain_logprobs(lm: Any, sequences: Sequences) -> torch.Tensor:
    """(2K,) each answer alone, by transformers' own cross-entropy; −100 leaves the prompt out."""
    sums = []
    for i in range(len(sequences)):
        tokens = whole(sequences, i)
        labels = tokens.clone()
        labels[0, : sequences.prompt_lengths[i]] = -100
        sums.append(-lm(tokens, labels=labels).loss * int(sequences.response_lengths[i]))
    return torch.stack(sums)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, float]]:
    """Metrics of two plain updates, the loss written out as in the paper."""
    lm = load_causal(folder, ModelConfig())
    pairs = PairData.pack(mismatched_pairs(answers(), context=100)).sequences
    is_good = torch.tensor(LABELS)[CHOSEN]
    with torch.no_grad():
        reference = plain_logprobs(lm, pairs)
    rows = []
    for _ in range(2):
        ratios = plain_logprobs(lm, pairs) - reference
        h, z = ratios[0::2][CHOSEN], ratios[1::2][CHOSEN].detach().mean().clamp(min=0)
        good, bad = GOOD * (1 - torch.sigmoid(BETA * (h - z))), BAD * (1 - torch.sigmoid(BETA * (z - h)))
        loss = torch.where(is_good, good, bad).mean()
        lm.zero_grad()
        loss.backward()
        rows.append(
            {
                "train/loss": loss.item(),
                "train/accuracy": ((h > z) & is_good | (h < z) & ~is_good).float().mean().item(),
                "objective/kl": z.item(),
                "rewards/chosen": (BETA * h[is_good]).mean().item(),
                "rewards/rejected": (BETA * h[~is_good]).mean().item(),
                "train/grad_norm": torch.cat([p.grad.flatten() for p in lm.parameters()]).norm().item(),
            }
        )
        with torch.no_grad():
            for p in lm.parameters():
                p -= LR * p.grad / (p.grad.abs() + 1)
    return rows


@pytest.mark.parametrize(("ranks", "stage", "budget"), [(1, 0, 16), (2, 1, 1000), (2, 3, 30)])
def test_two_updates_of_kto_are_the_plain_ones(
    ranks: int, stage: int, budget: int, folder: Path, expected: list[dict[str, float]], crews: dict[int, Crew]
) -> None:
    for rows in crews[ranks].run(train_kto, folder, recipe(ranks, stage, budget)):
        for row, wanted in zip(rows, expected, strict=True):
            assert {name: row[name] for name in wanted} == pytest.approx(wanted, abs=2e-5)
    assert expected[1]["train/loss"] < expected[0]["train/loss"]


def train_reward(rank: Rank, folder: Path, recipe: Recipe) -> tuple[np.ndarray, dict[str, float], np.ndarray]:
    """Raw rewards (of one rank only) before an update, the update's metrics, and the rewards after twenty more."""
    role = LabelledRewardRole(recipe, str(folder), 25, rank)
    data = LabelledData.pack(answers())
    role.set_labelled(data)
    before = join_samples([role.rewards(data.sequences)], len(LABELS)) if rank.world == 1 else np.zeros(0)
    metrics = [role.update(CHOSEN), *(role.update(range(5)) for _ in range(20))]
    return before, metrics[0], join_samples([role.rewards(data.sequences)], len(LABELS)) if rank.world == 1 else before


def test_a_reward_model_learns_which_answers_are_good(folder: Path, crews: dict[int, Crew]) -> None:
    [(before, metrics, after)] = crews[1].run(train_reward, folder, recipe(1, 0, 1000))
    signs = np.where(LABELS, 1, -1)
    loss = np.log1p(np.exp(-(before * signs)[CHOSEN])).mean()
    assert metrics["train/loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["train/accuracy"] == pytest.approx(((before > 0) == np.array(LABELS))[CHOSEN].mean())
    assert (after * signs > 0).all()


def test_the_loss_of_a_reward_model_is_the_same_on_two_ranks(folder: Path, crews: dict[int, Crew]) -> None:
    [(_, one, _)] = crews[1].run(train_reward, folder, recipe(1, 0, 1000))
    for _, metrics, _ in crews[2].run(train_reward, folder, recipe(2, 1, 12)):
        for name in ("train/loss", "train/accuracy", "train/grad_norm"):
            assert metrics[name] == pytest.approx(one[name], abs=1e-5), name
