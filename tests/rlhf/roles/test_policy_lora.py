"""A policy with adapters on real DeepSpeed ranks: only adapters are trained, and the base model is the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.config.schema import (
    AlgorithmConfig,
    LoRAConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    PPOConfig,
    Recipe,
    RoleConfig,
    RolloutConfig,
    SFTConfig,
)
from rlhf.models.load import load_causal, load_policy
from rlhf.models.lora import adapter_tensors, adapters
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.roles.block_result import join_tokens
from rlhf.roles.policy import PolicyRole, ReferenceRole
from rlhf.roles.sft import SFTRole
from rlhf.roles.supervised_data import ExampleData
from rlhf.types import Experience, FinishReason, RolloutBlock
from rlhf.weights.fingerprint import differences, fingerprint
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import VOCABULARY, random_sequences, tiny_model, whole

SEED, TEMPERATURE, CLIP, LR, RANK, SCALE = 11, 0.7, 0.2, 0.5, 4, 2.0
SEQUENCES = random_sequences((3, 5), (1, 4), (6, 1), (2, 7), (4, 3), (5, 6), (2, 2))
"""Seven samples: uneven on two ranks. The longest sequence has 11 tokens."""
RANKS_AND_STAGES = [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama."""
    path = tmp_path_factory.mktemp("llama")
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, and a small GPT-2 with transposed layers and a tied head."""
    path = tmp_path_factory.mktemp(request.param)
    tiny_model(AutoModelForCausalLM, request.param).save_pretrained(path)
    return path


def recipe(ranks: int, stage: int, **model: Any) -> Recipe:
    """Adam without momentum and with ε = 1: its step is smooth in the gradient, so small differences stay small."""
    optimizer = OptimizerConfig(lr=LR, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
    role = RoleConfig(ranks=ranks, zero_stage=stage, micro_batch_tokens=20)
    return Recipe(
        name="test",
        seed=SEED,
        model=ModelConfig(lora=LoRAConfig(rank=RANK, alpha=SCALE * RANK), **model),
        rollout=RolloutConfig(temperature=TEMPERATURE),
        algorithm=AlgorithmConfig(clip_range=CLIP, epochs=3),
        ppo=PPOConfig(steps=2, batch_size=len(SEQUENCES), optimizer=optimizer),
        sft=SFTConfig(optimizer=optimizer),
        placement=PlacementConfig(policy=role, reference=role),
    )


def block() -> RolloutBlock:
    samples, tokens = len(SEQUENCES), int(SEQUENCES.response_lengths.sum())
    return RolloutBlock(
        sequences=SEQUENCES,
        logprobs=np.zeros(tokens, dtype=np.float32),
        response_mask=np.ones(tokens, dtype=bool),
        prompt_ids=np.arange(samples),
        weight_versions=np.zeros(samples, dtype=np.int64),
        finish_reasons=np.full(samples, FinishReason.STOP, dtype=np.int32),
        seeds=np.arange(samples),
        cached_tokens=np.zeros(samples, dtype=np.int32),
    )


def experience() -> Experience:
    """A batch with ratios around 1, some clipped, and a mask with gaps."""
    random = np.random.default_rng(5)
    tokens = int(SEQUENCES.response_lengths.sum())
    return Experience(
        rollouts=block(),
        scores=np.zeros(len(SEQUENCES), dtype=np.float32),
        old_logprobs=(random.normal(size=tokens) - np.log(VOCABULARY)).astype(np.float32),
        ref_logprobs=np.zeros(tokens, dtype=np.float32),
        advantages=random.normal(size=tokens).astype(np.float32),
        importance_weights=np.ones(tokens, dtype=np.float32),
        kl_coef=0.0,
        response_mask=random.random(tokens) < 0.9,
    )


def gathered(parts: Any, rank: Rank) -> np.ndarray:
    """(R,) from every rank's share."""
    shares: list[Any] = [None] * rank.world
    torch.distributed.all_gather_object(shares, parts)
    return join_tokens(shares, SEQUENCES)


