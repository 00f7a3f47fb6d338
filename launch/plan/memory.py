"""Estimates the bytes that a rank or an engine takes of one GPU, part by part.

Persistent memory of training follows DeepSpeed's source and was measured in tensors
(``tests/launch/plan/test_memory.py``); activations were measured from autograd's saved tensors. Allowances that were
not measured are named constants.

Letters: P trained parameters, N ranks, b bytes per number in ``model.dtype``, n tokens of a row, V vocabulary,
h hidden size, f width of the feed-forward block, A all attention heads together, S sequence-parallel size. With
``tensor_parallel``, each rank is counted with its part: ``PlannedRole.own_shape``, ``PlannedRole.own``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from launch.plan.members import PlannedRole
from launch.plan.shapes import ModelShape
from rlhf.config.schema import ModelConfig, RolloutConfig
from rlhf.generation.limits import EngineLimits
from rlhf.placement.pools import OffloadMode

GIB = 2**30
LOGITS_CHUNK, LOGITS_BLOCK = 2**28, 2**20
"""Logits that exist at a time, and those of which float32 copies exist: ``CHUNK`` and ``BLOCK`` of
``rlhf/models/logprobs.py``, which imports torch."""
UPDATE_COPIES, SCORING_COPIES = 2, 1
"""Tensors of a chunk that exist at a time, in the model's dtype: the logits and, in an update, their gradient. Of a
block, the same and its probabilities exist in float32."""
BUCKET = 100_000_000
"""Gradients that are reduced together: ``REDUCE_BUCKET`` of ``rlhf/zero/settings.py``, which imports torch. The
buffer has this size from the start; while one is reduced, stages 1 and 2 fill a second."""
PREFETCH, REUSED, STEPPED = 50_000_000, 1_000_000_000, 1_000_000_000
"""DeepSpeed's ``stage3_prefetch_bucket_size``, ``stage3_max_reuse_distance`` and ``sub_group_size``, in parameters."""
SEND_BUFFER = GIB
"""Chunk size of vLLM's packed weight transfer."""
SEND_BUFFERS = 2
HASHING = 3 * 2**27
"""Temporary memory of the fingerprint: three int64 arrays of 2^24 elements."""
PROCESS = GIB
"""Allowance for CUDA, cuBLAS and NCCL in each process."""
ASLEEP = 3 * GIB // 2
"""Allowance for a sleeping engine: CUDA itself, and its graphs."""
INDICES = 40
"""Bytes of a token's integers: its id and position, the position that predicts it, its target, the mask of ones."""
GRAPHS = GIB
"""Allowance for an engine's CUDA graphs."""


