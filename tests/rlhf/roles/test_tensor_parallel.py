"""Tensor parallelism on real DeepSpeed ranks: updates equal plain ones, and weights are gathered correctly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from rlhf.config.schema import ModelConfig, Recipe
from rlhf.errors import UserError
from rlhf.models.load import load_causal
from rlhf.models.scratch import train_tokenizer
from rlhf.placement.parallelism import ranks_with_shared_files
from rlhf.roles.policy import PolicyRole, ReferenceRole
from rlhf.weights.fingerprint import fingerprint
from rlhf.zero import checkpoint
from rlhf.zero.file_segments import write_segments
from rlhf.zero.process_group import Rank
from rlhf.zero.source import ZeroSource
from tests.rlhf.ranks import Crew
from tests.rlhf.roles import test_critic as critics
from tests.rlhf.roles import test_policy as policies
from tests.rlhf.roles import test_sft as supervised
from tests.rlhf.tiny import VOCABULARY, tiny_model

Expected = tuple[Path, policies.Updated]


class Qwen3:
    """Builds a Qwen3, whose heads are normalised, with the sizes of the requested Llama."""

    @staticmethod
    def from_config(llama: Any, attn_implementation: str) -> Any:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        sizes = {name: getattr(llama, name) for name in names}
        config = Qwen3Config(vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=32, **sizes)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)


@pytest.fixture(scope="module")
def pair() -> Iterator[Crew]:
    """Two new ranks: DeepSpeed creates the tensor-parallel groups once per process."""
    crew = Crew(2)
    yield crew
    crew.stop()


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def expected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """A small model with two key-value heads, and its weights after three plain updates."""
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen3":
        tiny_model(Qwen3, "llama").save_pretrained(path)
    else:
        tiny_model(AutoModelForCausalLM, request.param, num_key_value_heads=2).save_pretrained(path)
    algorithm = policies.recipe(**policies.OPTIONS["everything"]).algorithm
    return path, policies.plain_update(path, policies.experience(), algorithm)[0]


def recipe(
    ranks: int = 2, stage: int = 1, dtype: Any = "float32", parts: int = 2, norm: float = 0.0, **options: Any
) -> Recipe:
    """The recipe of the policy's other tests, with tensor parallelism."""
    made = policies.recipe(ranks, stage, 20, **options)
    role = replace(made.placement.policy, tensor_parallel=parts)
    optimizer = replace(made.ppo.optimizer, max_grad_norm=norm)
    return replace(
        made,
        model=replace(made.model, dtype=dtype),
        ppo=replace(made.ppo, optimizer=optimizer),
        placement=replace(made.placement, policy=role, reference=role),
    )


@pytest.mark.parametrize("stage", [1, 2])
def test_three_updates_are_the_plain_ones(stage: int, expected: Expected, pair: Crew) -> None:
    path, plain = expected
    made = recipe(stage=stage, **policies.OPTIONS["everything"])
    for updated in pair.run(policies.update, path, made, policies.experience()):
        policies.assert_same(updated, plain)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with two key-value heads."""
    path = tmp_path_factory.mktemp("llama")
    tiny_model(AutoModelForCausalLM, "llama", num_key_value_heads=2).save_pretrained(path)
    train_tokenizer([], 258).save_pretrained(path)
    return path


def test_pairs_of_ranks_divide_the_samples_between_them(llama: Path) -> None:
    crew = Crew(4)
    try:
        plain = policies.plain_update(llama, policies.experience(), policies.recipe().algorithm)[0]
        for updated in crew.run(policies.update, llama, recipe(ranks=4, stage=2), policies.experience()):
            policies.assert_same(updated, plain)
    finally:
        crew.stop()


def clipped(rank: Rank, path: Path, recipe: Recipe) -> dict[str, np.ndarray]:
    """Weights after updates whose gradients are clipped."""
    return policies.update(rank, path, recipe, policies.experience()).weights


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_are_clipped_by_the_norm_of_all_parts(stage: int, llama: Path, pair: Crew, one_rank: Crew) -> None:
    """Replicated weights count once. The norm of one rank is that of plain updates, as tested elsewhere."""
    [alone] = one_rank.run(clipped, llama, recipe(1, stage, parts=1, norm=0.01))
    [unclipped] = one_rank.run(clipped, llama, recipe(1, stage, parts=1))
    assert any(np.abs(alone[name] - unclipped[name]).max() > 1e-3 for name in alone)
    for weights in pair.run(clipped, llama, recipe(2, stage, norm=0.01)):
        for name, weight in alone.items():
            np.testing.assert_allclose(weights[name], weight, rtol=1e-5, atol=1e-6, err_msg=name)


def streamed(rank: Rank, path: Path, folder: Path, recipe: Recipe) -> tuple[Any, ...]:
    """The tensors that engines receive and their fingerprint, the saved model, and the rank's shapes afterwards."""
    role = PolicyRole(recipe, str(path), rank)
    role.update(policies.experience(), step=0)
    source = ZeroSource(role.engine, role.lm, torch.float32)
    sent = {name: tensor.detach().clone().numpy() for name, tensor in source}
    shapes = [(meta.name, tuple(meta.shape)) for meta in source.metadata()]
    role.save(folder)
    return sent, shapes, source.fingerprint, {name: tuple(p.shape) for name, p in role.lm.named_parameters()}


