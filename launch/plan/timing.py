"""Expected seconds of a step, computed from FLOPs and bytes. A model, not a measurement: ``docs/planning.md``.

A phase takes the longer of its computation and its data movement, at the fractions ``SHARES`` of the data sheet's
rates. Lengths are the longest that the recipe allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launch.plan.cluster import Cluster
from launch.plan.members import ENGINE, PlannedRole, PlannedSlot
from launch.plan.memory import EngineMemory, offloaded_bytes, size_of
from launch.plan.shapes import ModelShape
from launch.plan.work import StepWork
from rlhf.config.schema import Recipe
from rlhf.placement.parallelism import data_parallel_size, model_parallel_size
from rlhf.placement.pools import OffloadMode

SHARES = {"training": 0.4, "prefill": 0.5, "memory": 0.7, "link": 0.7}
"""Assumed fractions of the data sheet's rates: FLOP/s in training and scoring, FLOP/s of an engine's prefill and
decoding, memory bandwidth, and link bandwidth. They are round numbers from published reports, not measured here."""
ALL_REDUCE_SECONDS = 20e-6
"""Assumed latency of one collective call of an engine; every layer has two."""
ADDED_BACKWARD = 5
"""All-reduces of a layer's backward pass under tensor parallelism: one for each matrix split by output."""
HASH_BYTES = 100
"""Bytes moved by a fingerprint per number: int64 arrays, written and read about six times."""
HOST_BYTES, HOST_RATE = 40, 20e9
"""Bytes that Adam on the host reads and writes per parameter, and bytes per second that a rank's threads move."""


