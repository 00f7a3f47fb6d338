"""Memory: ZeRO by hand, and the formulas against tensors, autograd and the allocator on the CPU."""

from __future__ import annotations

import gc
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM

from launch.plan import memory
from launch.plan.members import Head, PlannedRole, Shapes, members
from launch.plan.memory import (
    GIB,
    GPUMemory,
    engine_memory,
    host_bytes,
    pass_memory,
    persistent_memory,
    publish_memory,
    saved_activations,
    scoring_memory,
    waiting_memory,
)
from launch.plan.shapes import ModelShape, count_shape
from rlhf.config.schema import LoRAConfig, ModelConfig, OptimizerConfig, RoleConfig, RolloutConfig
from rlhf.generation.limits import EngineLimits
from rlhf.models import attention
from rlhf.models.load import load_policy, switch_dropout_off
from rlhf.models.logprobs import CHUNK, GPU_BLOCK
from rlhf.models.packed_row import PackedRow, pack_row
from rlhf.models.policy import PolicyNet
from rlhf.models.stored import stored_tensors
from rlhf.zero.engine import ZeroEngine
from rlhf.zero.process_group import Rank, join
from rlhf.zero.settings import REDUCE_BUCKET
from tests.launch.plan.small import TINY, find
from tests.launch.plan.small import recipe as small_recipe
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import ARCHITECTURES, random_sequences, tiny_config, tiny_model

DTYPES = ("bfloat16", "float32")


@pytest.fixture(autouse=True)
def _attention_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas are those of a GPU. A CPU attends in float32."""
    monkeypatch.setattr(attention, "attention_dtype", lambda values, length: values.dtype)


LIMITS = EngineLimits(sequences=128, tokens=2048)
SIZES = {"hidden_size": 128, "vocab_size": 512, "num_hidden_layers": 4, "intermediate_size": 256}


def member(shape: ModelShape = TINY, head: Head = "language", trains: bool = True, **role: Any) -> PlannedRole:
    """A role of this shape."""
    whole = shape.parameters if head == "language" else shape.classifier
    trained, frozen = (whole, 0) if trains else (0, whole)
    config = RoleConfig(**role)
    return PlannedRole(
        role="policy", key="policy", config=config, shape=shape, head=head, trained=trained, frozen=frozen
    )


# Bytes a parameter over 4 ranks: weights, gradients, float32 copies, moments.
ZERO = [
    ("bfloat16", 0, (2, 2, 4, 8)),
    ("bfloat16", 1, (2, 6, 1, 2)),
    ("bfloat16", 2, (2, 1, 1, 2)),
    ("bfloat16", 3, (0.5, 1, 1, 2)),
    ("float32", 0, (4, 4, 0, 8)),
    ("float32", 1, (4, 4, 1, 2)),
    ("float32", 2, (4, 1, 1, 2)),
    ("float32", 3, (1, 1, 1, 2)),
]


@pytest.mark.parametrize(("dtype", "stage", "bytes_each"), ZERO)
def test_zero_by_hand(dtype: str, stage: int, bytes_each: tuple[float, ...]) -> None:
    found = persistent_memory(member(zero_stage=stage, ranks=4), dtype)
    parts = (found.weights, found.gradients, found.master, found.optimizer)
    assert parts == tuple(pytest.approx(each * TINY.parameters, abs=1) for each in bytes_each)


def test_a_frozen_role_holds_weights_alone() -> None:
    whole = 2 * TINY.classifier
    for stage in (0, 1, 2):
        assert (
            persistent_memory(member(head="scalar", trains=False, zero_stage=stage, ranks=4), "bfloat16").weights
            == whole
        )
    sharded = persistent_memory(member(head="scalar", trains=False, zero_stage=3, ranks=4), "bfloat16")
    assert sharded == GPUMemory(weights=whole // 4, process=memory.PROCESS)


def test_a_quantised_base_by_hand() -> None:
    """A weight takes half a byte; 64 share a byte, and 16,384 share four. Rank 4 trains 4·(inputs + outputs)."""
    recipe = small_recipe("tiny", model__lora={"rank": 4, "quantization": "nf4"})
    [role] = members(recipe, "sft", Shapes(recipe, find))
    assert (role.frozen, role.quantised) == (TINY.parameters, 1152)
    own, scales = 2 * (role.trained + TINY.parameters - 1152), int(1152 * (1 / 64 + 1 / 4096))
    assert persistent_memory(role, "bfloat16").weights == own + 1152 // 2 + scales
    sharded = replace(role, config=RoleConfig(zero_stage=3, ranks=4))
    assert persistent_memory(sharded, "bfloat16").weights == (own + 1152 // 2) // 4 + scales
    assert scoring_memory(role, recipe.model).buffers == 2 * 8 * 16  # the largest matrix, while it is dequantised
    [reward] = members(recipe, "reward", Shapes(recipe, find))
    assert (reward.trained, reward.frozen, reward.quantised) == (role.trained + 8, TINY.backbone, 1152)


def test_a_quantised_base_takes_what_the_formula_says(tmp_path: Path) -> None:
    """Weights alone; the tensors with which bitsandbytes rounds are left out."""
    lm = tiny_model(AutoModelForCausalLM, "llama", **SIZES)
    shape = count_shape(lm.config, "tiny")
    role = replace(member(shape, trains=False), quantised=shape.linear_weights)
    lm.save_pretrained(tmp_path)
    for dtype in DTYPES:
        model = load_policy(tmp_path, ModelConfig(dtype=dtype, lora=LoRAConfig(rank=1, quantization="nf4")), seed=0)
        stored = sum(part.nbytes for p in model.parameters() if not p.requires_grad for part in stored_tensors(p))
        assert stored == pytest.approx(persistent_memory(role, dtype).weights, rel=0.01)


def test_offloading_moves_states_to_the_host() -> None:
    offloaded = member(zero_stage=3, ranks=4, offload=True)
    assert persistent_memory(offloaded, "bfloat16") == GPUMemory(process=memory.PROCESS)
    assert host_bytes(offloaded, "bfloat16") == pytest.approx((2 + 16) * TINY.parameters / 4, abs=2)
    states_alone = persistent_memory(member(zero_stage=2, ranks=4, offload=True), "bfloat16")
    assert states_alone == GPUMemory(weights=2 * TINY.parameters, process=memory.PROCESS)
    assert host_bytes(member(zero_stage=2, ranks=4), "bfloat16") == 0


def test_a_rest_moves_what_offloading_leaves_on_the_device() -> None:
    """ZeRO-2: the optimizer of every parameter lies on the host in four parts; each rank's whole weights follow."""
    offloaded = member(zero_stage=2, ranks=4, offload=True)
    for_good = 16 * TINY.parameters // 4
    assert host_bytes(offloaded, "bfloat16", "states") == for_good
    assert host_bytes(offloaded, "bfloat16", "all") == for_good + 2 * TINY.parameters


