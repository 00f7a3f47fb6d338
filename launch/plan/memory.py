"""Bytes that a rank or an engine takes of one GPU, part by part.

What training holds was read from DeepSpeed's source and measured in tensors (``tests/launch/plan/test_memory.py``);
what a pass makes was measured by autograd's own record of what it saves. Allowances, which nothing measured stands
behind, are the constants that say so.

Letters: P trained parameters, N ranks, b bytes of a number in ``model.dtype``, n tokens of a row, V vocabulary,
h hidden size, f width of the feed-forward block, A all attention heads together, S ranks that share a row. Of ranks
that share matrices (``tensor_parallel``) each is counted with its part: ``PlannedRole.own_shape``, ``PlannedRole.own``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from launch.plan.members import PlannedRole
from launch.plan.shapes import ModelShape
from rlhf.config.schema import ModelConfig, RolloutConfig
from rlhf.placement.pools import Resting

GIB = 2**30
LOGITS_CHUNK = 2048
"""Response tokens whose logits exist at one time: ``CHUNK`` of ``rlhf/models/policy.py``, which needs torch."""
LOGITS_COPIES = 5
"""Float32 tensors of a chunk that live at once: logits, log-softmax, probabilities, and two of the entropy's."""
SCORED_COPIES = 2
"""The same where no entropy is asked for: logits and their log-softmax."""
BUCKET = 500_000_000
"""DeepSpeed's ``reduce_bucket_size``: gradients that are reduced together; as a buffer it has that size from the
start."""
PREFETCH, REUSED, STEPPED = 50_000_000, 1_000_000_000, 1_000_000_000
"""DeepSpeed's ``stage3_prefetch_bucket_size``, ``stage3_max_reuse_distance`` and ``sub_group_size``, in parameters."""
SEND_BUFFER = GIB
"""A chunk of vLLM's packed weight transfer."""
SEND_BUFFERS = 2
ENGINE_TOKENS, ENGINE_SEQUENCES = 2048, 128
"""vLLM's ``max_num_batched_tokens`` and ``max_num_seqs`` where it is started from Python as an ``AsyncLLM``."""
HASHING = 3 * 2**27
"""What the fingerprint makes at one time: three int64 arrays of 2^24 elements."""
PROCESS = GIB
"""Allowance for what CUDA, cuBLAS and NCCL take for each process."""
ASLEEP = 3 * GIB // 2
"""Allowance for what a sleeping engine keeps: CUDA itself, and its graphs."""
INDICES = 24
"""Bytes of a token's integers: its number, its position, and the mask of ones."""
GRAPHS = GIB
"""Allowance for an engine's CUDA graphs."""


@dataclass(frozen=True, kw_only=True)
class GPUMemory:
    """Bytes on one GPU."""

    weights: int = 0
    gradients: int = 0
    master: int = 0
    """Float32 copies of the weights that the optimizer updates."""
    optimizer: int = 0
    """Adam's two moments."""
    activations: int = 0
    logits: int = 0
    kv_cache: int = 0
    buffers: int = 0
    """Gradient buckets, ZeRO-3's gathers, chunks of a publish, the optimizer's own, an engine's workspace."""
    process: int = 0
    """CUDA and its libraries."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, field.name) for field in fields(self))

    def without(self, other: GPUMemory) -> GPUMemory:
        """What is left when these parts are gone, as far as they were there."""
        names = (field.name for field in fields(self))
        return GPUMemory(**{name: max(0, getattr(self, name) - getattr(other, name)) for name in names})

    def __add__(self, other: GPUMemory) -> GPUMemory:
        return GPUMemory(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


PARTS = tuple(field.name for field in fields(GPUMemory))
NOTHING = GPUMemory()


def size_of(dtype: str) -> int:
    """Bytes of a number."""
    return 2 if dtype == "bfloat16" else 4


def held(member: PlannedRole, dtype: str) -> GPUMemory:
    """What a rank holds all the time: weights and, of a role that trains, gradients and the optimizer's states.

    Gradients count as held: they live from the first backward pass of an update to its step.
    """
    role, b = member.config, size_of(dtype)
    shards = member.shards if role.zero_stage == 3 else 1
    weights = 0 if role.offload and role.zero_stage == 3 else b * member.own(member.parameters) // shards
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


def states(member: PlannedRole, dtype: str) -> GPUMemory:
    """What only an update needs: it leaves the GPU between phases where ``offload_between_phases`` says so."""
    if not member.trained:
        return NOTHING
    whole = held(member, dtype)
    bucket = _bucket(member, size_of(dtype), always=True)
    return GPUMemory(gradients=whole.gradients, master=whole.master, optimizer=whole.optimizer, buffers=bucket)


def waiting(member: PlannedRole, dtype: str, resting: Resting) -> GPUMemory:
    """What a rank holds of the GPU while another role works."""
    bucket = GPUMemory(buffers=_bucket(member, size_of(dtype), always=True))
    kept = {
        "none": held(member, dtype) + bucket,
        "states": held(member, dtype).without(states(member, dtype)),
        "all": GPUMemory(process=PROCESS),
    }
    return kept[resting]


def leaving(member: PlannedRole, dtype: str, resting: Resting) -> tuple[int, int]:
    """Bytes of weights and of states that leave the GPU between phases; buckets leave without their content."""
    if resting == "none":
        return 0, 0
    whole = held(member, dtype)
    states = whole.master + whole.optimizer + _lasting_gradients(member, whole, dtype)
    return whole.weights if resting == "all" else 0, states


def _lasting_gradients(member: PlannedRole, whole: GPUMemory, dtype: str) -> int:
    """Gradients whose memory outlasts an update: shards under ZeRO-3, and those that ZeRO-1 adds up for bfloat16."""
    if member.config.zero_stage == 1 and dtype != "float32" and not member.config.offload:
        return 4 * member.own(member.trained)
    return whole.gradients if member.config.zero_stage == 3 else 0


def on_host(member: PlannedRole, dtype: str, resting: Resting = "none") -> int:
    """Bytes that offloading puts into a node's memory for this rank."""
    role, between = member.config, sum(leaving(member, dtype, resting))
    if not role.offload or not role.zero_stage:
        return between
    weights = size_of(dtype) * member.parameters // role.ranks if role.zero_stage == 3 else 0
    return between + weights + 16 * member.trained // role.ranks


