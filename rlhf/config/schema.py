"""Every option of a run, with its meaning under it. ``docs/configuration.md`` is generated from this file.

All sections are frozen and keyword-only. A default is what a careful user would start from; a field exists only because
some run needs another value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScratchConfig:
    """A small Llama-style model made from nothing, with a tokenizer trained on the run's own text."""

    hidden_size: int = 128
    """Width of the residual stream: ``heads`` times a head width that vLLM has a kernel for: 32, 64, 80, 96, ..."""
    layers: int = 4
    """Number of decoder layers."""
    heads: int = 4
    """Number of attention heads (and of key-value heads)."""
    intermediate_size: int = 384
    """Width inside the feed-forward block."""
    vocab_size: int = 1024
    """Largest vocabulary that the byte-level BPE tokenizer may learn, special tokens included."""
    max_length: int = 512
    """Longest sequence in tokens: the model's context."""
    tie_embeddings: bool = True
    """Share the matrix of the input embedding and the output head."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The language model that every role starts from."""

    path: str | None = None
    """Folder or hub name of a pretrained causal language model that vLLM serves; give this or ``scratch``."""
    scratch: ScratchConfig | None = None
    """Make a small model from nothing instead of loading one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward passes and of the engine; master weights and optimizer states stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you have read that code."""
    chat_template: str | None = None
    """Path of a Jinja chat template, for a tokenizer without one or in place of its own."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the human data is and how it is read. A stage's own path wins over ``path``."""

    path: str | None = None
    """File, folder or hub name that serves all stages (a preference file does: chosen answers teach SFT, prompts serve
    PPO)."""
    demonstrations: str | None = None
    """Data of the SFT stage: prompt-completion rows, ``messages``, or preferences whose chosen answers are used."""
    preferences: str | None = None
    """Data of the reward stage: rows with chosen and rejected answers."""
    prompts: str | None = None
    """Data of the PPO stage: rows with a prompt; answers in them are ignored."""
    format: Literal["auto", "jsonl", "json", "parquet", "datasets", "hh"] = "auto"
    """How files are read; ``auto`` goes by the name's ending and the first row. ``hh`` is Anthropic's transcripts."""
    split: str = "train"
    """Which split of a ``datasets`` folder or hub dataset is read."""
    columns: dict[str, str] = field(default_factory=dict)
    """Renames: the name that rlhf knows (prompt, completion, chosen, rejected, messages, text, label, margin) to the
    name in your file."""
    held_out_fraction: float = 0.1
    """Share of the prompts kept out of training for evaluation; the split is by prompt, so no prompt is on both
    sides."""
    max_prompt_length: int = 256
    """Longest prompt in tokens. Longer prompts are handled as ``long_prompts`` says."""
    max_response_length: int = 256
    """Longest response in tokens, end token included, in training data. A longer one is set aside and counted, never
    cut."""
    long_prompts: Literal["drop", "truncate_left", "error"] = "drop"
    """What happens to a longer prompt: set aside and counted, cut at its beginning and counted, or refused."""
    bad_rows: Literal["skip", "error"] = "skip"
    """A malformed row is reported with file and line; then it is skipped and counted, or the run is refused."""
    max_rows: int | None = None
    """Read no more than this many rows of each file."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule, the same for every trained model."""

    lr: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after warm-up; ``linear`` and ``cosine`` reach 0 at the last update."""
    warmup_steps: int = 0
    """Updates over which the rate rises from 0 to ``lr``."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""
    eps: float = 1e-5
    """Adam's epsilon; 1e-5 rather than 1e-8 keeps the first steps small (Ziegler et al. 2019; Huang et al. 2024)."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 switches clipping off."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations: the loss is on the completion, its end token included."""

    epochs: int = 1
    """Passes over the demonstrations."""
    batch_size: int = 32
    """Demonstrations per update, over all ranks."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-5))
    """Optimizer and schedule."""
    eval_every: int = 50
    """Updates between evaluations on held-out demonstrations; the last update is always evaluated."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The reward model: a sequence classifier trained on comparisons, −log σ(r_chosen − r_rejected − margin)."""

    epochs: int = 1
    """Passes over the comparisons; more than one over-fits (InstructGPT, section 3.5)."""
    batch_size: int = 32
    """Prompts per update, over all ranks; all comparisons of one prompt stay together."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    """Optimizer and schedule."""
    eval_every: int = 50
    """Updates between evaluations on held-out comparisons; the last update is always evaluated."""
    init: str | None = None
    """Model folder to start from; without it the SFT stage's model of the same run, or ``model`` when there is none."""
    scorer: str | None = None
    """Score with this instead of a trained model: a Python function ``package.module:function`` or ``file.py:function``
    that takes lists of prompts and responses and returns a list of floats."""
    ceiling: str | None = None
    """JSON file whose ``accuracy_ceiling`` is the best accuracy that the labels' noise allows, where that is known;
    shown beside the model's."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """PPO as in Schulman et al. 2017 and Ziegler et al. 2019; names as in the papers."""

    kl_coef: float = 0.05
    """β: weight of the per-token KL to the reference, in the reward."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to [1 − ε, 1 + ε]."""
    value_clip_range: float = 0.2
    """ε_v: the new value is clipped to within this of the old one."""
    gamma: float = 1.0
    """γ: discount per token."""
    lam: float = 0.95
    """λ of generalised advantage estimation."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and variance 1 over the response tokens of the global batch."""
    missing_eos_penalty: float | None = 1.0
    """A response without an end token scores minus this, in place of its reward; none switches it off."""
    epochs: int = 4
    """Passes over each batch of rollouts."""
    minibatches: int = 1
    """Updates per pass; ``ppo.batch_size`` is divisible by it."""
    critic_warmup_steps: int = 0
    """First steps in which only the critic learns."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """The loop: how much, how long, how fast."""

    steps: int = 100
    """Rollout-and-update steps."""
    batch_size: int = 128
    """Rollouts per step, over all ranks and engines."""
    samples_per_prompt: int = 1
    """Responses drawn for each prompt of a step; ``batch_size`` is divisible by it."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6))
    """The policy's optimizer."""
    critic_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=9e-6))
    """The critic's optimizer."""
    policy_init: str | None = None
    """Model folder of the policy and the reference; without it the SFT stage's model of the same run."""
    reward_init: str | None = None
    """Model folder of the reward model and the critic; without it the reward stage's model of the same run."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """vLLM engines that answer prompts."""

    engines: int = 1
    """Number of engines, each its own actor."""
    tensor_parallel: int = 1
    """GPUs per engine."""
    temperature: float = 1.0
    """Sampling temperature; the trainer's log-probabilities use the same. Sampling is otherwise untouched (no top-p,
    top-k or penalties)."""
    max_response_length: int = 256
    """Longest response in tokens, end token included."""
    block_size: int = 32
    """Finished samples that leave an engine together to be scored while the rest are still being generated."""
    memory_gib: float = 1.0
    """KV cache of an engine on CPU, in GiB."""
    gpu_memory_fraction: float = 0.5
    """Share of a GPU's memory that an engine may take."""
    enforce_eager: bool = False
    """Run without compilation or CUDA graphs: slower, starts sooner."""