def held_in_tensors(rank: Rank, stage: int, dtype: str) -> tuple[int, int, int]:
    """Bytes that this rank holds during its second update, including the bucket's, and its number of parameters."""
    place = join(rank)
    before = storages()  # kept: an address that is freed may be given to what is to be counted
    lm = tiny_model(AutoModelForCausalLM, "llama", **SIZES).to(getattr(torch, dtype))
    parameters = sum(parameter.numel() for parameter in lm.parameters())
    engine = ZeroEngine(PolicyNet(lm), RoleConfig(zero_stage=stage), dtype, rank, place, OptimizerConfig(), 2)
    sequences, seen = random_sequences((3, 5), (1, 4)), []

    def loss(samples: list[int]) -> torch.Tensor:
        if len(seen) == 3:  # one row of the second update is done: gradients are there, and moments are
            seen.append({key: each.nbytes() for key, each in storages().items() if key not in before})
        seen.append({})
        return engine.engine(pack_row(sequences, samples, place), 1.0)[0].sum()

    for _ in range(2):
        engine.update([[0], [1]], loss, 9)
    sizes = seen[3].values()
    return sum(sizes), sum(size for size in sizes if size >= memory.BUCKET), parameters


def left_at_rest(rank: Rank, stage: int, dtype: str) -> list[int]:
    """Bytes of a rank after an update: with its states offloaded, then its weights too; and those on the host."""
    place = join(rank)
    before = storages()
    lm = tiny_model(AutoModelForCausalLM, "llama", **SIZES).to(getattr(torch, dtype))
    engine = ZeroEngine(PolicyNet(lm), RoleConfig(zero_stage=stage), dtype, rank, place, OptimizerConfig(), 2)
    sequences, found = random_sequences((3, 5), (1, 4)), []
    engine.update([[0], [1]], lambda chosen: engine.engine(pack_row(sequences, chosen, place), 1.0)[0].sum(), 9)
    for parts in (("states",), ("states", "weights")):
        engine.offload(parts)  # type: ignore[arg-type]
        room = {chunk.data_ptr() for buffer in engine.offloader._buffers.values() for chunk in buffer._chunks}
        found.append(sum(each.nbytes() for key, each in storages().items() if key not in {*before, *room}))
    return [*found, sum(size for buffer in engine.offloader._buffers.values() for _, size in buffer._held)]


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16")])
def test_what_rests_leaves_the_device_and_lies_on_the_host(stage: int, dtype: str, two_ranks: Crew) -> None:
    """Count all tensors that Python knows, not only those that should be offloaded."""
    role = member(count_shape(tiny_config("llama", **SIZES), "tiny"), zero_stage=stage, ranks=2)
    weights = waiting_memory(role, dtype, "states").total - memory.PROCESS
    assert waiting_memory(role, dtype, "all") == GPUMemory(process=memory.PROCESS)
    for states_away, all_away, host in two_ranks.run(left_at_rest, stage, dtype):
        assert states_away == pytest.approx(weights, rel=0.02)
        assert all_away < 0.02 * weights
        assert host == pytest.approx(host_bytes(role, dtype, "all"), rel=0.02)


