"""Adapters on a base in NF4, on real DeepSpeed ranks: each role against plain PyTorch on the dequantised weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlhf.config.schema import DPOConfig, LoRAConfig, ModelConfig, OptimizerConfig, PlacementConfig, Recipe
from rlhf.errors import UserError
from rlhf.models.load import load_causal, load_classifier, load_policy
from rlhf.models.lora import adapters, plain_tensors
from rlhf.models.scalar import init_reward_head
from rlhf.models.scratch import train_tokenizer
from rlhf.models.stored import dequantised, stored_tensors
from rlhf.roles.block_result import join_samples
from rlhf.roles.dpo import DPORole
from rlhf.roles.policy import PolicyRole
from rlhf.roles.preference import RewardTrainingRole
from rlhf.roles.role import Role
from rlhf.roles.sft import SFTRole
from rlhf.roles.supervised_data import ExampleData, response_logprobs
from rlhf.weights.fingerprint import differences, fingerprint
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.roles.test_policy_lora import (
    SEQUENCES,
    adapter_arrays,
    assert_plain,
    block,
    experience,
    gathered,
    plain_update,
)
from tests.rlhf.roles.test_policy_lora import recipe as unquantised
from tests.rlhf.roles.test_preference import CHOSEN, LR, pairs, read
from tests.rlhf.roles.test_preference import recipe as reward_recipe
from tests.rlhf.tiny import random_sequences, tiny_config, tiny_model

STAGES = [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama."""
    path = tmp_path_factory.mktemp("plain")
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(path)
    train_tokenizer([], 258).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def dequantised_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same Llama with the numbers that its quantised layers compute with."""
    path = tmp_path_factory.mktemp("dequantised")
    base = load_causal(folder, ModelConfig())
    quantised = load_policy(folder, recipe(1, 0).model, seed=0)
    base.load_state_dict({name: dequantised(tensor) for name, tensor in plain_tensors(quantised).items()})
    base.save_pretrained(path)
    train_tokenizer([], 258).save_pretrained(path)
    return path


def quantise(recipe: Recipe) -> Recipe:
    lora = replace(recipe.model.lora or LoRAConfig(rank=4, alpha=8.0), quantization="nf4")
    return replace(recipe, model=replace(recipe.model, lora=lora))


def recipe(ranks: int, stage: int, **model: Any) -> Recipe:
    return quantise(unquantised(ranks, stage, **model))


def digest(role: Role[Any]) -> str:
    """Hash over the bytes of all quantised storage; there must be some."""
    layers = [module for module in role.network.modules() if isinstance(module, Linear4bit)]
    assert layers and all(module.weight.dtype == torch.uint8 for module in layers)
    found = hashlib.sha256()
    for layer in layers:
        for tensor in stored_tensors(layer.weight):
            found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Updated:
    """A policy before and after a step: see ``test_policy_lora.Updated``; ``digests`` before and after."""

    metrics: dict[str, float]
    logprobs: tuple[np.ndarray, np.ndarray, np.ndarray]
    adapters: dict[str, np.ndarray]
    merged: dict[str, torch.Tensor]
    sent: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
    fingerprint: dict[str, int]
    digests: tuple[str, str]


def update(rank: Rank, folder: Path, recipe: Recipe, out: Path) -> Updated:
    """One step of PPO on this rank, with a publish before and after it; the model is saved."""
    role = PolicyRole(recipe, str(folder), rank)
    before, first = digest(role), {name: tensor.clone() for name, tensor in role.source}
    fresh = gathered(role.logprobs(block()), rank)
    reference = gathered(role.reference_logprobs(block()), rank)
    metrics = role.update(experience(), step=0)
    after = gathered(role.reference_logprobs(block()), rank)
    role.save(out)
    sent = {name: tensor.clone() for name, tensor in role.source}
    shapes = [(meta.name, tuple(meta.shape)) for meta in role.source.metadata()]
    assert shapes == [(name, tensor.shape) for name, tensor in sent.items()]
    return Updated(
        metrics=metrics,
        logprobs=(fresh, reference, after),
        adapters=adapter_arrays(role),
        merged=dict(role.engine.full_state(role.lm)),
        sent=(first, sent),
        fingerprint=role.source.fingerprint,
        digests=(before, digest(role)),
    )


@pytest.mark.parametrize(("ranks", "stage"), STAGES)
def test_a_step_of_ppo_trains_adapters_of_the_dequantised_model(
    ranks: int, stage: int, folder: Path, dequantised_folder: Path, crews: dict[int, Crew], tmp_path: Path
) -> None:
    expected, base = plain_update(dequantised_folder), load_causal(dequantised_folder, ModelConfig()).state_dict()
    for answer in crews[ranks].run(update, folder, recipe(ranks, stage), tmp_path):
        assert_plain(answer, *expected)  # type: ignore[arg-type]  # metrics and adapters alone
        assert answer.digests[0] == answer.digests[1]
        fresh, before, after = answer.logprobs
        np.testing.assert_array_equal(fresh, before)
        np.testing.assert_array_equal(before, after)
        first, last = answer.sent
        for name, tensor in base.items():
            assert torch.equal(first[name], tensor), name  # the engine's first weights: dequantised, B = 0
        saved = load_causal(tmp_path, ModelConfig()).state_dict()
        for name, tensor in saved.items():
            assert torch.equal(answer.merged[name], tensor) and torch.equal(last[name], tensor), name
        assert ranks == 2 or differences(answer.fingerprint, fingerprint(saved.items())) == []


@pytest.mark.parametrize(("dtype", "ranks", "stage"), [("float32", 1, 1), ("bfloat16", 1, 1), ("bfloat16", 2, 3)])
def test_saved_weights_are_the_merged_ones_rounded_once(
    dtype: str, ranks: int, stage: int, folder: Path, crews: dict[int, Crew], tmp_path: Path
) -> None:
    """W + (alpha/rank)·B·A of the dequantised W in float32, cast to the dtype; other tensors are the folder's."""
    answer = crews[ranks].run(update, folder, recipe(ranks, stage, dtype=dtype), tmp_path)[0]
    model = load_policy(folder, recipe(1, 0, dtype=dtype).model, seed=0)
    base = {name: dequantised(tensor).float() for name, tensor in plain_tensors(model).items()}
    saved = load_causal(tmp_path, ModelConfig(dtype=dtype)).state_dict()  # type: ignore[arg-type]
    for name, tensor in saved.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        exact = base[name].double()
        if f"{stem}.lora_A.weight" in answer.adapters:
            a, b = (torch.from_numpy(answer.adapters[f"{stem}.lora_{x}.weight"]).double() for x in "AB")
            exact = exact + 2.0 * (b @ a)
        limit = 2.0**-24 if dtype == "float32" else 2.0**-8
        assert ((tensor.double() - exact).abs() <= 1.01 * limit * exact.abs() + 1e-6).all(), name