def test_engines_and_files_get_whole_weights(llama: Path, pair: Crew, tmp_path: Path) -> None:
    first, second = pair.run(streamed, llama, tmp_path, recipe(stage=1))
    saved = {name: tensor.numpy() for name, tensor in load_causal(tmp_path, ModelConfig()).state_dict().items()}
    plain = policies.plain_update(llama, policies.experience(), policies.recipe().algorithm)[0].weights
    for sent, shapes, _, held in (first, second):
        assert shapes == [(name, weight.shape) for name, weight in sent.items()]
        assert sent.keys() == saved.keys() == plain.keys()
        for name, weight in saved.items():
            np.testing.assert_array_equal(sent[name], weight, err_msg=name)
            np.testing.assert_allclose(weight, plain[name], rtol=1e-5, atol=1e-5)
        halves = {name for name, shape in held.items() if shape != plain[name].shape}
        assert len(halves) == 2 * 7 and all("_proj" in name for name in halves)  # of two layers
    assert first[2] == fingerprint((name, torch.from_numpy(weight)) for name, weight in saved.items())


def go_on(rank: Rank, path: Path, folder: Path, recipe: Recipe) -> tuple[list[Any], list[Any]]:
    """Two more updates after a snapshot; and after the snapshot was loaded by another, from files and from memory."""

    def two(role: PolicyRole) -> list[Any]:
        told = [role.update(policies.experience(), step=step)["policy/grad_norm"] for step in (1, 2)]
        return [*told, {name: tensor.float().numpy() for name, tensor in role.engine.full_state(role.lm)}]

    role = PolicyRole(recipe, str(path), rank)
    role.update(policies.experience(), step=0)
    files = checkpoint.snapshot(role.engine)
    for name, content in files.items():
        write_segments(content, folder / name)
    torch.distributed.barrier()
    found: list[Any] = [None] * rank.world
    torch.distributed.all_gather_object(found, files)
    went_on, again = two(role), []
    parts = [checkpoint.divide(each) for each in found]
    read = [*(parts[r][1] for r in ranks_with_shared_files(recipe.placement.policy)), parts[rank.rank][0]]
    for restore in (lambda engine: checkpoint.restore(engine, read), lambda engine: checkpoint.load(engine, folder)):
        fresh = PolicyRole(recipe, str(path), rank)
        fresh.offload(("states", "weights"))
        restore(fresh.engine)
        again.append(two(fresh))
    return went_on, again


@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (1, "bfloat16"), (2, "bfloat16")])
def test_a_checkpoint_goes_on_bit_for_bit(stage: int, dtype: str, llama: Path, pair: Crew, tmp_path: Path) -> None:
    for went_on, again in pair.run(go_on, llama, tmp_path, recipe(stage=stage, dtype=dtype)):
        for other in again:
            assert other[:2] == went_on[:2]
            for name, weight in went_on[2].items():
                np.testing.assert_array_equal(other[2][name], weight, err_msg=name)