def storages() -> dict[int, torch.UntypedStorage]:
    """The storage of every tensor that Python knows, by address, including gradients of parameters."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    parameters = [each for each in tensors if each.is_leaf]
    tensors += [each.grad for each in parameters if each.grad is not None]
    tensors += [each.grad_accum for each in parameters if getattr(each, "grad_accum", None) is not None]
    return {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}


@pytest.mark.parametrize(("stage", "dtype"), [(1, "bfloat16"), (3, "bfloat16"), (1, "float32")])
def test_what_training_holds_is_what_the_formula_says(stage: int, dtype: str, two_ranks: Crew) -> None:
    """Within 2%: shards are padded, and there are inputs and rotary tables."""
    shape = count_shape(tiny_config("llama", **SIZES), "tiny")
    role = member(shape, zero_stage=stage, ranks=2)
    formula = persistent_memory(role, dtype).total - memory.PROCESS
    for found, bucket, parameters in two_ranks.run(held_in_tensors, stage, dtype):
        assert parameters == shape.parameters
        assert found - bucket == pytest.approx(formula, rel=0.02)
        if stage == 3:
            assert bucket == memory._bucket(role, memory.size_of(dtype), always=True)


def row_of(tokens: int) -> PackedRow:
    """Four sequences, of whose tokens a third are response."""
    return pack_row(random_sequences(*[(tokens // 4 - 12, 12)] * 4), range(4), "cpu")


def network(architecture: str, dtype: str, layers: int, **changes: Any) -> tuple[PolicyNet, ModelShape]:
    """A policy in training mode, and its shape."""
    key = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
    lm = tiny_model(AutoModelForCausalLM, architecture, **{key: layers, **changes}).to(getattr(torch, dtype)).train()
    switch_dropout_off(lm)
    for module in lm.modules():  # GPT-2 keeps attention's dropout as a number in its config
        if hasattr(module, "attn_dropout"):
            module.config.attn_pdrop = 0.0
    return PolicyNet(lm), count_shape(lm.config, architecture)


def saved_bytes(net: PolicyNet, row: PackedRow) -> int:
    """Bytes that autograd saves in a pass, without weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    found: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        net(row, 1.0)
    return sum(each.untyped_storage().nbytes() for address, each in found.items() if address not in weights)


GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
"""Two query heads per key head."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "grouped"])
def test_what_a_layer_saves_is_what_autograd_records(architecture: str, dtype: str) -> None:
    """Two more layers save twice the formula's value for one; the rest is within its bound."""
    row, b = row_of(128), memory.size_of(dtype)
    changes: dict[str, Any] = {"attn_pdrop": 0.0} if architecture == "gpt2" else {}
    if architecture == "grouped":
        architecture, changes = "llama", GROUPED
    (one, shape), (three, _) = (network(architecture, dtype, layers, **changes) for layers in (1, 3))
    first = saved_bytes(one, row)
    layer = saved_activations(shape, 128, b)
    assert saved_bytes(three, row) - first == pytest.approx(2 * layer, rel=1e-3)
    assert first - layer <= memory._outside(shape, 128, b) + 128 * b * shape.hidden


