"""The benchmark compares like with like: lengths, log-probabilities and values of the floor are the project's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from benchmarks import floor, workload
from benchmarks.step_time import BUDGETS, table
from rlhf.config.load import load_recipe
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.models.scalar import ScalarNet
from rlhf.types import Sequences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark")
    workload.make(path)
    return path


@pytest.fixture(scope="module")
def tokens(folder: Path) -> torch.Tensor:
    """(4, 80) four prompts and random responses."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    prompts = torch.tensor([tokenizer(text)["input_ids"] for text in workload.prompts()[:4]])
    assert prompts.shape == (4, 16)
    return torch.cat([prompts, torch.randint(2, 512, (4, 64), generator=torch.Generator().manual_seed(0))], dim=1)


def test_no_response_ends_before_its_longest_length(folder: Path, tokens: torch.Tensor) -> None:
    """The other 511 tokens stay about equally likely."""
    bare = floor.Floor(folder)
    assert sum(parameter.numel() for parameter in bare.policy.parameters()) == pytest.approx(3.3e6, rel=0.01)
    with torch.no_grad():
        likely = bare.policy(input_ids=tokens).logits.softmax(dim=-1)
    end = bare.policy.config.eos_token_id
    assert likely[..., end].max() < 1e-30
    assert likely.max() < 10 / 511


def test_the_floor_computes_what_the_roles_compute(folder: Path, tokens: torch.Tensor) -> None:
    bare = floor.Floor(folder)
    sequences = Sequences.pack((row[:16].numpy(), row[16:].numpy()) for row in tokens)
    with torch.no_grad():
        expected = floor.logprobs(bare.policy, tokens), floor.values(bare.critic, tokens)
        row = pack_row(sequences, range(4), "cpu")
        found = PolicyNet(bare.policy)(row, 1.0)[0], ScalarNet(bare.critic)(row, row.predict_at)
    for ours, floors in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, floors.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_recipe_loads(budget: int, folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(workload.recipe(folder, "rows", budget, 2)), encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.placement.critic.micro_batch_tokens == budget
    assert recipe.ppo.batch_size // recipe.algorithm.minibatches == floor.MICRO


def test_the_table_has_medians_and_ratios() -> None:
    """Steps of 4, 2 and 9 seconds: a median of 4, twice the floor's."""

    def steps(*seconds: float) -> list[dict[str, float]]:
        return [{"generate": 1.0, "score": 0.5, "update": each - 1.5, "publish": 0.0, "step": each} for each in seconds]

    assert table({"floor": steps(2.0), "rows": steps(4.0, 2.0, 9.0)}).splitlines()[2:] == [
        "| floor | 1.00 | 0.50 | 0.50 | 0.00 | 2.00 | 1.00 | 2.00, 2.00 |",
        "| rows | 1.00 | 0.50 | 2.50 | 0.00 | 4.00 | 2.00 | 2.00, 9.00 |",
    ]
