"""The update of DPO on real DeepSpeed ranks, against the same loss on each answer alone, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.config.schema import (
    DPOConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    Recipe,
    RoleConfig,
    RolloutConfig,
)
from rlhf.errors import CanaryError
from rlhf.models.load import load_causal
from rlhf.roles.block_result import BlockResult
from rlhf.roles.dpo import DPORole
from rlhf.roles.supervised_data import held_out_metrics, response_logprobs
from rlhf.types import Float32, Sequences
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences, tiny_model, whole

BETA, SMOOTHING, LR = 0.3, 0.1, 0.5
TRAIN = random_sequences((3, 5), (3, 2), (2, 6), (2, 1), (4, 4), (4, 3), (1, 2), (1, 7))
HELD_OUT = random_sequences((2, 3), (2, 5), (5, 1), (5, 4), (1, 4), (1, 2), seed=1)
CHOSEN = [2, 0, 3]
"""Pairs of one update: odd on two ranks; pair 1 is left out."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2, whose head is tied to its embedding."""
    path = tmp_path_factory.mktemp("dpo")
    tiny_model(AutoModelForCausalLM, "qwen2").save_pretrained(path)
    return path


def recipe(ranks: int, stage: int, budget: int, shared: int = 1, loss: Any = "dpo") -> Recipe:
    """The sampling temperature is not 1: comparisons must not use it."""
    optimizer = OptimizerConfig(lr=LR, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
    role = RoleConfig(ranks=ranks, sequence_parallel=shared, zero_stage=stage, micro_batch_tokens=budget)
    return Recipe(
        name="test",
        dpo=DPOConfig(loss=loss, beta=BETA, label_smoothing=SMOOTHING if loss == "dpo" else 0.0, optimizer=optimizer),
        rollout=RolloutConfig(temperature=0.5),
        placement=PlacementConfig(policy=role),
    )


def shares(own: BlockResult, rank: Rank) -> list[BlockResult]:
    """All ranks' shares on every rank, as the controller distributes them."""
    everyone: list[Any] = [own] * rank.world
    if rank.world > 1:
        torch.distributed.all_gather_object(everyone, own)
    return everyone


def logprobs(role: DPORole, sequences: Sequences, rank: Rank) -> Float32:
    is_mean = not role.recipe.dpo.has_reference
    return response_logprobs(shares(role.logprobs(sequences), rank), sequences, is_mean)


def train(rank: Rank, folder: Path, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Metrics of two updates, and held-out metrics after them; the model is saved."""
    role = DPORole(recipe, str(folder), 2, rank)
    has_reference = recipe.dpo.has_reference
    reference, held_out = (logprobs(role, data, rank) * np.float32(has_reference) for data in (TRAIN, HELD_OUT))
    role.set_data(TRAIN, reference)
    metrics = [role.update(CHOSEN) for _ in range(2)]
    evaluated = held_out_metrics(logprobs(role, HELD_OUT, rank), held_out, np.arange(len(HELD_OUT) // 2), recipe.dpo)
    role.save(out)
    return {"reference": reference, "metrics": metrics, "held_out": evaluated}


def plain_logprobs(lm: PreTrainedModel, sequences: Sequences) -> torch.Tensor:
    """(2K,) Each answer alone, by transformers' own cross-entropy; −100 leaves the prompt out."""
    sums = []
    for i in range(len(sequences)):
        tokens = whole(sequences, i)
        labels = tokens.clone()
        labels[0, : sequences.prompt_lengths[i]] = -100
        sums.append(-lm(tokens, labels=labels).loss * int(sequences.response_lengths[i]))
    return torch.stack(sums)


def plain_terms(lm: PreTrainedModel, sequences: Sequences, reference: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss of each pair and rewards of each answer, written out as in the papers."""
    log_ratios = plain_logprobs(lm, sequences) - reference
    h = BETA * (log_ratios[0::2] - log_ratios[1::2])
    loss = -(1 - SMOOTHING) * torch.log(torch.sigmoid(h)) - SMOOTHING * torch.log(torch.sigmoid(-h))
    return {"loss": loss, "rewards": BETA * log_ratios, "margins": h}


def plain_ipo(lm: PreTrainedModel, sequences: Sequences, reference: torch.Tensor) -> dict[str, torch.Tensor]:
    terms = plain_terms(lm, sequences, reference)
    return terms | {"loss": (terms["margins"] / BETA - 1 / (2 * BETA)) ** 2}


def plain_orpo(lm: PreTrainedModel, sequences: Sequences, reference: torch.Tensor) -> dict[str, torch.Tensor]:
    """−log P_c − λ log σ(log (odds_c/odds_r)), P the geometric mean of an answer's token probabilities."""
    means = plain_logprobs(lm, sequences) / torch.from_numpy(sequences.response_lengths)
    odds = means.exp() / (1 - means.exp())
    ratio = odds[0::2] / odds[1::2]
    rewards = BETA * means
    loss = -means[0::2] - BETA * (ratio / (1 + ratio)).log()
    return {"loss": loss, "rewards": rewards, "margins": rewards[0::2] - rewards[1::2]}


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """Metrics and weights of two plain updates."""
    return plain_training(folder, plain_terms)


def plain_training(folder: Path, plain_terms: Callable[..., dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Metrics and weights of two plain updates with a loss."""
    lm = load_causal(folder, ModelConfig())
    with torch.no_grad():
        reference, held_out_reference = plain_logprobs(lm, TRAIN), plain_logprobs(lm, HELD_OUT)
    rows = []
    for _ in range(2):
        logps = plain_logprobs(lm, TRAIN).detach()
        terms = plain_terms(lm, TRAIN, reference)
        loss = terms["loss"][CHOSEN].mean()
        lm.zero_grad()
        loss.backward()
        rewards = terms["rewards"].detach()
        rows.append(
            {
                "train/loss": loss.item(),
                "rewards/chosen": rewards[0::2][CHOSEN].mean().item(),
                "rewards/rejected": rewards[1::2][CHOSEN].mean().item(),
                "rewards/margins": terms["margins"].detach()[CHOSEN].mean().item(),
                "rewards/accuracies": (terms["margins"][CHOSEN] > 0).float().mean().item(),
                "logps/chosen": logps[0::2][CHOSEN].mean().item(),
                "logps/rejected": logps[1::2][CHOSEN].mean().item(),
                "train/grad_norm": torch.cat([p.grad.flatten() for p in lm.parameters()]).norm().item(),
                "lr": LR,
            }
        )
        with torch.no_grad():
            for p in lm.parameters():
                p -= LR * p.grad / (p.grad.abs() + 1)
    with torch.no_grad():
        held_out = plain_terms(lm, HELD_OUT, held_out_reference)
    return {"reference": reference, "rows": rows, "held_out": held_out, "weights": lm.state_dict()}


@pytest.mark.parametrize(
    ("ranks", "stage", "budget", "shared"),
    [(1, 0, 1000, 1), (1, 1, 16, 1), (2, 1, 16, 1), (2, 2, 100, 1), (2, 3, 30, 1), (2, 1, 16, 2), (2, 3, 100, 2)],
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
    for answer in crews[ranks].run(train, folder, recipe(ranks, stage, budget, shared), tmp_path):
        np.testing.assert_allclose(answer["reference"], expected["reference"], rtol=1e-5)
        first, second = answer["metrics"]
        assert first["train/loss"] == pytest.approx(0.693147, abs=1e-5)
        assert [first[f"rewards/{name}"] for name in ("chosen", "rejected", "margins")] == pytest.approx(
            [0] * 3, abs=1e-5
        )
        assert first["logps/chosen"] == pytest.approx(expected["rows"][0]["logps/chosen"], rel=1e-5)
        assert first["train/grad_norm"] == pytest.approx(expected["rows"][0]["train/grad_norm"], rel=1e-5)
        assert second.pop("perf/model_tflops") > 0
        assert second == pytest.approx(expected["rows"][1], rel=2e-5, abs=2e-5)
        margins = expected["held_out"]["margins"]
        assert answer["held_out"]["eval/loss"] == pytest.approx(expected["held_out"]["loss"].mean().item(), rel=1e-4)
        assert answer["held_out"]["eval/rewards_margin"] == pytest.approx(margins.mean().item(), rel=1e-4)
        assert answer["held_out"]["eval/accuracy"] == pytest.approx((margins > 0).float().mean().item())
    saved = load_causal(tmp_path, ModelConfig()).state_dict()
    for name, weight in expected["weights"].items():
        scale = float(weight.abs().max())
        np.testing.assert_allclose(saved[name], weight, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize(("loss", "terms"), [("ipo", plain_ipo), ("orpo", plain_orpo)])
@pytest.mark.parametrize(("ranks", "stage", "budget"), [(1, 1, 16), (2, 2, 100)])
def test_the_updates_of_other_losses_are_the_plain_ones(
    ranks: int, stage: int, budget: int, loss: str, terms: Any, folder: Path, crews: dict[int, Crew], tmp_path: Path
) -> None:
    """IPO's gradients are ten times those of DPO, and so are the differences that rounding makes."""
    plain = plain_training(folder, terms)
    for answer in crews[ranks].run(train, folder, recipe(ranks, stage, budget, loss=loss), tmp_path):
        first, second = answer["metrics"]
        assert second.pop("perf/model_tflops") > 0
        row = plain["rows"][1]
        if loss == "orpo":  # means over tokens
            row = {name: value for name, value in row.items() if not name.startswith("logps")}
            assert second["logps/chosen"] == pytest.approx(row["rewards/chosen"] / BETA, rel=2e-5)
        assert {name: second[name] for name in row} == pytest.approx(row, rel=2e-5, abs=2e-5)
        assert first["train/loss"] != pytest.approx(second["train/loss"], rel=1e-3)
        assert answer["held_out"]["eval/loss"] == pytest.approx(plain["held_out"]["loss"].mean().item(), rel=1e-4)
    saved = load_causal(tmp_path, ModelConfig()).state_dict()
    for name, weight in plain["weights"].items():
        scale = float(weight.abs().max())
        np.testing.assert_allclose(saved[name], weight, rtol=1e-4, atol=1e-4 * scale, err_msg=name)


def start_elsewhere(rank: Rank, folder: Path, recipe: Recipe) -> None:
    """A reference that differs from the policy by one nat per answer."""
    role = DPORole(recipe, str(folder), 2, rank)
    role.set_data(TRAIN, logprobs(role, TRAIN, rank) + 1)
    role.update(CHOSEN)


def test_a_reference_that_is_not_the_policy_is_refused_at_the_first_update(
    folder: Path, crews: dict[int, Crew]
) -> None:
    with pytest.raises(CanaryError, match="objective/logratio_abs_mean = 0.26"):  # 6 nats over 23 tokens
        crews[1].run(start_elsewhere, folder, recipe(1, 0, 1000))


def resume(rank: Rank, folder: Path, recipe: Recipe) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the second update, as it is and after a restart, whose reference is that of the start."""
    role = DPORole(recipe, str(folder), 2, rank)
    reference = logprobs(role, TRAIN, rank)
    role.set_data(TRAIN, reference)
    role.update(CHOSEN)
    files = [{name: [each.copy() for each in parts] for name, parts in part.items()} for part in role.snapshot()]
    second, again = role.update(CHOSEN), DPORole(recipe, str(folder), 2, rank)
    again.set_data(TRAIN, reference)
    again.restore(*files)
    return second, again.update(CHOSEN)


def test_a_policy_that_resumes_is_not_compared_with_its_reference(folder: Path, crews: dict[int, Crew]) -> None:
    """It has left it at the first update."""
    [(second, again)] = crews[1].run(resume, folder, recipe(1, 1, 1000))
    for metrics in (second, again):
        assert metrics.pop("perf/model_tflops") > 0
    assert second == again


def test_held_out_metrics_by_hand() -> None:
    """βh = ±½ log 3: −log σ = log(1 + 3^−½) = .455746 and log(1 + 3^½) = 1.005053, mean .730399."""
    log3 = float(np.log(3))
    logps = np.array([-4 + log3, -9, -6, -8 + log3], dtype=np.float32)
    start = np.array([-4, -9, -6, -8], dtype=np.float32)
    metrics = held_out_metrics(logps, start, np.array([0, 1]), DPOConfig(beta=0.5))
    assert metrics["eval/loss"] == pytest.approx(0.730399, abs=1e-5)
    assert metrics["eval/rewards_margin"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["eval/accuracy"] == 0.5
    # Wilson's interval of 1 in 2 at 95%, from scipy.stats.binomtest(1, 2).proportion_ci(method="wilson")
    assert metrics["eval/accuracy_ci_low"] == pytest.approx(0.094531, abs=1e-5)
    assert metrics["eval/accuracy_ci_high"] == pytest.approx(0.905469, abs=1e-5)
    # Two pairs of one prompt are one observation, of which a half is right: Wilson's, ½ ± ½ · 1.96/√(1 + 1.96²)
    metrics = held_out_metrics(logps, start, np.array([5, 5]), DPOConfig(beta=0.5))
    assert metrics["eval/accuracy_ci_low"] == pytest.approx(0.054621, abs=1e-5)
    assert metrics["eval/accuracy_ci_high"] == pytest.approx(0.945379, abs=1e-5)


def test_the_held_out_loss_is_smoothed_as_the_training_loss() -> None:
    """σ(log 3) = 3/4: −.9 log(3/4) − .1 log(1/4) = .397543."""
    logps, start = np.log(np.array([3, 1], dtype=np.float32)), np.zeros(2, dtype=np.float32)
    metrics = held_out_metrics(logps, start, np.zeros(1), DPOConfig(beta=1.0, label_smoothing=0.1))
    assert metrics["eval/loss"] == pytest.approx(0.397543, abs=1e-5)
    assert metrics["eval/rewards_margin"] == pytest.approx(1.098612, abs=1e-5)