@dataclass(frozen=True, kw_only=True)
class RoleConfig:
    """Where one model lives and how it is sharded."""

    ranks: int = 1
    """Data-parallel processes; on GPUs, one GPU each."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over the ranks: nothing, optimizer states, also gradients, also parameters."""
    offload: bool = False
    """Keep optimizer states (and for stage 3 the parameters) in host memory."""
    micro_batch_tokens: int = 2048
    """Token budget of one packed forward pass; sequences are packed into it without padding. At least one full
    sequence."""


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """Which role gets which processes and GPUs."""

    strategy: Literal["auto", "colocated", "separate"] = "auto"
    """``colocated``: all roles share every GPU, vLLM sleeps while training, weights move by CUDA IPC. ``separate``:
    each role owns its GPUs, weights move by NCCL. ``auto``: separate when there are GPUs enough, otherwise colocated.
    Without GPUs all are CPU processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes GPUs when the machine or cluster has them."""
    policy: RoleConfig = field(default_factory=RoleConfig)
    """The policy in PPO, and the model being trained in SFT."""
    critic: RoleConfig = field(default_factory=RoleConfig)
    """The critic in PPO."""
    reference: RoleConfig = field(default_factory=RoleConfig)
    """The frozen reference in PPO."""
    reward: RoleConfig = field(default_factory=RoleConfig)
    """The frozen reward model in PPO, and the model being trained in the reward stage."""
    threads_per_rank: int = 1
    """CPU threads of each process when it computes on the CPU; more than the cores have to give slows everything."""
    ray_address: str | None = None
    """Address of a running Ray cluster, or ``auto`` to find it; without it a Ray of this machine's own is started,
    listening on 127.0.0.1."""
    start_timeout_seconds: float = 600.0
    """Deadline for all actors to be placed and loaded."""
    phase_timeout_seconds: float = 1800.0
    """Longest time without any answer within one phase of a step."""


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """Limits of the numbers that must hold on every run; outside them the run stops and says which one, by how much and
    why it may be."""

    ratio_tolerance: float | None = None
    """First pass over fresh rollouts: |mean ratio − 1| and approximate KL stay under this. Default 1e-4 in float32,
    0.02 in bfloat16."""
    clipfrac_limit: float | None = None
    """First pass over fresh rollouts: share of tokens whose ratio is clipped, at most. Default 0 in float32, 0.01 in
    bfloat16."""
    step0_kl_limit: float | None = None
    """KL to the reference before the first update, in nats a token, at most in size. Default 1e-4 in float32, 0.02 in
    bfloat16."""
    logprob_gap_limit: float | None = None
    """Mean |log-probability by the trainer − by the engine| over response tokens, on every step. Default 1e-4 in
    float32, 0.05 in bfloat16."""
    min_kl: float = -1.0
    """Mean sequence KL to the reference in nats, at least: a negative value means that sampling and log-probabilities
    disagree."""
    max_kl: float | None = None
    """Mean sequence KL to the reference in nats, at most: the recipe's cap. None leaves it open."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What is written down and shown while a run goes on."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto`` is online when an API key is configured and offline otherwise (``wandb sync`` uploads later)."""
    project: str = "rlhf"
    """W&B project."""
    group: str | None = None
    """W&B group; the stages of one pipeline share the recipe's name by default."""
    tags: tuple[str, ...] = ()
    """W&B tags."""
    samples_per_step: int = 4
    """Rows of ``samples.jsonl`` per PPO step."""
    progress: bool = True
    """Show progress bars on a terminal; without a terminal one line per report is printed."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The comparison at the end of ``rlhf pipeline``: the same held-out prompts answered by the SFT model and by the
    policy."""

    scorer: str | None = None
    """Quality judge: ``package.module:function`` or ``file.py:function``, taking lists of prompts and responses and
    returning floats. Without it the two models' answers are kept, and nothing is compared."""
    prompts: int = 200
    """Held-out prompts answered by each side."""
    show: int = 3
    """Prompts whose two answers are printed side by side."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run."""

    name: str
    """Name of the run and of its folder under ``runs_dir``."""
    seed: int = 0
    """Seed of everything: data order, initial weights, sampling."""
    runs_dir: str = "runs"
    """Folder that holds the runs' folders."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    canaries: CanaryConfig = field(default_factory=CanaryConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