def learn(rank: Rank, folder: Path, recipe: Recipe, updates: int, out: Path) -> dict[str, Any]:
    """Supervised updates on the same demonstrations."""
    role = SFTRole(recipe, str(folder), updates, rank)
    before = digest(role)
    data = ExampleData(sequences=SEQUENCES, mask=np.ones(int(SEQUENCES.response_lengths.sum()), np.bool_))
    role.set_data(data, data)
    losses = [role.update(list(range(len(SEQUENCES))))["train/loss"] for _ in range(updates)]
    held_out = gathered(role.held_out_logprobs(), rank)
    role.save(out)
    trained = sum(p.numel() for p in role.network.parameters() if p.requires_grad)
    return {"losses": losses, "held_out": held_out, "trained": trained, "digests": (before, digest(role))}


@pytest.mark.parametrize(
    ("ranks", "stage", "dtype", "offload"),
    [
        (1, 0, "bfloat16", False),
        pytest.param(2, 2, "float32", True, marks=pytest.mark.slow),
        pytest.param(2, 3, "bfloat16", False, marks=pytest.mark.slow),
        (2, 3, "float32", True),
    ],
)
def test_the_loss_falls_by_a_third_with_adapters_below_a_twentieth_of_the_base(
    ranks: int, stage: int, dtype: str, offload: bool, crews: dict[int, Crew], tmp_path: Path
) -> None:
    """Sixteen updates. All else is frozen."""
    start = tmp_path / "start"
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(tiny_config("llama", **sizes))
    model.save_pretrained(start)
    settings = recipe(ranks, stage, dtype=dtype)
    assert settings.model.lora is not None
    settings = replace(
        settings,
        model=replace(settings.model, lora=replace(settings.model.lora, rank=4)),
        sft=replace(settings.sft, optimizer=OptimizerConfig(lr=1e-2)),
        placement=PlacementConfig(policy=replace(settings.placement.policy, offload=offload)),
    )
    for answer in crews[ranks].run(learn, start, settings, 16, tmp_path / "out"):
        first, *_, last = answer["losses"]
        assert first == pytest.approx(math.log(61), rel=0.1)
        assert last < 0.7 * first
        assert answer["trained"] < 0.05 * model.num_parameters()
        assert answer["digests"][0] == answer["digests"][1]