def adapter_arrays(role: Any) -> dict[str, np.ndarray]:
    """Every A and B, whole."""
    tensors = adapter_tensors(role.network.lm)
    with role.engine.full(list(tensors.values())):
        return {name: tensor.detach().float().numpy().copy() for name, tensor in tensors.items()}


def stored(role: PolicyRole) -> dict[str, torch.Tensor]:
    """The frozen weights, whole."""
    found = {}
    for name, tensor in role.engine.named_tensors(role.lm).items():
        with role.engine.full([tensor]):
            found[name] = tensor.detach().clone()
    return found


@dataclass(frozen=True)
class Updated:
    """A policy with adapters before and after a step.

    ``logprobs`` by the policy, and by the reference before and after the step; ``frozen`` what the layers hold,
    ``merged`` what others see, ``sent`` what a publish sends; how many numbers the optimizer has averages of.
    """

    metrics: dict[str, float]
    logprobs: tuple[np.ndarray, np.ndarray, np.ndarray]
    adapters: dict[str, np.ndarray]
    frozen: dict[str, torch.Tensor]
    merged: dict[str, torch.Tensor]
    sent: dict[str, torch.Tensor]
    fingerprint: dict[str, int]
    averages: int


def update(rank: Rank, folder: Path, recipe: Recipe, out: Path) -> Updated:
    """One step of PPO on this rank; the model is saved."""
    role = PolicyRole(recipe, str(folder), rank)
    fresh = gathered(role.logprobs(block()), rank)
    before = gathered(role.reference_logprobs(block()), rank)
    metrics = role.update(experience(), step=0)
    after = gathered(role.reference_logprobs(block()), rank)
    role.save(out)
    sent = {name: tensor.clone() for name, tensor in role.source}
    assert [(name, tensor.shape) for name, tensor in sent.items()] == [
        (meta.name, tuple(meta.shape)) for meta in role.source.metadata()
    ]
    return Updated(
        metrics=metrics,
        logprobs=(fresh, before, after),
        adapters=adapter_arrays(role),
        frozen=stored(role),
        merged=dict(role.engine.full_state(role.lm)),
        sent=sent,
        fingerprint=role.source.fingerprint,
        averages=sum(entry["exp_avg"].numel() for entry in role.engine.engine.basic_optimizer.state.values()),
    )