def load(rank: Rank, path: Path, folder: Path, recipe: Recipe) -> None:
    checkpoint.load(PolicyRole(recipe, str(path), rank).engine, folder)


def test_a_checkpoint_of_other_ranks_is_refused(llama: Path, pair: Crew, one_rank: Crew, tmp_path: Path) -> None:
    pair.run(go_on, llama, tmp_path, recipe(stage=1))
    with pytest.raises(UserError, match="tensor_parallel = 2 at ZeRO stage 1, for 1 ranks with 1 at stage 1"):
        one_rank.run(load, llama, tmp_path, recipe(1, parts=1))
    with pytest.raises(UserError, match="for 2 ranks with 2 at stage 2"):
        pair.run(load, llama, tmp_path, recipe(stage=2))


def score(rank: Rank, path: Path, recipe: Recipe) -> Any:
    """A frozen role's share, before and after offloading."""
    role = ReferenceRole(recipe, str(path), rank)
    rollouts = policies.experience().rollouts
    first = role.logprobs(rollouts)
    role.offload(("states", "weights"))
    again = role.logprobs(rollouts)
    np.testing.assert_array_equal(first.values, again.values)
    return first


def test_a_frozen_role_scores_as_one_rank_does(llama: Path, pair: Crew, one_rank: Crew) -> None:
    [alone] = one_rank.run(score, llama, recipe(1, parts=1))
    first, second = pair.run(score, llama, recipe())
    assert len(second.samples) == 0
    order = {int(sample): place for place, sample in enumerate(first.samples)}
    assert order.keys() == set(map(int, alone.samples))
    np.testing.assert_allclose(np.sort(first.values), np.sort(alone.values), rtol=1e-5, atol=1e-5)


def test_so_does_a_critic(llama: Path, pair: Crew) -> None:
    losses, weights = critics.plain_update(llama, critics.CLIP)
    made = critics.recipe(2, 1, 20)
    made = replace(made, placement=replace(made.placement, critic=replace(made.placement.critic, tensor_parallel=2)))
    for updated in pair.run(critics.update, llama, made, critics.experience()):
        assert updated["metrics"]["loss/value_avg"] == pytest.approx(np.mean(losses), rel=1e-5)
        for name, weight in weights.items():
            found = updated["weights"][f"classifier.{name}"]
            np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2, whose output head is its embedding."""
    path = tmp_path_factory.mktemp("qwen2")
    tiny_model(AutoModelForCausalLM, "qwen2").save_pretrained(path)
    return path


def test_so_does_supervised_training(tied: Path, pair: Crew, one_rank: Crew, tmp_path: Path) -> None:
    """One rank equals plain updates, as tested elsewhere; gradient checkpointing repeats each layer's all-reduces."""
    made = supervised.recipe(1, 1, 12, 1)
    role = replace(made.placement.policy, ranks=2, tensor_parallel=2)
    split = replace(
        made,
        placement=replace(made.placement, policy=role),
        model=replace(made.model, gradient_checkpointing=True),
    )
    [alone] = one_rank.run(supervised.train, tied, made, tmp_path / "one")
    first, second = pair.run(supervised.train, tied, split, tmp_path / "two")
    assert len(second["share"].samples) == 0
    np.testing.assert_allclose(first["share"].values, alone["share"].values, rtol=1e-5, atol=1e-5)
    one, two = (load_causal(tmp_path / name, ModelConfig()).state_dict() for name in ("one", "two"))
    for name, weight in one.items():
        np.testing.assert_allclose(two[name].numpy(), weight.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("architecture", "says"), [("gpt2", "type 'gpt2'"), ("gpt_neox", "type 'gpt_neox'"), ("llama", "1 of keys")]
)
def test_a_model_that_cannot_be_split_is_refused(architecture: str, says: str, pair: Crew, tmp_path: Path) -> None:
    tiny_model(AutoModelForCausalLM, architecture).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=says):
        pair.run(policies.update, tmp_path, recipe(), policies.experience())