def copied(member: PlannedRole, dtype: str, resting: Resting) -> int:
    """Bytes of the copy in host memory that a snapshot is taken from, of a role that rests there."""
    return sum(leaving(member, dtype, resting)) if member.trained else 0


def _gradients(member: PlannedRole, dtype: str) -> int:
    """Stage 1 shards no gradients; of bfloat16 it has them twice, as autograd makes them and added up in float32."""
    b, role, trained = size_of(dtype), member.config, member.own(member.trained)
    if role.zero_stage == 0 or (role.zero_stage == 1 and role.offload):
        return b * trained
    if role.zero_stage == 1:
        return (4 if dtype == "float32" else 6) * trained
    return 0 if role.offload else 4 * trained // member.shards


def saved(shape: ModelShape, tokens: int, b: int, ranks: int = 1) -> int:
    """Bytes that autograd saves of one decoder layer for its backward pass, over a row of n tokens.

    Attention saves its inputs, its output and one float32 number for each head, all by token: no mask and no scores. Of
    a shared row each rank has n/S tokens, and attention's output twice: by heads, and by tokens again. It is there
    twice, too, in a row of several lengths where PyTorch has no kernel for those (float32): that is not counted.
    """
    h, f, a = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    if shape.kind == "gated":  # two norms in float32, q and the attention's output, k and v, four widths of the MLP
        a_token = 2 * (4 + 2 * b) * h + 2 * b * (a + shape.kv_heads * shape.head_dim) + 4 * b * f + 8
    elif shape.kind == "neox":
        a_token = 10 * b * h + 2 * b * f + 4 * b
    else:  # GPT-2's GELU is written out in steps, each of which saves its own
        a_token = 8 * b * h + 5 * b * f + 4 * b
    return own_tokens(tokens, ranks) * (a_token + 4 * shape.heads + (b * a if ranks > 1 else 0))