def merged_weights(
    lm: PreTrainedModel, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """W + (alpha/rank)·B·A by the names of a plain model's weights; GPT-2's are transposed."""
    weights = dict(lm.named_parameters())
    update = {name: SCALE * b[name] @ a[name] for name in a}
    turned = lm.config.model_type == "gpt2"
    return {name: weights[name].detach() + (change.T if turned else change) for name, change in update.items()}


def plain_update(folder: Path) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The same update without PEFT, packing or DeepSpeed: a plain model whose weights are a function of A and B."""
    lm, batch = load_causal(folder, ModelConfig()), experience()
    start = adapters(load_policy(folder, recipe(1, 0).model, SEED))
    a = {name: adapter.a.detach().clone().requires_grad_() for name, adapter in start.items()}
    b = {name: adapter.b.detach().clone().requires_grad_() for name, adapter in start.items()}
    trained = [*a.values(), *b.values()]
    mask = torch.from_numpy(batch.response_mask)
    old, advantages = torch.from_numpy(batch.old_logprobs)[mask], torch.from_numpy(batch.advantages)[mask]
    rows = []
    for _ in range(3):
        weights, logprobs = merged_weights(lm, a, b), []
        for i in range(len(SEQUENCES)):
            tokens, begin = whole(SEQUENCES, i), int(SEQUENCES.prompt_lengths[i])
            logits = torch.func.functional_call(lm, weights, (tokens,)).logits[0, begin - 1 : -1] / TEMPERATURE
            logprobs.append(logits.log_softmax(-1).gather(1, tokens[0, begin:, None])[:, 0])
        ratio = torch.exp(torch.cat(logprobs)[mask] - old)
        loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
        gradients = torch.autograd.grad(loss, trained)
        rows.append([loss.item(), ratio.mean().item(), torch.cat([g.flatten() for g in gradients]).norm().item()])
        with torch.no_grad():
            for tensor, gradient in zip(trained, gradients, strict=True):
                tensor -= LR * gradient / (gradient.abs() + 1)
    names = ("loss/policy_avg", "val/ratio", "policy/grad_norm")
    layers = [name.removesuffix(".weight") for name in a]
    found = {f"base_model.model.{layer}.lora_A.weight": a[f"{layer}.weight"] for layer in layers}
    found |= {f"base_model.model.{layer}.lora_B.weight": b[f"{layer}.weight"] for layer in layers}
    arrays = {name: tensor.detach().numpy() for name, tensor in found.items()}
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True)), arrays


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Reference results of three updates."""
    return plain_update(folder)


@pytest.mark.parametrize(("ranks", "stage"), RANKS_AND_STAGES)
def test_a_step_of_adapters(
    ranks: int, stage: int, folder: Path, expected: Any, crews: dict[int, Crew], tmp_path: Path
) -> None:
    answers = crews[ranks].run(update, folder, recipe(ranks, stage), tmp_path)
    base = load_causal(folder, ModelConfig())
    for answer in answers:
        assert_plain(answer, *expected)
        assert_frozen(answer, base)
    assert_same_everywhere(answers[0], load_causal(tmp_path, ModelConfig()))
    numbers = sum(array.size for array in answers[0].adapters.values())
    kept = sum(answer.averages for answer in answers)
    sharded = stage > 0
    assert numbers <= (kept if sharded else answers[0].averages) < numbers + (64 if sharded else 1)
    assert_loads_into_peft(folder, tmp_path, answers[0].adapters)


def assert_plain(answer: Updated, metrics: dict[str, float], arrays: dict[str, np.ndarray]) -> None:
    """A and B equal those of the plain update, and both have changed."""
    for name, value in metrics.items():
        assert answer.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert answer.adapters.keys() == arrays.keys()
    for name, array in arrays.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(answer.adapters[name], array, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
    assert min(np.abs(array).max() for name, array in arrays.items() if "lora_B" in name) > 1e-3


def assert_frozen(answer: Updated, base: PreTrainedModel) -> None:
    """The frozen weights and their log-probabilities equal the folder's bit for bit."""
    state = base.state_dict()
    assert list(answer.frozen) == list(answer.merged) == list(state)
    assert sorted(answer.sent) == sorted(state)  # each once; within a layer in the order in which a model is saved
    for name, tensor in state.items():
        assert torch.equal(answer.frozen[name], tensor), name
        assert answer.sent[name].shape == tensor.shape
    fresh, before, after = answer.logprobs
    np.testing.assert_array_equal(fresh, before)
    np.testing.assert_array_equal(before, after)


def assert_same_everywhere(answer: Updated, saved: PreTrainedModel) -> None:
    """The tensors that are sent, fingerprinted and saved are the merged weights, bit for bit."""
    assert differences(answer.fingerprint, fingerprint(answer.sent.items())) == []
    changed = {name for name, tensor in answer.merged.items() if not torch.equal(tensor, answer.frozen[name])}
    assert changed == {
        name.removeprefix("base_model.model.").replace("lora_A.", "") for name in answer.adapters if "lora_A" in name
    }
    for name, tensor in saved.state_dict().items():
        assert torch.equal(answer.merged[name], tensor), name
        assert torch.equal(answer.sent[name], tensor), name


def assert_loads_into_peft(folder: Path, out: Path, arrays: dict[str, np.ndarray]) -> None:
    """The saved adapter on its base model equals the saved model."""
    adapted = PeftModel.from_pretrained(load_causal(folder, ModelConfig()), out / "adapter")
    loaded = {name.replace(".default", ""): tensor for name, tensor in adapted.state_dict().items() if "lora" in name}
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)
    tokens = whole(SEQUENCES, 3)
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(tokens).logits, load_causal(out, ModelConfig())(tokens).logits, rtol=1e-4, atol=1e-4
        )