@dataclass(frozen=True, kw_only=True)
class GPUMemory:
    """Bytes on one GPU, by part."""

    weights: int = 0
    gradients: int = 0
    master: int = 0
    """Float32 copies of the weights for the optimizer."""
    optimizer: int = 0
    """Adam's two moments."""
    activations: int = 0
    logits: int = 0
    kv_cache: int = 0
    buffers: int = 0
    """Gradient buckets, ZeRO-3's gathers, publish chunks, optimizer temporaries, an engine's workspace."""
    process: int = 0
    """CUDA and its libraries."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))

    def without(self, other: GPUMemory) -> GPUMemory:
        """Subtract these parts, at most to zero each."""
        names = (field.name for field in fields(self))
        return GPUMemory(**{name: max(0, getattr(self, name) - getattr(other, name)) for name in names})

    def __add__(self, other: GPUMemory) -> GPUMemory:
        return GPUMemory(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


PARTS = tuple(field.name for field in fields(GPUMemory))
NOTHING = GPUMemory()


def size_of(dtype: str) -> int:
    """Bytes per number of a dtype."""
    return 2 if dtype == "bfloat16" else 4


def persistent_memory(member: PlannedRole, dtype: str) -> GPUMemory:
    """Persistent memory of a rank: weights and, for trained roles, gradients and optimizer states.

    Gradients are included: they exist from the first backward pass of an update to its step.
    """
    role, b = member.config, size_of(dtype)
    shards = member.shards if role.zero_stage == 3 else 1
    weights = 0 if role.offload and role.zero_stage == 3 else member.stored_bytes(b, shards)
    if not member.trained:
        return GPUMemory(weights=weights, process=PROCESS)
    trained = member.own(member.trained)
    states = 4 * trained // (member.shards if role.zero_stage else 1)
    masters = 0 if role.zero_stage == 0 and dtype == "float32" else states
    off = role.offload and role.zero_stage > 0
    return GPUMemory(
        weights=weights,
        gradients=_gradients(member, dtype),
        master=0 if off else masters,
        optimizer=0 if off else 2 * states,
        process=PROCESS,
    )


def update_states(member: PlannedRole, dtype: str) -> GPUMemory:
    """Part of the memory that only updates need, which ``offload_between_phases`` can offload between phases."""
    if not member.trained:
        return NOTHING
    whole = persistent_memory(member, dtype)
    bucket = _bucket(member, size_of(dtype), always=True)
    return GPUMemory(gradients=whole.gradients, master=whole.master, optimizer=whole.optimizer, buffers=bucket)


def waiting_memory(member: PlannedRole, dtype: str, mode: OffloadMode) -> GPUMemory:
    """GPU memory of a rank while another role works."""
    bucket = GPUMemory(buffers=_bucket(member, size_of(dtype), always=True))
    kept = {
        "none": persistent_memory(member, dtype) + bucket,
        "states": persistent_memory(member, dtype).without(update_states(member, dtype)),
        "all": GPUMemory(process=PROCESS),
    }
    return kept[mode]


def offloaded_bytes(member: PlannedRole, dtype: str, mode: OffloadMode) -> tuple[int, int]:
    """Bytes of weights and of states that are offloaded between phases; buckets are freed without a copy."""
    if mode == "none":
        return 0, 0
    whole = persistent_memory(member, dtype)
    states = whole.master + whole.optimizer + _lasting_gradients(member, whole, dtype)
    return whole.weights if mode == "all" else 0, states


def _lasting_gradients(member: PlannedRole, whole: GPUMemory, dtype: str) -> int:
    """Gradients that outlive an update: shards under ZeRO-3, and ZeRO-1's accumulated gradients in bfloat16."""
    if member.config.zero_stage == 1 and dtype != "float32" and not member.config.offload:
        return 4 * member.own(member.trained)
    return whole.gradients if member.config.zero_stage == 3 else 0


def host_bytes(member: PlannedRole, dtype: str, mode: OffloadMode = "none") -> int:
    """Bytes of host memory that offloading takes for this rank."""
    role, between = member.config, sum(offloaded_bytes(member, dtype, mode))
    if not role.offload or not role.zero_stage:
        return between
    weights = member.stored_bytes(size_of(dtype), role.ranks) if role.zero_stage == 3 else 0
    return between + weights + 16 * member.trained // role.ranks


def snapshot_bytes(member: PlannedRole, dtype: str, mode: OffloadMode) -> int:
    """Bytes of the host copy for snapshots, for an offloaded role."""
    return sum(offloaded_bytes(member, dtype, mode)) if member.trained else 0


def _gradients(member: PlannedRole, dtype: str) -> int:
    """Stage 1 does not shard gradients; in bfloat16 it holds them twice: from autograd, and accumulated in float32."""
    b, role, trained = size_of(dtype), member.config, member.own(member.trained)
    if role.zero_stage == 0 or (role.zero_stage == 1 and role.offload):
        return b * trained
    if role.zero_stage == 1:
        return (4 if dtype == "float32" else 6) * trained
    return 0 if role.offload else 4 * trained // member.shards


def saved_activations(shape: ModelShape, tokens: int, b: int, ranks: int = 1) -> int:
    """Bytes that autograd saves of one decoder layer for its backward pass, over a row of n tokens.

    Attention saves its inputs, its output and one float32 number per head and token: no mask and no scores. Under
    sequence parallelism, each rank has n/S tokens, and attention's output twice: by heads, and by tokens. The output is
    also saved twice for rows of several lengths without a PyTorch kernel (float32); this is not counted.
    """
    h, f, a = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    if shape.kind == "gated":  # two norms in float32, q and the attention's output, k and v, four MLP activations
        a_token = 2 * (4 + 2 * b) * h + 2 * b * (a + shape.kv_heads * shape.head_dim) + 4 * b * f + 8
    elif shape.kind == "neox":
        a_token = 10 * b * h + 2 * b * f + 4 * b
    else:  # GPT-2's GELU consists of elementary operations, each of which saves its input
        a_token = 8 * b * h + 5 * b * f + 4 * b
    return own_tokens(tokens, ranks) * (a_token + 4 * shape.heads + (b * a if ranks > 1 else 0))


