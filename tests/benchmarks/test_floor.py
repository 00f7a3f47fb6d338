"""The benchmark compares like with like: lengths, log-probabilities and values of the floor are the project's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import floor
from benchmarks.models import make
from benchmarks.workload import WORKLOADS
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.models.scalar import ScalarNet
from rlhf.types import Sequences

FIXED, REAL = WORKLOADS["fixed-ppo"], WORKLOADS["real-grpo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark")
    make(FIXED, path)
    make(REAL, path)
    return path


@pytest.fixture(scope="module")
def tokens(folder: Path) -> torch.Tensor:
    """(4, 80) four prompts and random responses."""
    prompts = torch.tensor(floor.prompt_tokens(folder / FIXED.models, FIXED)[:4])
    assert prompts.shape == (4, 16)
    return torch.cat([prompts, torch.randint(2, 512, (4, 64), generator=torch.Generator().manual_seed(0))], dim=1)


def probabilities(bare: floor.Floor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the end token at each position, and of the likeliest other token."""
    with torch.no_grad():
        likely = bare.policy(input_ids=tokens).logits.softmax(dim=-1)
    end = likely[..., bare.policy.config.eos_token_id].clone()
    likely[..., bare.policy.config.eos_token_id] = 0
    return end, likely.amax(dim=-1)


def test_fixed_responses_never_end(folder: Path, tokens: torch.Tensor) -> None:
    """The other 511 tokens stay about equally likely."""
    bare = floor.Floor(folder / FIXED.models, FIXED)
    assert sum(parameter.numel() for parameter in bare.policy.parameters()) == pytest.approx(3.3e6, rel=0.01)
    end, others = probabilities(bare, tokens)
    assert end.max() == 0
    assert others.max() < 10 / 511


def test_real_responses_end_at_the_wanted_rate_everywhere(folder: Path, tokens: torch.Tensor) -> None:
    """p = 0.0153 solves (1 − (1 − p)^256) / p = 64: 0.0153 · 64 = 0.979 = 1 − 0.9847^256."""
    bare = floor.Floor(folder / REAL.models, REAL)
    assert bare.critic is None
    end, others = probabilities(bare, tokens)
    assert end.mean().item() == pytest.approx(0.0153, rel=0.05)
    assert end.min() > 0.008
    assert end.max() < 0.03
    assert others.max() < 10 / 511


def test_prompts_repeat_within_a_group(folder: Path) -> None:
    prompts = floor.prompt_tokens(folder / REAL.models, REAL)
    assert len(prompts) == 128
    assert prompts[0] == prompts[7] != prompts[8] == prompts[15]


def test_the_floor_computes_what_the_roles_compute(folder: Path, tokens: torch.Tensor) -> None:
    bare = floor.Floor(folder / FIXED.models, FIXED)
    assert bare.critic is not None
    sequences = Sequences.pack((row[:16].numpy(), row[16:].numpy()) for row in tokens)
    with torch.no_grad():
        expected = floor.logprobs(bare.policy, tokens), floor.values(bare.critic, tokens)
        row = pack_row(sequences, range(4), "cpu")
        found = PolicyNet(bare.policy)(row, 1.0)[0], ScalarNet(bare.critic)(row, row.predict_at)
    for ours, floors in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, floors.flatten(), rtol=1e-4, atol=1e-5)


def test_padding_changes_no_log_probability_of_a_token(folder: Path, tokens: torch.Tensor) -> None:
    bare = floor.Floor(folder / REAL.models, REAL)
    prompts, responses = tokens[:, :16].tolist(), [tokens[0, 16:].tolist(), tokens[1, 16:26].tolist()]
    padded, mask = bare.pad(prompts[:2], responses)
    assert padded.shape == (2, 80)
    assert mask.sum(dim=1).tolist() == [64, 10]
    assert floor.last_tokens(mask).tolist() == [63, 9]
    with torch.no_grad():
        both, alone = floor.logprobs(bare.policy, padded), floor.logprobs(bare.policy, padded[1:, :26])
    torch.testing.assert_close(both[1:, :10], alone, rtol=1e-4, atol=1e-5)


def test_advantages_by_hand() -> None:
    """λ = 0.95, γ = 1. Rewards 0 and 1, values 0.5 and 0.2, and a padded position: δ₁ = 1 − 0.2 = 0.8 and
    δ₀ = 0.2 − 0.5 = −0.3, A₀ = −0.3 + 0.95 · 0.8 = 0.46. A group with scores 1 and 3 has ±1/√2."""
    found = floor.gae(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.5, 0.2, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.46, 0.8, 0.0]]))
    group = floor.group_advantages(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2)
    torch.testing.assert_close(group, torch.tensor([-0.7071, 0.7071, 0.0, 0.0]), rtol=0, atol=1e-4)
    white = floor.whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(white, torch.tensor([[-0.7071, 0.7071, 0.0]]), rtol=0, atol=1e-4)


def test_a_bfloat16_model_is_updated_through_float32_weights() -> None:
    """An update of 1e-5 is lost in bfloat16 at 1, and kept in the float32 weights."""
    model = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    trained = floor.Trained(model)
    for _ in range(2):
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        trained.step()
        assert model.weight.grad is None
    assert model.weight.item() == 1.0
    assert trained.masters[0].item() == pytest.approx(1 - 2e-5 - 2e-7, abs=1e-6)