def test_rows_are_shared_by_sequence_parallel_ranks(
    folder: Path, two_ranks: Crew, one_rank: Crew, tmp_path: Path
) -> None:
    alone = one_rank.run(learn, folder, recipe(1, 1), 2, tmp_path)[0]
    shared = recipe(2, 1)
    role = replace(shared.placement.policy, sequence_parallel=2)
    shared = replace(shared, placement=replace(shared.placement, policy=role))
    for answer in two_ranks.run(learn, folder, shared, 2, tmp_path):
        assert answer["losses"] == pytest.approx(alone["losses"], rel=1e-5)


def compare(rank: Rank, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """One update of DPO, whose start is checked against its reference, and one more."""
    role = DPORole(recipe, str(folder), 2, rank)
    before, train = digest(role), random_sequences((3, 5), (3, 2), (2, 6), (2, 1))
    tokens = role.logprobs(train)
    parts: list[Any] = [None] * rank.world
    torch.distributed.all_gather_object(parts, tokens)
    role.set_data(train, response_logprobs(parts, train))
    metrics = [role.update([0, 1]) for _ in range(2)]
    return {"metrics": metrics, "digests": (before, digest(role))}


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 1)])
def test_dpo_starts_as_its_reference_and_learns(ranks: int, stage: int, folder: Path, crews: dict[int, Crew]) -> None:
    optimizer = OptimizerConfig(lr=0.5, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
    settings = replace(recipe(ranks, stage), dpo=DPOConfig(beta=0.3, optimizer=optimizer))
    for answer in crews[ranks].run(compare, folder, settings):
        first, second = answer["metrics"]
        assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5)
        assert second["train/loss"] < first["train/loss"]
        assert answer["digests"][0] == answer["digests"][1]