def test_what_is_saved_grows_with_tokens_and_not_with_their_square() -> None:
    """Sequences twice as long take at most twice the bytes. Scores, or a mask, would take four times as much."""
    net, _ = network("llama", "float32", 2)
    assert saved_bytes(net, row_of(256)) <= 2 * saved_bytes(net, row_of(128))


LARGE_HEAD = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 160}


def peak(net: PolicyNet, row: PackedRow, trains: bool) -> int:
    """Peak of the bytes in a pass, without weights and their gradients."""
    tracker = MemTracker()
    tracker.track_external(net)
    with tracker, torch.set_grad_enabled(trains):
        logprobs = net(row, 1.0, "value" if trains else "none")[0]
        if trains:
            logprobs.sum().backward()
    found = {
        str(key).rpartition(".")[2]: value for key, value in tracker.get_tracker_snapshot("peak").popitem()[1].items()
    }
    return found["Total"] - found["PARAM"] - found["GRAD"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("vocabulary", [61, 4096])
def test_the_peak_of_an_update_is_within_the_formula(vocabulary: int, checkpointing: bool, dtype: str) -> None:
    """With 61 logits the peak is in a layer, with 4096 at the logits. The formula assumes only response tokens."""
    net, shape = network("llama", dtype, 4, **{**LARGE_HEAD, "vocab_size": vocabulary})
    if checkpointing:
        net.lm.gradient_checkpointing_enable({"use_reentrant": False})
    row = row_of(64)
    planned = pass_memory(member(shape), ModelConfig(dtype=dtype, gradient_checkpointing=checkpointing), 64)
    bucket = memory._bucket(member(shape), memory.size_of(dtype))
    full, predicted = (memory.logits_bytes(member(shape), tokens, memory.size_of(dtype)) for tokens in (64, 48))
    spare = full - predicted if planned.logits else 0
    most = planned.total - bucket
    assert 0.65 * (most - spare) < peak(net, row, trains=True) < most


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [61, 4096])
def test_the_peak_of_scoring_is_within_the_formula(vocabulary: int, dtype: str) -> None:
    net, shape = network("llama", dtype, 4, **{**LARGE_HEAD, "vocab_size": vocabulary})
    planned = scoring_memory(member(shape, trains=False, micro_batch_tokens=64), ModelConfig(dtype=dtype))
    spare = planned.logits // 4  # of 64 tokens 48 are predicted
    assert 0.75 * (planned.total - spare) < peak(net, row_of(64), trains=False) < planned.total


def test_logits_by_hand() -> None:
    """The logits of 2,092 tokens and 128,256 words and their gradient in bfloat16, and three blocks: 1.27 GB."""
    shape = find("meta-llama/Llama-3.1-8B")
    assert memory.logits_bytes(member(shape), 8192, 2) == 4 * 2092 * 128_256 + 12 * 2**24
    assert memory.logits_bytes(member(shape), 8192, 4, memory.SCORING_COPIES) == 4 * 2092 * 128_256 + 8 * 2**24
    assert memory.logits_bytes(member(shape), 1, 4) == 20 * 128_256  # one token is less than a block
    assert memory.logits_bytes(member(shape, head="scalar"), 8192, 2) == 0


def test_a_shared_row_by_hand() -> None:
    """Llama 8B, 32,768 tokens over 4 ranks, 8,192 each, and 2·4,096 bytes per token for the second exchange."""
    shape = find("meta-llama/Llama-3.1-8B")
    alone = 2 * 8 * 4096 + 2 * 2 * (4096 + 1024) + 8 * 14336 + 8 + 4 * 32
    assert saved_activations(shape, 32_768, 2) == 32_768 * alone
    assert saved_activations(shape, 32_768, 2, ranks=4) == 8192 * (alone + 2 * 4096)
    four = member(shape, ranks=4, sequence_parallel=4, micro_batch_tokens=32_768)
    assert memory.logits_bytes(four, 4096, 2) == 4 * 1024 * 128_256 + 12 * 2**24
    whole, part = pass_memory(member(shape), ModelConfig(), 32_768), pass_memory(four, ModelConfig(), 32_768)
    assert part.activations == pytest.approx(whole.activations / 4, rel=0.05)