def own_tokens(tokens: int, ranks: int) -> int:
    """Tokens of a row per rank of a sequence-parallel group."""
    return -(-tokens // ranks)


def _outside(shape: ModelShape, tokens: int, b: int, ranks: int = 1) -> int:
    """Saved bytes outside the layers: the last norm, rotary tables, hidden states of response tokens."""
    return own_tokens(tokens, ranks) * ((4 + 3 * b) * shape.hidden + 2 * b * shape.head_dim + INDICES)


def forward_activations(shape: ModelShape, tokens: int, b: int, ranks: int = 1) -> int:
    """Peak activations of a pass without gradients: those of one layer."""
    widest = max(3 * shape.intermediate, (4 if ranks == 1 else 8) * shape.heads * shape.head_dim)
    return own_tokens(tokens, ranks) * (b * (widest + 5 * shape.hidden) + INDICES)


def logits_bytes(member: PlannedRole, tokens: int, b: int, copies: int = UPDATE_COPIES) -> int:
    """A chunk of logits, and what is computed from it; 0 for a model without them.

    Not counted is what a model computes after its output layer, for example bounded logits (Gemma 2).
    """
    if member.head != "language":
        return 0
    vocab = member.shape.vocab
    chunk = vocab * min(max(1, LOGITS_CHUNK // vocab), own_tokens(tokens, member.config.sequence_parallel))
    return b * copies * chunk + 4 * (copies + 1) * min(LOGITS_BLOCK, chunk)


def gathered_weights(member: PlannedRole, b: int) -> int:
    """Peak of gathered weights on a rank under ZeRO-3, and the largest matrix of quantised ones, dequantised."""
    matrix = b * max(linear.inputs * linear.outputs for linear in member.shape.linears) if member.quantised else 0
    if member.config.zero_stage < 3 or member.config.ranks == 1 and not member.config.offload:
        return matrix
    shape = member.shape
    head = shape.embedding if member.head == "language" else 0
    live = head + max(shape.embedding, shape.layer) + PREFETCH + (REUSED if member.trained else 0)
    return matrix + min(member.stored_bytes(b), b * live)


def scoring_memory(member: PlannedRole, model: ModelConfig) -> GPUMemory:
    """Additional memory of a pass without gradients."""
    b, tokens = size_of(model.dtype), member.config.micro_batch_tokens
    ranks = member.config.sequence_parallel
    chunk = logits_bytes(member, tokens, b, SCORING_COPIES)
    layer = forward_activations(member.own_shape, tokens, b, ranks)
    ends = 2 * b * member.shape.hidden * own_tokens(tokens, ranks)
    at_the_end = chunk + ends > layer
    return GPUMemory(
        activations=ends if at_the_end else layer,
        logits=chunk if at_the_end else 0,
        buffers=_bucket(member, b, always=True) + gathered_weights(member, b),
    )


def update_memory(member: PlannedRole, model: ModelConfig, tokens: int) -> GPUMemory:
    """Additional peak memory of an update: at the logits, in a layer's backward pass, or at the optimizer's step.

    Args:
        tokens: tokens of the longest row.
    """
    step = _bucket(member, size_of(model.dtype), always=True) + _stepping(member, model.dtype)
    return max(pass_memory(member, model, tokens), GPUMemory(buffers=step), key=lambda moment: moment.total)


def pass_memory(member: PlannedRole, model: ModelConfig, tokens: int) -> GPUMemory:
    """Additional memory of a forward and backward pass: the larger of logits and one layer."""
    b, shape, ranks = size_of(model.dtype), member.own_shape, member.config.sequence_parallel
    one, own = saved_activations(shape, tokens, b, ranks), own_tokens(tokens, ranks)
    kept = b * shape.hidden * own if model.gradient_checkpointing else one
    stored = _outside(shape, tokens, b, ranks) + shape.layers * kept
    layer = 4 * b * shape.intermediate * own + (one if model.gradient_checkpointing else 0)
    buffers = _bucket(member, b) + gathered_weights(member, b)
    at_the_logits = GPUMemory(activations=stored, logits=logits_bytes(member, tokens, b), buffers=buffers)
    return max(at_the_logits, GPUMemory(activations=stored + layer, buffers=buffers), key=lambda moment: moment.total)


def _bucket(member: PlannedRole, b: int, always: bool = False) -> int:
    """DeepSpeed's gradient buffer; ``always`` for the one that persists between updates."""
    if not member.trained:
        return 0
    stage, offload = member.config.zero_stage, member.config.offload
    in_backward = stage == 2 or (stage == 1 and (b == 4 or offload))
    if stage == 3:
        return BUCKET * b
    return BUCKET * b * (2 if member.shards > 1 else 1) if in_backward and not always else 0


def _stepping(member: PlannedRole, dtype: str) -> int:
    """Temporaries of the optimizer step: Adam's, flat copies of gradients, and the buffer for reduction."""
    role, trained = member.config, member.own(member.trained)
    if role.offload and role.zero_stage:
        return 0
    if role.zero_stage == 3:
        return 4 * min(STEPPED, trained // role.ranks)
    share = 4 * trained // (member.shards if role.zero_stage else 1)
    reduced = min(BUCKET, trained) * (4 if role.zero_stage else size_of(dtype))
    if role.zero_stage == 0:
        copies = share if dtype == "bfloat16" else 0
    else:
        copies = 0 if role.zero_stage == 1 and dtype == "bfloat16" else share
    return max(share + copies, reduced)


def publish_memory(member: PlannedRole, dtype: str) -> GPUMemory:
    """Additional memory of a publish on the policy's first rank: chunks, gathered layers, fingerprint arrays."""
    b, shape = size_of(dtype), member.shape
    largest = b * max(shape.embedding, shape.layer)
    gathers = member.config.zero_stage == 3 or member.config.tensor_parallel > 1
    layers = 2 * largest if gathers or member.quantised else 0
    chunks = SEND_BUFFERS * max(SEND_BUFFER, b * shape.embedding)
    return GPUMemory(buffers=_bucket(member, b, always=True) + chunks + layers + b * shape.embedding + HASHING)


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Memory of an engine on each of its GPUs, awake."""

    memory: GPUMemory
    kv_tokens: int
    """Tokens that its KV cache holds."""
    at_once: int
    """Number of longest sequences that it computes at a time."""
    limits: EngineLimits
    """Largest batch, by vLLM's settings."""


def engine_memory(
    shape: ModelShape, config: RolloutConfig, dtype: str, gpu: int, longest: int, limits: EngineLimits
) -> EngineMemory:
    """An engine's share of a GPU of ``gpu`` bytes: vLLM fills what weights and workspace leave of it with KV cache."""
    b, shards = size_of(dtype), config.tensor_parallel
    weights = b * shape.parameters // shards
    widest = 3 * shape.intermediate // shards + 4 * shape.hidden
    workspace = b * limits.tokens * widest + 12 * limits.sequences * shape.vocab
    workspace += 0 if config.enforce_eager else GRAPHS
    left = int(config.gpu_memory_fraction * gpu) - weights - workspace - PROCESS
    kv_tokens = max(0, left) // shape.kv_bytes(b, shards)
    return EngineMemory(
        memory=GPUMemory(weights=weights, kv_cache=max(0, left), buffers=workspace, process=PROCESS),
        kv_tokens=kv_tokens,
        at_once=min(limits.sequences, kv_tokens // longest),
        limits=limits,
    )


def receiving_memory(awake: GPUMemory) -> GPUMemory:
    """Memory of a colocated engine during a publish: weights and chunks; the KV cache is allocated afterwards."""
    return GPUMemory(weights=awake.weights, buffers=SEND_BUFFERS * SEND_BUFFER, process=ASLEEP)