@dataclass(frozen=True, kw_only=True)
class ComputeRates:
    """GPUs, links and dtype with which the members of a run compute."""

    cluster: Cluster
    slots: tuple[PlannedSlot, ...]
    dtype: str

    @property
    def flops(self) -> float:
        """FLOP/s of a GPU in the recipe's dtype."""
        return self.cluster.type.bfloat16 if self.dtype == "bfloat16" else self.cluster.type.float32

    @property
    def memory(self) -> float:
        """Bytes per second of a GPU's memory."""
        return SHARES["memory"] * self.cluster.type.bandwidth

    def link(self, roles: Sequence[str]) -> float:
        """Bytes per second between the GPUs of these roles."""
        nodes = {slot.node for slot in self.slots if slot.role in roles}
        return SHARES["link"] * self.cluster.link(len(nodes))

    def link_in_rows(self, member: PlannedRole) -> float:
        """Bytes per second between the ranks of a role that process the same rows, on the slowest link."""
        nodes: dict[int, set[int]] = {}
        for slot in self.slots:
            if slot.role == member.role:
                nodes.setdefault(slot.rank // model_parallel_size(member.config), set()).add(slot.node)
        return SHARES["link"] * self.cluster.link(max(map(len, nodes.values()), default=1))


def forward_flops(member: PlannedRole, tokens: float, length: int, answers: float) -> float:
    """FLOPs of a forward pass.

    Two per matrix element and token, four per head element and pair of tokens over the causal half, and the output head
    for ``answers`` tokens; under tensor parallelism each rank has the whole head.
    """
    shape = member.shape
    attention = 2 * shape.layers * shape.heads * shape.head_dim * length
    head = 2 * shape.embedding * answers * member.config.tensor_parallel if member.head == "language" else 0
    return tokens * (2 * shape.matrices + attention) + head


def samples_per_rank(samples: int, member: PlannedRole) -> float:
    """Largest share of these samples that a rank processes: whole samples for each data-parallel group, of which a rank
    does its part."""
    return math.ceil(samples / data_parallel_size(member.config)) / model_parallel_size(member.config)


def score_seconds(member: PlannedRole, batch: StepWork, machine: ComputeRates) -> float:
    """Seconds for a role's ranks to score all blocks of a step."""
    samples = samples_per_rank(batch.samples, member)
    flops = forward_flops(member, samples * batch.length, batch.length, samples * batch.response_tokens)
    computing = flops / (SHARES["training"] * machine.flops)
    gathering = batch.score_passes[member.role] * gather_seconds(member, machine)
    tokens = samples * batch.length
    return (
        max(computing, gathering) + exchange_seconds(member, tokens, machine) + adding_seconds(member, tokens, machine)
    )


def adding_seconds(member: PlannedRole, tokens: float, machine: ComputeRates) -> float:
    """Seconds of the all-reduces of tensor parallelism, two in every layer of a forward pass.

    ``tokens`` is the number per rank, which all ranks share. The backward pass takes ``ADDED_BACKWARD / 2`` times this.
    """
    ranks, shape = member.config.tensor_parallel, member.shape
    if ranks == 1:
        return 0.0
    numbers = 2 * shape.layers * tokens * ranks * shape.hidden
    moved = 2 * numbers * size_of(machine.dtype) * (ranks - 1) / ranks  # an all-reduce sends all data about twice
    return moved / machine.link_in_rows(member)


def exchange_seconds(member: PlannedRole, tokens: float, machine: ComputeRates) -> float:
    """Seconds of the all-to-all exchanges of sequence parallelism in a forward pass of ``tokens`` tokens per rank:
    queries, keys, values and attention outputs, once per layer. The backward pass takes the same.

    Keys and values with fewer heads than ranks are replicated.
    """
    ranks, shape = member.config.sequence_parallel, member.shape
    if ranks == 1:
        return 0.0
    numbers = 2 * (shape.heads + max(shape.kv_heads, ranks)) * shape.head_dim
    moved = shape.layers * tokens * numbers * size_of(machine.dtype) * (ranks - 1) / ranks
    return moved / machine.link_in_rows(member)


def gather_seconds(member: PlannedRole, machine: ComputeRates) -> float:
    """Seconds for ZeRO-3 to gather the whole model once, layer by layer, as in every pass."""
    role, b = member.config, size_of(machine.dtype)
    if role.zero_stage < 3:
        return 0.0
    moved = member.stored_bytes(b) * (role.ranks - 1) / role.ranks
    fetched = member.stored_bytes(b, role.ranks) if role.offload else 0
    return moved / machine.link((member.role,)) + fetched / (SHARES["link"] * machine.cluster.type.host)


def update_flops(member: PlannedRole, batch: StepWork, recipe: Recipe) -> float:
    """FLOPs of the busiest rank in one update.

    A backward pass takes twice the FLOPs of a forward pass (frozen weights under adapters once, which is counted in
    full); checkpointing adds a forward pass, and logits are computed twice except for the last chunk of a row.
    """
    samples = samples_per_rank(batch.samples_per_update, member)
    body = forward_flops(member, samples * batch.length, batch.length, 0)
    head = forward_flops(member, 0, 0, samples * batch.response_tokens)
    return body * (4 if recipe.model.gradient_checkpointing else 3) + 4 * head


def update_seconds(member: PlannedRole, batch: StepWork, recipe: Recipe, machine: ComputeRates) -> float:
    """Seconds of all updates of a step by one role."""
    rows = batch.update_passes[member.role]
    computing = update_flops(member, batch, recipe) / (SHARES["training"] * machine.flops)
    moving = rows * 2 * gather_seconds(member, machine) + reduce_seconds(member, rows, machine)
    overlapped = member.config.zero_stage == 3
    one = max(computing, moving) if overlapped else computing + moving
    exchanges = 3 if recipe.model.gradient_checkpointing else 2
    tokens = samples_per_rank(batch.samples_per_update, member) * batch.length
    one += exchanges * exchange_seconds(member, tokens, machine)
    one += (exchanges - 1 + ADDED_BACKWARD / 2) * adding_seconds(member, tokens, machine)
    return batch.updates * (one + step_seconds(member, machine))


def reduce_seconds(member: PlannedRole, rows: int, machine: ComputeRates) -> float:
    """Seconds to reduce gradients over ranks in one update: once, or under ZeRO 2 and 3 after every row."""
    role, b = member.config, size_of(machine.dtype)
    share, trained = (member.shards - 1) / member.shards, member.own(member.trained)
    once = 4 if role.zero_stage == 1 else b
    moved = {0: 2 * once, 1: 2 * once, 2: rows * 2 * b, 3: rows * b}[role.zero_stage] * trained * share
    gathered = b * trained * share if role.zero_stage in (1, 2) else 0
    return (moved + gathered) / machine.link((member.role,))


def step_seconds(member: PlannedRole, machine: ComputeRates) -> float:
    """Seconds of Adam's step, which reads and writes weights, gradients and moments, on the GPU or the host."""
    role = member.config
    own = member.own(member.trained) / (member.shards if role.zero_stage else 1)
    if role.offload and role.zero_stage:
        return own * HOST_BYTES / HOST_RATE + 8 * own / (SHARES["link"] * machine.cluster.type.host)
    return own * 40 / machine.memory


def offload_seconds(
    member: PlannedRole, mode: OffloadMode, machine: ComputeRates, weights_alone: bool = False
) -> float:
    """Seconds to reload the offloaded state for a phase and to offload it again; frozen weights are not copied back.

    Args:
        weights_alone: whether the phase does not need the states of an update.
    """
    weights, states = offloaded_bytes(member, machine.dtype, mode)
    size = (2 if member.trained else 1) * weights + (0 if weights_alone else 2 * states)
    return size / (SHARES["link"] * machine.cluster.type.host)


def rollout_seconds(
    shape: ModelShape, engine: EngineMemory, batch: StepWork, recipe: Recipe, machine: ComputeRates
) -> dict[str, float]:
    """Seconds for the engines to answer all prompts: prefill, then one decoding step per token of a response.

    Sequences that exceed the KV cache or the engine's limit wait for others, in waves.
    """
    share = math.ceil(batch.samples / recipe.rollout.engines)
    if not engine.at_once:
        return {}
    waves = math.ceil(share / engine.at_once)
    at_once = math.ceil(share / waves)
    prefill = _prefill_flops(shape, batch, recipe, share) / (_engine_flops(recipe, machine))
    decode = waves * batch.response_tokens * _decoding_step(shape, at_once, batch, recipe, machine)
    return {"prefill": prefill, "decode": decode}


def _engine_flops(recipe: Recipe, machine: ComputeRates) -> float:
    return SHARES["prefill"] * machine.flops * recipe.rollout.tensor_parallel


def _prefill_flops(shape: ModelShape, batch: StepWork, recipe: Recipe, share: int) -> float:
    """FLOPs for the prompts of one engine; other samples of a prompt hit the prefix cache."""
    tokens = math.ceil(share / recipe.ppo.samples_per_prompt) * batch.prompt_tokens
    attention = 2 * shape.layers * shape.heads * shape.head_dim * batch.prompt_tokens
    return tokens * (2 * shape.matrices + attention)


def token_flops(shape: ModelShape) -> float:
    """FLOPs of an engine for one more token of one response, without attention."""
    return 2 * (shape.matrices + shape.embedding)


def _decoding_step(shape: ModelShape, at_once: int, batch: StepWork, recipe: Recipe, machine: ComputeRates) -> float:
    """Seconds per token for all sequences: bound by reading weights and KV cache once, or by FLOPs."""
    b, shards = size_of(machine.dtype), recipe.rollout.tensor_parallel
    context = batch.prompt_tokens + batch.response_tokens / 2
    read = b * shape.parameters / shards + at_once * context * shape.kv_bytes(b, shards)
    flops = at_once * token_flops(shape)
    talking = 0.0
    if shards > 1:
        moved = 2 * at_once * shape.hidden * b * (shards - 1) / shards
        talking = 2 * shape.layers * (ALL_REDUCE_SECONDS + moved / (SHARES["link"] * machine.cluster.type.link))
    return max(read / machine.memory, flops / _engine_flops(recipe, machine)) + talking


def publish_seconds(member: PlannedRole, recipe: Recipe, colocated: bool, machine: ComputeRates) -> dict[str, float]:
    """Seconds of a publish: weights over the link between policy and engines, and the fingerprint on both sides."""
    b, shape = size_of(machine.dtype), member.shape
    if recipe.model.engine_lora is not None:  # the base was sent before the first step
        sent = b * member.trained
        proof = 2 * HASH_BYTES * member.trained / machine.memory
        return {"send": sent / machine.link(("policy", ENGINE)), "compare fingerprints": proof}
    sent = b * (shape.parameters + (shape.embedding if shape.tied else 0))
    if colocated:
        moving = 3 * sent / machine.memory  # packed, read and loaded within one GPU
    else:
        moving = sent / machine.link(("policy", ENGINE))
    proof = HASH_BYTES * shape.parameters * (1 + 1 / recipe.rollout.tensor_parallel) / machine.memory
    return {"send": moving + gather_seconds(member, machine), "compare fingerprints": proof}
