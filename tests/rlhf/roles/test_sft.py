"""Supervised updates on real DeepSpeed ranks, against the cross-entropy that transformers computes itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config.schema import (
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    Recipe,
    RoleConfig,
    RolloutConfig,
    SFTConfig,
)
from rlhf.models.load import load_causal
from rlhf.roles.block_result import join_tokens
from rlhf.roles.sft import SFTRole
from rlhf.roles.supervised_data import ExampleData
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences, tiny_model, whole

LR = 0.5
TRAIN, HELD_OUT = random_sequences((3, 5), (1, 4), (6, 1), (2, 7)), random_sequences((2, 3), (5, 2), (1, 1), seed=1)
CHOSEN = [3, 0, 1]
MASK = [True, True, False, False, True] + [True] * 4 + [True] + [False, True, True, False, True, True, True]
"""Of the responses of 5, 4, 1 and 7 tokens; the first and the last have gaps, as where several turns are trained on."""
TOKENS = 5 + 3 + 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2, whose head is tied to its embedding."""
    path = tmp_path_factory.mktemp("sft")
    tiny_model(AutoModelForCausalLM, "qwen2").save_pretrained(path)
    return path


def recipe(ranks: int, stage: int, budget: int, shared: int) -> Recipe:
    """The sampling temperature is not 1: supervised training must not take it."""
    optimizer = OptimizerConfig(lr=LR, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
    role = RoleConfig(ranks=ranks, sequence_parallel=shared, zero_stage=stage, micro_batch_tokens=budget)
    return Recipe(
        name="test",
        sft=SFTConfig(optimizer=optimizer),
        rollout=RolloutConfig(temperature=0.5),
        placement=PlacementConfig(policy=role),
    )


def train(rank: Rank, folder: Path, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Metrics of two updates and log-probabilities of held-out completions after them; the model is saved."""
    role = SFTRole(recipe, str(folder), 2, rank)
    role.set_data(
        ExampleData(sequences=TRAIN, mask=np.array(MASK)),
        ExampleData(sequences=HELD_OUT, mask=np.ones(6, dtype=bool)),
    )
    metrics = [role.update(CHOSEN) for _ in range(2)]
    share = role.held_out_logprobs()
    role.save(out)
    return {"metrics": metrics, "share": share}


def cross_entropy(lm: Any, sequences: Any, i: int, trained: Any = slice(None)) -> torch.Tensor:
    """Sum over the trained tokens of the response; −100 leaves the others and the prompt out."""
    tokens = whole(sequences, i)
    labels = torch.full_like(tokens, -100)
    begin = int(sequences.prompt_lengths[i])
    labels[0, begin:][trained] = tokens[0, begin:][trained]
    return lm(tokens, labels=labels).loss * int((labels != -100).sum())


def trained(i: int) -> torch.Tensor:
    """The part of ``MASK`` for sample i."""
    begin = [0, 5, 9, 10][i]
    return torch.tensor(MASK[begin : begin + int(TRAIN.response_lengths[i])])


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """Losses and gradient norms of two plain updates; the held-out sum and the weights after them."""
    lm = load_causal(folder, ModelConfig())
    losses, norms = [], []
    for _ in range(2):
        loss = torch.stack([cross_entropy(lm, TRAIN, i, trained(i)) for i in CHOSEN]).sum() / TOKENS
        lm.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.cat([p.grad.flatten() for p in lm.parameters()]).norm().item())
        with torch.no_grad():
            for p in lm.parameters():
                p -= LR * p.grad / (p.grad.abs() + 1)
        held_out = sum(cross_entropy(lm, HELD_OUT, i).item() for i in range(3))
    return {"train/loss": losses, "train/grad_norm": norms, "held_out": held_out, "weights": lm.state_dict()}


@pytest.mark.parametrize(
    ("ranks", "stage", "budget", "shared"),
    [(1, 0, 1000, 1), (1, 1, 9, 1), (2, 1, 12, 1), (2, 2, 9, 1), (2, 3, 9, 1), (2, 1, 12, 2), (2, 3, 9, 2)],
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
    assert_plain(crews[ranks].run(train, folder, recipe(ranks, stage, budget, shared), tmp_path), expected, tmp_path)


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[Crew]:
    """A group of four."""
    crew = Crew(4)
    yield crew
    crew.stop()


def test_groups_of_ranks_that_share_rows_divide_the_work_among_them(
    folder: Path, expected: Any, four_ranks: Crew, tmp_path: Path
) -> None:
    """Three samples over two groups of two ranks."""
    answers = four_ranks.run(train, folder, recipe(4, 2, 9, 2), tmp_path)
    assert_plain(answers, expected, tmp_path)
    told = [sorted(answer["share"].samples) for answer in answers]
    assert told[1] == told[3] == [] and sorted(told[0] + told[2]) == [0, 1, 2]


def assert_plain(answers: list[Any], expected: Any, saved_to: Path) -> None:
    """All ranks report the metrics of plain updates, and the saved model equals theirs."""
    for answer in answers:
        assert [m["train/tokens"] for m in answer["metrics"]] == [TOKENS] * 2
        for name in ("train/loss", "train/grad_norm"):
            assert [m[name] for m in answer["metrics"]] == pytest.approx(expected[name], rel=1e-5), name
    held_out = join_tokens([answer["share"] for answer in answers], HELD_OUT)
    assert -held_out.sum() == pytest.approx(expected["held_out"], rel=1e-5)
    saved = load_causal(saved_to, ModelConfig()).state_dict()
    for name, weight in expected["weights"].items():
        scale = float(weight.abs().max())
        np.testing.assert_allclose(saved[name], weight, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