def test_gathers_by_hand() -> None:
    """Llama 70B frozen: the head, the equally large embedding (a layer is smaller), and prefetched weights."""
    shape = find("meta-llama/Llama-3.1-70B")
    assert shape.layer < shape.embedding == 128_256 * 8192
    frozen = member(shape, trains=False, zero_stage=3, ranks=8)
    assert memory.gathered_weights(frozen, 2) == 2 * (2 * 128_256 * 8192 + 50_000_000)
    assert (
        memory.gathered_weights(member(shape, zero_stage=3, ranks=8), 2) - memory.gathered_weights(frozen, 2)
        == 2 * 10**9
    )
    assert memory.gathered_weights(member(shape, zero_stage=2, ranks=8), 2) == 0
    assert memory.gathered_weights(member(TINY, zero_stage=3, ranks=8), 2) == 2 * TINY.parameters


def test_an_engine_by_hand() -> None:
    """Half of 80 GiB: 16.06 GB of weights, workspace, CUDA; the rest at 131,072 bytes per token."""
    shape = find("meta-llama/Llama-3.1-8B")
    found = engine_memory(
        shape, RolloutConfig(gpu_memory_fraction=0.5, enforce_eager=True), "bfloat16", 80 * GIB, 2048, LIMITS
    )
    workspace = 2 * 2048 * (3 * 14336 + 4 * 4096) + 12 * 128 * 128_256
    left = 40 * GIB - 2 * 8_030_261_248 - workspace - memory.PROCESS
    assert found.memory.kv_cache == left
    assert found.kv_tokens == left // 131_072
    assert found.at_once == found.kv_tokens // 2048
    assert found.memory.total == 40 * GIB
    half = engine_memory(shape, RolloutConfig(tensor_parallel=2), "bfloat16", 80 * GIB, 2048, LIMITS)
    assert half.memory.weights == 8_030_261_248
    assert half.at_once == 128, "vLLM computes no more sequences at once"


def test_graphs_take_their_room_from_the_cache() -> None:
    """vLLM captures graphs of an engine unless it is told to run eagerly."""
    shape = find("meta-llama/Llama-3.1-8B")
    eager, captured = (
        engine_memory(
            shape, RolloutConfig(gpu_memory_fraction=0.5, enforce_eager=each), "bfloat16", 80 * GIB, 2048, LIMITS
        )
        for each in (True, False)
    )
    assert eager.memory.kv_cache - captured.memory.kv_cache == GIB
    assert captured.memory.total == eager.memory.total == 40 * GIB


def test_an_engine_without_room_holds_no_sequence() -> None:
    shape = find("meta-llama/Llama-3.1-70B")
    found = engine_memory(shape, RolloutConfig(gpu_memory_fraction=0.9), "bfloat16", 80 * GIB, 2048, LIMITS)
    assert (found.kv_tokens, found.at_once) == (0, 0)
    assert found.memory.total > 80 * GIB


def test_a_publish_holds_two_chunks() -> None:
    shape = find("meta-llama/Llama-3.1-8B")
    head = 2 * 128_256 * 4096
    assert publish_memory(
        member(shape, zero_stage=1), "bfloat16"
    ).total == 2 * GIB + head + memory.HASHING - 2 * GIB + 2 * max(GIB, head)
    sharded = publish_memory(member(shape, zero_stage=3, ranks=8), "bfloat16").buffers
    assert sharded - publish_memory(member(shape, zero_stage=1), "bfloat16").buffers == 2 * head + 2 * memory.BUCKET


def test_constants_are_those_of_the_libraries() -> None:
    """Compare the constants with their definitions in the libraries, which new versions may change."""
    zero = DeepSpeedZeroConfig(stage=3)
    assert (REDUCE_BUCKET, zero.prefetch_bucket_size) == (memory.BUCKET, memory.PREFETCH)
    assert (zero.max_reuse_distance, zero.sub_group_size) == (memory.REUSED, memory.STEPPED)
    assert (memory.LOGITS_CHUNK, memory.LOGITS_BLOCK) == (CHUNK, GPU_BLOCK)
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    packed = (Path(spec.origin).parent / "distributed/weight_transfer/packed_tensor.py").read_text(encoding="utf-8")
    assert re.search(r"DEFAULT_PACKED_BUFFER_SIZE_BYTES = 1024 \* 1024 \* 1024\b", packed)
    assert f"DEFAULT_PACKED_NUM_BUFFERS = {memory.SEND_BUFFERS}\n" in packed