def train_reward(rank: Rank, folder: Path, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Two updates of a reward model; it is saved."""
    role = RewardTrainingRole(recipe, str(folder), 2, rank)
    before = digest(role)
    role.set_data(pairs())
    metrics = [role.update(CHOSEN) for _ in range(2)]
    share = role.rewards(pairs().sequences)
    role.save_shifted(out, shift=-0.25)
    learning = [name for name, parameter in role.network.named_parameters() if parameter.requires_grad]
    return {"metrics": metrics, "share": share, "learning": learning, "digests": (before, digest(role))}


def plain_reward(folder: Path, model: ModelConfig) -> tuple[list[float], torch.Tensor]:
    """Losses of two updates of A, B and the head of a plain classifier, and the rewards after them."""
    assert model.lora is not None
    classifier = load_classifier(folder, ModelConfig())
    init_reward_head(classifier, 4)
    lm = load_policy(folder, replace(model, lora=replace(model.lora, quantization=None)), seed=4)
    scale = model.lora.alpha / model.lora.rank
    pieces = {n: [t.detach().clone().requires_grad_() for t in (x.a, x.b)] for n, x in adapters(lm).items()}
    trained, losses = [t for pair in pieces.values() for t in pair] + [classifier.score.weight], []
    base = {name: parameter.detach() for name, parameter in classifier.named_parameters()}

    def rewards() -> torch.Tensor:
        own = {name: base[name] + scale * b @ a for name, (a, b) in pieces.items()}

        def call(tokens: torch.Tensor) -> Any:
            return torch.func.functional_call(classifier, own, (tokens,))

        return read(call)  # type: ignore[arg-type]

    for _ in range(2):
        found = rewards()
        margins = found[0::2] - found[1::2] - torch.tensor([0.0, 0.5, 1.0])
        loss = torch.log1p(torch.exp(-margins)).mean()
        losses.append(loss.item())
        for tensor, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            tensor.data -= LR * gradient / (gradient.abs() + 1)
    return losses, rewards().detach()


@pytest.mark.parametrize(("ranks", "stage", "shared"), [(1, 0, 1), (2, 1, 1), (2, 3, 1), (2, 1, 2)])
def test_the_reward_model_trains_adapters_and_its_head(
    ranks: int,
    stage: int,
    shared: int,
    folder: Path,
    dequantised_folder: Path,
    crews: dict[int, Crew],
    tmp_path: Path,
) -> None:
    settings = quantise(reward_recipe(ranks, stage, 15, shared))
    answers = crews[ranks].run(train_reward, folder, settings, tmp_path)
    losses, expected = plain_reward(dequantised_folder, settings.model)
    for answer in answers:
        assert [m["train/loss"] for m in answer["metrics"]] == pytest.approx(losses, rel=1e-5)
        assert answer["digests"][0] == answer["digests"][1]
        assert {name for name in answer["learning"] if "lora_" not in name} == {"classifier.score.weight"}
    rewards = join_samples([answer["share"] for answer in answers], 6)
    np.testing.assert_allclose(rewards, expected, rtol=1e-4, atol=1e-4)
    train_tokenizer([], 258).save_pretrained(tmp_path)
    np.testing.assert_allclose(read(load_classifier(tmp_path, ModelConfig())).detach(), rewards, rtol=1e-4, atol=1e-4)
    assert_peft_scores(dequantised_folder, tmp_path, rewards)


def assert_peft_scores(folder: Path, out: Path, rewards: np.ndarray) -> None:
    """The saved adapter, which includes the head, on the dequantised base."""
    base: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    base.config.pad_token_id = load_classifier(out, ModelConfig()).config.pad_token_id
    adapted = PeftModel.from_pretrained(base, out / "adapter").eval()
    written = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (written["modules_to_save"], written["task_type"]) == (["score"], "SEQ_CLS")
    with torch.no_grad():
        np.testing.assert_allclose(read(adapted), rewards, rtol=1e-4, atol=1e-4)


def resume(rank: Rank, folder: Path, other: Path, recipe: Recipe) -> tuple[list[float], list[float], str]:
    """Losses of two updates by one role, and the second by another one that starts from its snapshot."""
    roles = [SFTRole(recipe, str(each), 2, rank) for each in (folder, folder, other)]
    data = ExampleData(sequences=SEQUENCES, mask=np.ones(int(SEQUENCES.response_lengths.sum()), np.bool_))
    for role in roles:
        role.set_data(data, data)
    samples = list(range(len(SEQUENCES)))
    roles[0].update(samples)
    shards: list[Any] = [None] * rank.world
    torch.distributed.all_gather_object(shards, roles[0].snapshot())
    straight = [roles[0].update(samples)["train/loss"] for _ in range(2)]
    parts = [part for shard in shards for part in shard]
    roles[1].restore(*parts)
    resumed = [roles[1].update(samples)["train/loss"] for _ in range(2)]
    with pytest.raises(UserError) as refused:
        roles[2].restore(*parts)
    assert all("weight.absmax" not in name for name in roles[0].engine.network.state_dict())
    return straight, resumed, str(refused.value)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_training_resumes_on_the_same_base_only(
    ranks: int, stage: int, folder: Path, crews: dict[int, Crew], tmp_path: Path
) -> None:
    other = load_causal(folder, ModelConfig())
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3] *= 1.5
    other.save_pretrained(tmp_path)
    for straight, resumed, message in crews[ranks].run(resume, folder, tmp_path, recipe(ranks, stage)):
        assert straight == resumed
        assert "on other frozen weights" in message and "layers.1" in message