def against_a_reference(rank: Rank, folder: Path, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities after a step, by the policy with adapters disabled and by a separate reference model."""
    role = PolicyRole(recipe, str(folder), rank)
    role.update(experience(), step=0)
    reference = ReferenceRole(recipe, str(folder), rank)
    return gathered(role.reference_logprobs(block()), rank), gathered(reference.logprobs(block()), rank)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_the_reference_is_that_of_a_model_of_its_own_to_the_last_bit(
    ranks: int, stage: int, dtype: str, llama: Path, crews: dict[int, Crew]
) -> None:
    for own, other in crews[ranks].run(against_a_reference, llama, recipe(ranks, stage, dtype=dtype)):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_recomputed_activations_change_nothing(
    ranks: int, stage: int, folder: Path, expected: Any, crews: dict[int, Crew], tmp_path: Path
) -> None:
    """The embedding is frozen, so that the first layer's input does not require a gradient."""
    checkpointed = recipe(ranks, stage, gradient_checkpointing=True)
    for answer in crews[ranks].run(update, folder, checkpointed, tmp_path):
        assert_plain(answer, *expected)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_adapters_have_float32_masters_and_frozen_weights_have_none(
    stage: int, llama: Path, two_ranks: Crew
) -> None:
    answers = two_ranks.run(masters, llama, recipe(2, stage, dtype="bfloat16"))
    base = load_causal(llama, ModelConfig(dtype="bfloat16")).state_dict()
    for answer in answers:
        assert answer["sent"] == {torch.bfloat16}
        assert answer["masters"] == {torch.float32}
        for name, tensor in answer["frozen"].items():
            assert torch.equal(tensor, base[name]), name


def masters(rank: Rank, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Dtypes of sent tensors and of optimizer states, and the frozen weights, after a step."""
    role = PolicyRole(recipe, str(folder), rank)
    role.update(experience(), step=0)
    state = role.engine.engine.basic_optimizer.state
    return {
        "sent": {tensor.dtype for _, tensor in role.source},
        "masters": {master.dtype for master in state},
        "frozen": stored(role),
    }


def supervise(rank: Rank, folder: Path, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Two supervised updates of adapters; the model is saved."""
    role = SFTRole(recipe, str(folder), 2, rank)
    data = ExampleData(sequences=SEQUENCES, mask=np.ones(int(SEQUENCES.response_lengths.sum()), np.bool_))
    role.set_data(data, data)
    losses = [role.update(list(range(len(SEQUENCES))))["train/loss"] for _ in range(2)]
    held_out = gathered(role.held_out_logprobs(), rank)
    role.save(out)
    return {"losses": losses, "held_out": held_out, "adapters": adapter_arrays(role)}


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_supervised_training_of_adapters_is_saved_merged(
    ranks: int, stage: int, llama: Path, crews: dict[int, Crew], tmp_path: Path
) -> None:
    """The saved model computes the same as the trained one, and the first update's loss is the plain model's."""
    answers = crews[ranks].run(supervise, llama, recipe(ranks, stage), tmp_path)
    tokens = len(answers[0]["held_out"])
    for answer in answers:
        first, second = answer["losses"]
        assert first == pytest.approx(-logprobs_of(llama).sum() / tokens, rel=1e-5)
        assert -answer["held_out"].sum() / tokens < second < first
        np.testing.assert_allclose(answer["held_out"], logprobs_of(tmp_path), rtol=1e-4, atol=1e-4)
    assert_loads_into_peft(llama, tmp_path, answers[0]["adapters"])


def logprobs_of(folder: Path) -> np.ndarray:
    """(R,) by the plain model in a folder."""
    with torch.no_grad():
        row = pack_row(SEQUENCES, range(len(SEQUENCES)), "cpu")
        return PolicyNet(load_causal(folder, ModelConfig()))(row, 1.0)[0].numpy()