def own_tokens(tokens: int, ranks: int) -> int:
    """Tokens of a row that one of the ranks which share it computes."""
    return -(-tokens // ranks)


def _outside(shape: ModelShape, tokens: int, b: int, ranks: int = 1) -> int:
    """Saved outside the layers: the last norm, rotary tables, hidden states of response tokens."""
    return own_tokens(tokens, ranks) * ((4 + 3 * b) * shape.hidden + 2 * b * shape.head_dim + INDICES)


def forward_only(shape: ModelShape, tokens: int, b: int, ranks: int = 1) -> int:
    """Activations of a pass without gradients, at most: those of one layer."""
    widest = max(3 * shape.intermediate, (4 if ranks == 1 else 8) * shape.heads * shape.head_dim)
    return own_tokens(tokens, ranks) * (b * (widest + 5 * shape.hidden) + INDICES)


def logits(member: PlannedRole, tokens: int, copies: int = LOGITS_COPIES) -> int:
    """The chunk of logits, in float32; 0 for a model that has none."""
    rows = min(LOGITS_CHUNK, own_tokens(tokens, member.config.sequence_parallel))
    return 4 * copies * rows * member.shape.vocab if member.head == "language" else 0


def gathered(member: PlannedRole, b: int) -> int:
    """Whole weights that a rank has at one time under ZeRO-3, at most."""
    if member.config.zero_stage < 3 or member.config.ranks == 1 and not member.config.offload:
        return 0
    shape = member.shape
    head = shape.embedding if member.head == "language" else 0
    live = head + max(shape.embedding, shape.layer) + PREFETCH + (REUSED if member.trained else 0)
    return b * min(member.parameters, live)


def scoring(member: PlannedRole, model: ModelConfig) -> GPUMemory:
    """What a pass without gradients adds."""
    b, tokens = size_of(model.dtype), member.config.micro_batch_tokens
    ranks = member.config.sequence_parallel
    chunk, layer = logits(member, tokens, SCORED_COPIES), forward_only(member.own_shape, tokens, b, ranks)
    ends = 2 * b * member.shape.hidden * own_tokens(tokens, ranks)
    at_the_end = chunk + ends > layer
    return GPUMemory(
        activations=ends if at_the_end else layer,
        logits=chunk if at_the_end else 0,
        buffers=_bucket(member, b, always=True) + gathered(member, b),
    )


def training(member: PlannedRole, model: ModelConfig, tokens: int) -> GPUMemory:
    """What an update adds at its worst moment: at the logits, in a layer's backward pass, or at the optimizer's step.

    Args:
        tokens: of the longest row.
    """
    step = _bucket(member, size_of(model.dtype), always=True) + _stepping(member, model.dtype)
    return max(passing(member, model, tokens), GPUMemory(buffers=step), key=lambda moment: moment.total)


def passing(member: PlannedRole, model: ModelConfig, tokens: int) -> GPUMemory:
    """What a forward and backward pass adds: at the logits, or in a layer, whichever is more."""
    b, shape, ranks = size_of(model.dtype), member.own_shape, member.config.sequence_parallel
    one, own = saved(shape, tokens, b, ranks), own_tokens(tokens, ranks)
    kept = b * shape.hidden * own if model.gradient_checkpointing else one
    stored = _outside(shape, tokens, b, ranks) + shape.layers * kept
    layer = 4 * b * shape.intermediate * own + (one if model.gradient_checkpointing else 0)
    buffers = _bucket(member, b) + gathered(member, b)
    at_the_logits = GPUMemory(activations=stored, logits=logits(member, tokens), buffers=buffers)
    return max(at_the_logits, GPUMemory(activations=stored + layer, buffers=buffers), key=lambda moment: moment.total)


def _bucket(member: PlannedRole, b: int, always: bool = False) -> int:
    """DeepSpeed's buffer of gradients; ``always`` for the one that stays from update to update."""
    if not member.trained:
        return 0
    stage, offload = member.config.zero_stage, member.config.offload
    in_backward = stage == 2 or (stage == 1 and (b == 4 or offload))
    return BUCKET * b if stage == 3 or (in_backward and not always) else 0


def _stepping(member: PlannedRole, dtype: str) -> int:
    """What the step makes for itself: Adam's temporary, flat copies of gradients, what is reduced together."""
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


def sending(member: PlannedRole, dtype: str) -> GPUMemory:
    """What a publish adds on the policy's first rank: chunks, gathered layers, and the fingerprint's arrays."""
    b, shape = size_of(dtype), member.shape
    largest = b * max(shape.embedding, shape.layer)
    gathers = member.config.zero_stage == 3 or member.config.tensor_parallel > 1
    layers = 2 * largest if gathers else 0
    chunks = SEND_BUFFERS * max(SEND_BUFFER, b * shape.embedding)
    return GPUMemory(buffers=_bucket(member, b, always=True) + chunks + layers + b * shape.embedding + HASHING)


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """What an engine takes of each of its GPUs, awake."""

    memory: GPUMemory
    kv_tokens: int
    """Tokens whose keys and values it holds."""
    at_once: int
    """Sequences of the longest length that it computes at one time."""


def engine(shape: ModelShape, config: RolloutConfig, dtype: str, gpu: int, longest: int) -> EngineMemory:
    """An engine's share of a GPU of ``gpu`` bytes: vLLM fills with KV cache what weights and workspace leave of it."""
    b, shards = size_of(dtype), config.tensor_parallel
    weights = b * shape.parameters // shards
    widest = 3 * shape.intermediate // shards + 4 * shape.hidden
    workspace = b * ENGINE_TOKENS * widest + 12 * ENGINE_SEQUENCES * shape.vocab
    workspace += 0 if config.enforce_eager else GRAPHS
    left = int(config.gpu_memory_fraction * gpu) - weights - workspace - PROCESS
    kv_tokens = max(0, left) // shape.kv_bytes(b, shards)
    return EngineMemory(
        memory=GPUMemory(weights=weights, kv_cache=max(0, left), buffers=workspace, process=PROCESS),
        kv_tokens=kv_tokens,
        at_once=min(ENGINE_SEQUENCES, kv_tokens // longest),
    )


def receiving(awake: GPUMemory) -> GPUMemory:
    """A colocated engine during a publish: its weights, and chunks on their way; the KV cache comes after it."""
    return GPUMemory(weights=awake.weights, buffers=SEND_BUFFERS * SEND_BUFFER, process=ASLEEP)
