"""The probes of a model on real DeepSpeed ranks, and a first update of models that differ from Llama."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from rlhf.config.schema import ModelConfig, OptimizerConfig, PlacementConfig, Recipe, RoleConfig, SFTConfig
from rlhf.errors import UserError
from rlhf.models import logprobs
from rlhf.models.examination import Examination
from rlhf.models.scalar import ScalarNet
from rlhf.roles.role import Role
from rlhf.roles.scalar_role import ScalarRole
from rlhf.roles.sft import SFTRole
from rlhf.roles.supervised_data import ExampleData
from rlhf.types import Sequences
from rlhf.zero.process_group import Rank
from tests.architectures import small_model
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import random_sequences
from tests.rlhf.tiny_classifiers import tiny_classifier

TRAIN = random_sequences((3, 25), (1, 4), (6, 1), (2, 17))


def recipe(stage: int, shared: int = 1, model: ModelConfig | None = None) -> Recipe:
    optimizer = OptimizerConfig(lr=1e-3, schedule="constant", max_grad_norm=0.0)
    role = RoleConfig(ranks=2, zero_stage=stage, sequence_parallel=shared)
    return Recipe(
        name="test",
        model=model or ModelConfig(),
        sft=SFTConfig(optimizer=optimizer),
        placement=PlacementConfig(policy=role),
    )


def first_update(rank: Rank, folder: Path, recipe: Recipe) -> tuple[Examination, dict[str, float]]:
    role = SFTRole(recipe, str(folder), 1, rank)
    data = ExampleData(sequences=TRAIN, mask=np.ones(int(TRAIN.response_lengths.sum()), np.bool_))
    role.set_data(data, data)
    return role.examined(), role.update(range(len(TRAIN)))


def plain_loss(lm: PreTrainedModel, sequences: Sequences) -> torch.Tensor:
    """Transformers' cross-entropy of the responses, a mean over their tokens, one sequence at a time."""
    lm.set_attn_implementation("eager")
    total = torch.zeros(())
    for i in range(len(sequences)):
        tokens = torch.tensor([[*sequences.prompt(i), *sequences.response(i)]], dtype=torch.long)
        labels = tokens.clone()
        labels[0, : int(sequences.prompt_lengths[i])] = -100
        total = total + lm(input_ids=tokens, labels=labels).loss * int(sequences.response_lengths[i])
    return total / int(sequences.response_lengths.sum())


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize(
    ("name", "form"), [("Cohere", "packed"), ("Gemma 2", "packed"), ("Granite hybrid", "padded"), ("OPT", "packed")]
)
def test_the_first_updates_loss_and_gradient_are_plain_pytorchs(
    name: str, form: str, stage: int, two_ranks: Crew, tmp_path: Path
) -> None:
    """Logits that are scaled or capped, a tied head, recurrent layers, a backbone that the model bypasses."""
    lm = small_model(name)
    lm.save_pretrained(tmp_path)
    loss = plain_loss(lm, TRAIN)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in lm.parameters() if p.grad is not None]).norm()
    results = two_ranks.run(first_update, tmp_path, recipe(stage))
    assert results[0][0] == results[1][0], "every rank decides the same"
    for examination, metrics in results:
        assert examination.form == form
        assert examination.logprob_gap is not None and examination.logprob_gap < 1e-5
        assert metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert metrics["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_ranks_that_share_rows_compute_the_models_own_logprobs(two_ranks: Crew, tmp_path: Path) -> None:
    small_model("Llama").save_pretrained(tmp_path)
    for examination, _ in two_ranks.run(first_update, tmp_path, recipe(1, shared=2)):
        assert examination.form == "packed"
        assert examination.logprob_gap is not None and examination.logprob_gap < 1e-5


def test_without_packing_every_sequence_has_a_row(two_ranks: Crew, tmp_path: Path) -> None:
    small_model("Llama").save_pretrained(tmp_path)
    for examination, _ in two_ranks.run(first_update, tmp_path, recipe(1, model=ModelConfig(packing="off"))):
        assert (examination.form, examination.packed, examination.notes) == ("padded", None, ())


def test_a_policy_without_a_weight_is_refused_by_its_name(two_ranks: Crew, tmp_path: Path) -> None:
    small_model("Llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for stage in (1, 3):
        with pytest.raises(UserError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
            two_ranks.run(first_update, tmp_path, recipe(stage))


UNEVEN = random_sequences((2, 6), (2, 14))
"""One for each rank: one chunk of logits, and two."""


def in_chunks(rank: Rank, folder: Path, recipe: Recipe) -> list[float]:
    """Losses of two updates, held-out log-probabilities before each, with chunks of 8 tokens."""
    role, before = SFTRole(recipe, str(folder), 2, rank), logprobs.CHUNK
    logprobs.CHUNK = 8 * role.network.head.vocabulary
    data = ExampleData(sequences=UNEVEN, mask=np.ones(20, np.bool_))
    role.set_data(data, data)
    losses = []
    for _ in range(2):
        role.held_out_logprobs()
        losses.append(role.update([0, 1])["train/loss"])
    logprobs.CHUNK = before
    return losses


def test_ranks_may_make_different_numbers_of_chunks(two_ranks: Crew, tmp_path: Path) -> None:
    """Under ZeRO-3 every call of a module is collective."""
    small_model("Gemma 2").save_pretrained(tmp_path)
    sharded, whole = (two_ranks.run(in_chunks, tmp_path, recipe(stage)) for stage in (3, 1))
    assert sharded[0] == pytest.approx(whole[0], rel=1e-5)


def test_memory_that_runs_out_is_not_taken_for_a_classifier_that_needs_its_own_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails_with(error: Exception) -> None:
        def fails(self: Role[ScalarNet], is_saved: bool) -> Examination:
            raise error

        monkeypatch.setattr(Role, "_examine", fails)

    role = ScalarRole.__new__(ScalarRole)
    role.network = ScalarNet(tiny_classifier("llama"), 0)
    fails_with(RuntimeError("shapes differ"))
    assert role._examine(is_saved=False).form == "padded"
    fails_with(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        role._examine(is_saved=False)
