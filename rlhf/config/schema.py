"""Every option of a run, with its meaning under it. ``docs/configuration.md`` is generated from this file.

All sections are frozen and keyword-only, and validate their values when they are constructed: types, limits of single
numbers, and rules that concern one section alone. Rules between sections are in ``validate``. A default is what a
careful user would start from; a field exists only because some run needs another value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, fields
from typing import Annotated, Literal, Self

from pydantic import StrictBool, StrictInt, StrictStr, model_validator

from rlhf.config.fields import (
    HERE,
    AboveOne,
    AtLeastOne,
    BelowHalf,
    BelowOne,
    ByteVocabulary,
    CollectorUrl,
    Count,
    CountOrZero,
    ExactInt,
    Fraction,
    MetricName,
    NotNegative,
    NotPositive,
    Number,
    OffSwitch,
    OpenFraction,
    PartName,
    Positive,
    Seconds,
    Seed,
    ServiceUrl,
    Share,
    Temperature,
    Texts,
    ZeroOrOne,
    refuse,
    section,
)
from rlhf.errors import UserError


@section
class ScratchConfig:
    """A small Llama-style model made from nothing, with a tokenizer trained on the run's own text."""

    hidden_size: Count = 128
    """Width of the residual stream: ``heads`` times a head width that vLLM has a kernel for: 32, 64, 80, 96, ..."""
    layers: Count = 4
    """Number of decoder layers."""
    heads: Count = 4
    """Number of attention heads (and of key-value heads)."""
    intermediate_size: Count = 384
    """Width inside the feed-forward block."""
    vocab_size: ByteVocabulary = 1024
    """Largest vocabulary that the byte-level BPE tokenizer may learn, special tokens included."""
    max_length: Count = 512
    """Longest sequence in tokens: the model's context."""
    tie_embeddings: StrictBool = True
    """Share the matrix of the input embedding and the output head."""


@section
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021) in place of training all weights: W + (alpha/rank)·B·A, B zero at the start.

    The frozen weights are the reference for free. Engines, and the saved model, get the merged weights.
    """

    rank: Count = 16
    """Rank of A and B."""
    alpha: Positive = 32.0
    """Scale of the update, over ``rank``."""
    targets: Texts = ("all-linear",)
    """Names of the linear layers that get adapters; ``all-linear`` is every one but the output head."""


@section
class ModelConfig:
    """The language model that every role starts from."""

    path: StrictStr | None = None
    """Folder or hub name of a pretrained causal language model that vLLM serves; give this or ``scratch``."""
    scratch: ScratchConfig | None = None
    """Make a small model from nothing instead of loading one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward passes and of the engine; master weights and optimizer states stay float32."""
    lora: LoRAConfig | None = None
    """Train adapters instead of all weights, in SFT, DPO and PPO."""
    gradient_checkpointing: StrictBool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    packing: Annotated[Literal["auto", "off"], OffSwitch] = "auto"
    """Whether sequences share a row without padding. ``auto`` tries every model before its stage begins, and gives each
    sequence a row of its own where the model lets neighbours in a row change each other; ``off`` always does."""
    trust_remote_code: StrictBool = False
    """Run Python code that comes with the model. Leave it off unless you have read that code."""
    chat_template: StrictStr | None = None
    """Path of a Jinja chat template, for a tokenizer without one or in place of its own."""


@section
class DataConfig:
    """Where the human data is and how it is read. A stage's own path wins over ``path``."""

    path: StrictStr | None = None
    """File, folder or hub name that serves all stages (a preference file does: chosen answers teach SFT, prompts serve
    PPO)."""
    demonstrations: StrictStr | None = None
    """Data of the SFT stage: prompt-completion rows, ``messages``, or preferences whose chosen answers are used."""
    preferences: StrictStr | None = None
    """Data of the reward and DPO stages: rows with chosen and rejected answers."""
    prompts: StrictStr | None = None
    """Data of the PPO stage: rows with a prompt; answers in them are ignored."""
    format: Literal["auto", "jsonl", "json", "parquet", "datasets", "hh"] = "auto"
    """How files are read; ``auto`` goes by the name's ending and the first row. ``hh`` is Anthropic's transcripts."""
    split: StrictStr = "train"
    """Which split of a ``datasets`` folder or hub dataset is read, or of a folder of files by their names."""
    columns: dict[StrictStr, StrictStr] = field(default_factory=dict)
    """Renames: the name that rlhf knows (prompt, completion, chosen, rejected, messages, text, label, margin, system,
    input, tools, documents, chat_template_kwargs) to the name in your file, or to a dotted path into a nested column
    (``outputs.0.text``). Beside two answers ``label`` says which of them won; several (``a, b, c``) are votes, or
    stand for one outcome each."""
    labels: dict[StrictStr, StrictStr] = field(default_factory=dict)
    """What a label beside two answers says: its value to ``chosen``, ``rejected`` (the column of that name won) or
    ``tie``. Empty: 1, 2 and 0, a and b, and the columns' own names and numbers are understood where they are
    unambiguous."""
    ignore: Texts = ()
    """Columns of the file, or dotted paths into them, that are not to be read, on purpose."""
    held_out_fraction: BelowOne = 0.1
    """Share of the prompts kept out of training for evaluation; the split is by prompt, so no prompt is on both
    sides."""
    max_prompt_length: Count = 256
    """Longest prompt in tokens. Longer prompts are handled as ``long_prompts`` says."""
    max_response_length: Count = 256
    """Longest response in tokens, end token included, in training data. A longer one is set aside and counted, never
    cut."""
    long_prompts: Literal["drop", "truncate_left", "error"] = "drop"
    """What happens to a longer prompt: set aside and counted, cut at its beginning and counted, or refused."""
    bad_rows: Literal["skip", "error"] = "skip"
    """A malformed row is reported with file and line; then it is skipped and counted, or the run is refused."""
    max_rows: Count | None = None
    """Read no more than this many rows of each file."""


@section
class OptimizerConfig:
    """AdamW and its schedule, the same for every trained model."""

    lr: Positive = 1e-5
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after warm-up; ``linear`` and ``cosine`` reach 0 at the last update."""
    warmup_steps: CountOrZero = 0
    """Updates over which the rate rises from 0 to ``lr``."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""
    eps: Positive = 1e-5
    """Adam's epsilon; 1e-5 rather than 1e-8 keeps the first steps small (Ziegler et al. 2019; Huang et al. 2024)."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay."""
    max_grad_norm: NotNegative = 1.0
    """Gradients are scaled down to this global norm; 0 switches clipping off."""


@section
class SFTConfig:
    """Supervised fine-tuning on demonstrations: the loss is on the completion, its end token included."""

    train_on: Literal["last", "all"] = "last"
    """Which of the assistant's turns in a conversation carry the loss: the last one or all of them. A conversation is
    one example for all its turns where the chat template writes each of them the same whether or not others follow,
    else one example for each turn."""
    epochs: Count = 1
    """Passes over the demonstrations."""
    batch_size: Count = 32
    """Demonstrations per update, over all ranks."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-5))
    """Optimizer and schedule."""
    eval_every: Count = 50
    """Updates between evaluations on held-out demonstrations; the last update is always evaluated."""


@section
class RewardConfig:
    """The reward model: a sequence classifier trained on comparisons, −log σ(r_chosen − r_rejected − margin)."""

    epochs: Count = 1
    """Passes over the comparisons; more than one over-fits (InstructGPT, section 3.5)."""
    batch_size: Count = 32
    """Prompts per update, over all ranks; all comparisons of one prompt stay together."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    """Optimizer and schedule."""
    eval_every: Count = 50
    """Updates between evaluations on held-out comparisons; the last update is always evaluated."""
    init: StrictStr | None = None
    """Model folder to start from; without it the SFT stage's model of the same run, or ``model`` when there is none."""
    ceiling: StrictStr | None = None
    """JSON file whose ``accuracy_ceiling`` is the best accuracy that the labels' noise allows, where that is known;
    shown beside the model's."""


@section
class EndpointConfig:
    """A service that scores: it is sent ``{"prompts": [...], "responses": [...], "rows": [...]}`` as JSON and answers
    ``{"scores": [...]}``, one finite number a response."""

    url: ServiceUrl
    """Address that takes a POST request, for example ``http://127.0.0.1:8000/score``."""
    batch_size: Count = 32
    """Samples per request."""
    connections: Count = 4
    """Requests under way at one time, over connections that are kept open."""
    timeout_seconds: Seconds = 30.0
    """Longest time that one request may take."""
    retries: CountOrZero = 3
    """Further attempts after a request that failed or was late, each after twice the wait of the one before."""
    on_failure: Literal["fail", "retry", "drop"] = "fail"
    """When all attempts failed: stop the run, go on trying until ``placement.phase_timeout_seconds``, or leave the
    request's samples out of the update and count them."""


TRAINED = "trained"
"""In place of a model's folder: the model of the run's reward stage."""
REWARD_KINDS = ("model", "function", "endpoint")


@section
class RewardSourceConfig:
    """One part of the reward: exactly one of ``model``, ``function`` and ``endpoint``."""

    model: StrictStr | None = None
    """Folder or hub name of a sequence classifier of any architecture, or ``trained``: that of the run's reward stage.
    With a tokenizer other than the policy's it is given the text; an encoder is given prompt and response as a pair."""
    label: StrictInt | StrictStr | None = None
    """Which of a model's labels is the score, by index or name: its logit as it is. Needed where there are several."""
    max_length: Count | None = None
    """Longest sequence in tokens that a model is given; what exceeds it is cut at the prompt's beginning and counted.
    By default the model's own context."""
    function: StrictStr | None = None
    """A Python function, ``package.module:function`` or ``file.py:function``, that takes lists of prompts and responses
    and returns a list of floats; a third parameter named ``rows`` is given each prompt's data row."""
    endpoint: EndpointConfig | None = None
    """An HTTP service."""
    weight: Number = 1.0
    """Factor of this part in the sum."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[UserError]:
        given = [kind for kind in REWARD_KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            yield UserError(
                f"{HERE} has {' and '.join(given) or 'none'} of {', '.join(REWARD_KINDS)}",
                "a part of the reward is exactly one of them",
                f"keep one; a second one is a part of its own under another name, and {HERE}.<kind>=null leaves one out"
                if given
                else f"{HERE}.function=file.py:function, {HERE}.model=<folder, or {TRAINED}>, or "
                f"{HERE}.endpoint.url=http://...",
            )
        for name in ("label", "max_length"):
            value = getattr(self, name)
            if value is not None and self.model is None:
                why = "it is about a model that is read"
                yield UserError(f"{HERE}.{name} = {value!r} and no model folder", why, f"leave out {HERE}.{name}")
        if self.label is not None and self.model == TRAINED:
            what = f"{HERE}.label = {self.label!r} and {HERE}.model = {TRAINED!r}"
            yield UserError(what, "the run's reward model has one label", f"leave out {HERE}.label")


@section
class AdaptiveKLConfig:
    """β that follows a target (Ziegler et al. 2019): after each step β is multiplied by
    1 + clip(KL/target − 1, ±0.2) · batch_size/horizon."""

    target: Positive = 6.0
    """KL to the reference that is aimed at, in nats a response: summed over tokens, averaged over responses."""
    horizon: Count = 10000
    """Responses over which β may change by a fifth."""


Stage = Literal["sft", "reward", "dpo", "ppo", "pipeline", "generate"]
"""A command that runs a recipe."""
CRITIC_OPTIONS = ("gamma", "lam", "value_clip_range", "critic_warmup_steps")
"""Options of the algorithm that only a critic's advantages or updates use."""
LossMean = Literal["token", "sequence", "constant"]
AlgorithmName = Literal["ppo", "grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"]


@section
class AlgorithmConfig:
    """What the policy is trained by; names as in the papers, a page for each in ``docs/algorithms/``.

    ``kl_in``, ``loss_mean`` and ``whiten_advantages`` are the algorithm's own where the recipe leaves them out.
    """

    name: AlgorithmName = "ppo"
    """``ppo`` has a critic; the others compare responses to one prompt, or to the whole batch (``reinforce++``)."""
    kl_coef: NotNegative = 0.05
    """β: weight of the KL to the reference."""
    kl_in: Literal["reward", "loss"] | None = None
    """Where the KL goes: into each token's reward (the estimator k1), or into the loss (the value of k3 with the
    gradient of the reverse KL)."""
    adaptive_kl: AdaptiveKLConfig | None = None
    """Let β follow a target KL, starting from ``kl_coef``."""
    clip_range: OpenFraction = 0.2
    """ε: the ratio is clipped to [1 − ε, 1 + ε]."""
    clip_range_high: Positive | None = None
    """Upper ε where it differs: the ratio is clipped to [1 − clip_range, 1 + clip_range_high]."""
    dual_clip: AboveOne | None = None
    """c > 1: where the advantage is negative, the loss is at most −c·Â (Ye et al. 2020); none leaves it unbounded."""
    value_clip_range: Positive | None = 0.2
    """ε_v: the new value is clipped to within this of the old one; none switches it off."""
    entropy_coef: NotNegative = 0.0
    """Weight of the entropy bonus in the loss."""
    gamma: Fraction = 1.0
    """γ: discount per token."""
    lam: Fraction = 0.95
    """λ of generalised advantage estimation."""
    whiten_advantages: StrictBool | None = None
    """Shift and scale advantages to mean 0 and variance 1 over the response tokens of the global batch."""
    loss_mean: LossMean | None = None
    """What the loss is an average of, always over the global batch: all tokens; responses, each the mean of its tokens;
    or responses, each the sum of its tokens over ``rollout.max_response_length``."""
    missing_eos: Literal["replace", "subtract"] = "replace"
    """A response without an end token: the penalty stands in place of its score, or is taken off it."""
    missing_eos_penalty: NotNegative | None = 1.0
    """Size of that penalty; none switches it off."""
    length_penalty: NotNegative = 0.0
    """Taken off the score for every token of the response."""
    reward_scale: Literal["none", "running_std"] = "none"
    """Divide scores by their standard deviation over all steps so far; β then weighs against scaled scores."""
    reward_clip: Positive | None = None
    """Scores, after scaling, are clipped to within this of 0."""
    epochs: Count = 4
    """Passes over each batch of rollouts."""
    minibatches: Count = 1
    """Updates per pass; ``ppo.batch_size`` is divisible by it."""
    target_kl: Positive | None = None
    """End the policy's updates of a step early once one finds it this far from where the step began: mean of
    ½ (log ratio)² over tokens, in nats. The critic makes all of its updates."""
    importance_sampling: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "token_truncate"
    )
    """Correction where the engine's probabilities differ from the trainer's: weights π_trainer/π_engine of tokens or
    of whole responses, cut off at ``importance_cap`` (truncate), or 0 beyond it (mask)."""
    importance_cap: AtLeastOne = 2.0
    """Largest importance weight."""
    critic_warmup_steps: CountOrZero = 0
    """First steps in which only the critic learns."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        for key, value in ALGORITHM_DEFAULTS[self.name].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[UserError]:
        """Options that could never act, or that undo each other. What is merely unusual passes."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        given = {f"algorithm.{key}": changed[key] for key in CRITIC_OPTIONS if key in changed}
        if given and not self.has_critic:
            shown = (f"{key} = {'null' if value is None else value}" for key, value in given.items())
            yield UserError(
                f"{', '.join(shown)}: {self.name} has no critic",
                "they shape the critic's values and the advantages made from them, and would do nothing",
                f"leave out {', '.join(given)}, or algorithm.name=ppo",
            )
        if self.name == "dr_grpo" and self.whiten_advantages:
            yield UserError(
                "algorithm.whiten_advantages = true with algorithm.name = dr_grpo",
                "dr_grpo exists to leave the division by a standard deviation out",
                "leave out algorithm.whiten_advantages, or use grpo: algorithm.name=grpo",
            )
        if self.name == "dr_grpo" and self.loss_mean == "sequence":
            yield UserError(
                "algorithm.loss_mean = sequence with algorithm.name = dr_grpo",
                "dr_grpo exists to leave the division by each response's length out",
                "leave out algorithm.loss_mean, or use grpo: algorithm.name=grpo",
            )
        if self.adaptive_kl is not None and self.kl_coef == 0:
            yield UserError(
                "algorithm.adaptive_kl with algorithm.kl_coef = 0",
                "each step multiplies β by a factor, and 0 stays 0",
                "algorithm.kl_coef=0.05 to start from, or algorithm.adaptive_kl=null for no KL at all",
            )
        if self.missing_eos == "subtract" and self.missing_eos_penalty is None:
            yield UserError(
                "algorithm.missing_eos = subtract with algorithm.missing_eos_penalty = null",
                "there is nothing to take off the score",
                "algorithm.missing_eos_penalty=1.0, or leave out algorithm.missing_eos",
            )
        edge = 1 + self.clip_high
        if self.dual_clip is not None and self.dual_clip < edge:
            key = "clip_range" if self.clip_range_high is None else "clip_range_high"
            yield UserError(
                f"algorithm.dual_clip = {self.dual_clip} is less than 1 + algorithm.{key} = {edge:g}",
                "for a negative advantage the loss is |Â|ρ from 1 − ε upwards, held at |Â|c: with c < 1 + ε a token "
                "would lose its gradient at ratios ρ from c to 1 + ε, which the clip range allows",
                f"algorithm.dual_clip=3.0, or at least {edge:g}",
            )
        if self.importance_sampling == "none" and "importance_cap" in changed:
            yield UserError(
                f"algorithm.importance_cap = {self.importance_cap} with algorithm.importance_sampling = none",
                "without importance weights there is nothing to cut off",
                "leave out algorithm.importance_cap, or algorithm.importance_sampling=token_truncate",
            )
        if self.target_kl is not None and self.epochs * self.minibatches == 1:
            yield UserError(
                f"algorithm.target_kl = {self.target_kl} with a single update per step",
                "it ends a step's further updates, and there are none",
                "leave out algorithm.target_kl, or raise algorithm.epochs or algorithm.minibatches",
            )

    @property
    def has_critic(self) -> bool:
        """Whether advantages come from a critic's values."""
        return self.name == "ppo"

    @property
    def averaging(self) -> LossMean:
        """``loss_mean``, which is never none once the algorithm has filled it in."""
        assert self.loss_mean is not None
        return self.loss_mean

    @property
    def clip_high(self) -> float:
        """Upper ε."""
        return self.clip_range if self.clip_range_high is None else self.clip_range_high


ALGORITHM_DEFAULTS: dict[str, dict[str, str | bool]] = {
    "ppo": {"kl_in": "reward", "loss_mean": "token", "whiten_advantages": True},
    "grpo": {"kl_in": "loss", "loss_mean": "sequence", "whiten_advantages": False},
    "dr_grpo": {"kl_in": "loss", "loss_mean": "constant", "whiten_advantages": False},
    "rloo": {"kl_in": "reward", "loss_mean": "token", "whiten_advantages": False},
    "reinforce++": {"kl_in": "reward", "loss_mean": "token", "whiten_advantages": True},
    "reinforce++_baseline": {"kl_in": "loss", "loss_mean": "token", "whiten_advantages": True},
}
"""What each algorithm's paper does, where a recipe says nothing."""


@section
class DPOConfig:
    """Direct preference optimisation (Rafailov et al. 2023): the policy learns from comparisons without a reward model,
    −log σ(β [(log π_c − log π_r) − (log ref_c − log ref_r)])."""

    beta: Positive = 0.1
    """β: how strongly the policy is held to the reference."""
    label_smoothing: BelowHalf = 0.0
    """Share of the comparisons that are taken to be the wrong way round (conservative DPO)."""
    epochs: Count = 1
    """Passes over the comparisons."""
    batch_size: Count = 32
    """Prompts per update, over all ranks; all comparisons of one prompt stay together."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6))
    """Optimizer and schedule."""
    eval_every: Count = 50
    """Updates between evaluations on held-out comparisons; the last update is always evaluated."""
    init: StrictStr | None = None
    """Model folder to start from; without it the SFT stage's model of the same run, or ``model.path`` when there is
    none."""


@section
class EarlyStopConfig:
    """Watch for over-optimisation in PPO: a scorer that the policy is not trained on judges answers to held-out prompts
    as the run goes on, and the best policy by that scorer is kept."""

    scorer: RewardSourceConfig
    """Who judges: a second reward model, a function, or a service."""
    every: Count = 10
    """Steps between judgements; the policy before the first step and after the last one is always judged."""
    prompts: Count = 100
    """Held-out prompts answered each time, always the same."""
    patience: Count = 1
    """Judgements in a row at which the held-out score is lower than the best (paired; 5% over a whole run) while the
    reward is higher, before the run stops. The best policy becomes the run's model."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.scorer.weight == 0:
            refuse([UserError("early_stop.scorer.weight = 0", "every score would be 0", "leave it out")])
        return self


@section
class PPOConfig:
    """The loop: how much, how long, how fast."""

    steps: Count = 100
    """Rollout-and-update steps."""
    batch_size: Count = 128
    """Rollouts per step, over all ranks and engines."""
    samples_per_prompt: Count = 1
    """Responses drawn for each prompt of a step; ``batch_size`` is divisible by it."""
    staleness: ZeroOrOne = 0
    """Versions of the weights by which rollouts may be older than the policy that learns from them. 0: each step
    generates, then trains. 1: while a step trains, the engines generate the next one's rollouts, on GPUs of their
    own; ``algorithm.importance_sampling`` corrects for the older weights."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6))
    """The policy's optimizer."""
    critic_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=9e-6))
    """The critic's optimizer."""
    policy_init: StrictStr | None = None
    """Model folder of the policy and the reference; without it the SFT stage's model of the same run."""
    critic_init: StrictStr | None = None
    """Model folder that the critic starts from, with a new head; without it the first reward model among ``rewards``,
    or the policy's start where there is none."""


@section
class RolloutConfig:
    """vLLM engines that answer prompts."""

    engines: Count = 1
    """Number of engines, each its own actor."""
    tensor_parallel: Count = 1
    """GPUs per engine."""
    temperature: Temperature = 1.0
    """Sampling temperature; the trainer's log-probabilities use the same. Sampling is otherwise untouched (no top-p,
    top-k or penalties)."""
    max_response_length: Count = 256
    """Longest response in tokens, end token included."""
    block_size: Count = 32
    """Finished samples that leave an engine together to be scored while the rest are still being generated."""
    memory_gib: Positive = 1.0
    """KV cache of an engine on CPU, in GiB."""
    gpu_memory_fraction: Share = 0.5
    """Share of a GPU's memory that an engine may take."""
    enforce_eager: StrictBool = False
    """Run without compilation or CUDA graphs: slower, starts sooner."""


@section
class RoleConfig:
    """Where one model lives and how it is sharded."""

    ranks: Count = 1
    """Processes; on GPUs, one GPU each. Samples are dealt out to them, or to groups of them where
    ``sequence_parallel`` or ``tensor_parallel`` is above 1."""
    sequence_parallel: Count = 1
    """Neighbouring ranks that share each packed row, for rows that are too long for one: each computes its part of the
    places, and in attention its part of the heads (DeepSpeed Ulysses). Divides ``ranks`` and the model's heads."""
    tensor_parallel: Count = 1
    """Neighbouring ranks that share each decoder layer's matrices and compute every row together (DeepSpeed AutoTP).
    Divides ``ranks``, the model's heads and the width of its feed-forward blocks; with ZeRO 1 or 2."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], ExactInt] = 1
    """What DeepSpeed shards over the ranks: nothing, optimizer states, also gradients, also parameters."""
    offload: StrictBool = False
    """Keep optimizer states (and for stage 3 the parameters) in host memory all the time; the optimizer steps there."""
    offload_between_phases: Literal["auto", "none", "states", "all"] = "auto"
    """What of a role of PPO lies in host memory while it has nothing to do with it: ``none``; ``states``, which only an
    update needs (moments, master weights, gradients); or ``all``, its weights too. Roles with ``all`` work one after
    another, and score when all responses are there. ``auto`` is ``states`` where the role shares its GPUs, else
    ``none``."""
    micro_batch_tokens: Count = 4096
    """Token budget of one packed row, shared or not; sequences are packed into it without padding. At least one full
    sequence; a pair of answers, in reward training and DPO, stays together and may exceed it. A larger one means fewer
    passes and, in proportion, more memory."""
    share_with: Literal["policy", "critic", "reference", "reward"] | None = None
    """With ``separate``: the role whose GPUs this one uses too, rank by rank, instead of GPUs of its own. Only in PPO:
    the other stages have one role each."""
    gpu_type: StrictStr | None = None
    """Type of its GPUs as ``ray status`` names it after ``accelerator_type:``, ``H100`` for example. For clusters."""


@section
class EngineSeatConfig:
    """Where the engines sit; how many there are and how wide is in ``rollout``."""

    share_with: Literal["policy"] | None = None
    """With ``separate``: whether engine i uses the GPU of policy rank i, and sleeps while that trains."""
    gpu_type: StrictStr | None = None
    """Type of their GPUs, as for the other roles."""


@section
class PlacementConfig:
    """Which role gets which processes and GPUs."""

    strategy: Literal["auto", "colocated", "separate"] = "auto"
    """``colocated``: all roles share every GPU, vLLM sleeps while training, weights move by CUDA IPC. ``separate``:
    each role owns its GPUs, weights move by NCCL. ``auto``: separate when there are GPUs enough and everything fits by
    the figures of `rlhf plan`, otherwise colocated; the run says why. Without GPUs all are CPU processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes GPUs when the machine or cluster has them."""
    policy: RoleConfig = field(default_factory=RoleConfig)
    """The policy in PPO, and the model being trained in SFT and DPO."""
    critic: RoleConfig = field(default_factory=RoleConfig)
    """The critic in PPO."""
    reference: RoleConfig = field(default_factory=RoleConfig)
    """The frozen reference in PPO."""
    reward: RoleConfig = field(default_factory=RoleConfig)
    """The frozen reward model in PPO, and the model being trained in the reward stage."""
    rollout: EngineSeatConfig = field(default_factory=EngineSeatConfig)
    """The vLLM engines."""
    threads_per_rank: Count = 1
    """CPU threads of each process when it computes on the CPU; more than the cores have to give slows everything."""
    ray_address: StrictStr | None = None
    """Address of a running Ray cluster, or ``auto`` to find it; without it a Ray of this machine's own is started,
    listening on 127.0.0.1."""
    start_timeout_seconds: Seconds = 600.0
    """Deadline for all actors to be placed and loaded."""
    phase_timeout_seconds: Seconds = 1800.0
    """Longest time without any answer within one phase of a step."""

    def host_of(self, role: str) -> str | None:
        """The role whose GPUs a role uses; ``None`` where it has its own."""
        host: str | None = getattr(self, role).share_with
        return host

    def gpu_type_of(self, role: str) -> str | None:
        """The type of GPUs that a role asks for."""
        kind: str | None = getattr(self, role).gpu_type
        return kind


@section
class CheckpointConfig:
    """What is kept of a PPO run so that the same command goes on where it ended, whatever ended it."""

    every: Count = 10
    """Steps between checkpoints; the last step always has one, and so has a stop on request."""
    keep_last: Count = 2
    """Newest checkpoints that are kept. An older one goes only after a newer one is whole on the disk."""
    keep_best: CountOrZero = 1
    """Best checkpoints that are kept besides, by ``best_metric``; 0 keeps none."""
    best_metric: MetricName = "objective/rlhf_reward"
    """Metric of the step at which a checkpoint was made that says how good it is: higher is better."""
    snapshot_every: CountOrZero = 1
    """Steps between snapshots in the nodes' memory, from which a policy or critic that died is rebuilt; 0 makes none
    between checkpoints, and what was trained since the last checkpoint is trained again."""
    failures: Count = 3
    """Checkpoints in a row that may fail to be written (a full disk) before the run stops."""
    grace_seconds: Seconds = 120.0
    """Longest time between a request to stop (SIGTERM, SIGINT) and the end of the process."""
    time_limit_seconds: Seconds | None = None
    """How long a scheduler lets this command run, where it has a limit; in a SLURM job its end is known without."""
    before_deadline: NotNegative = 300.0
    """Seconds before that limit at which the run commits a checkpoint and ends with exit code 75."""
    changed_data: Literal["refuse", "accept"] = "refuse"
    """What happens where a data file has other content than when the checkpoint was made or the stage was finished:
    the run is refused, or it goes on on purpose: a finished stage is kept as it is, PPO begins an epoch of the new
    prompts."""


@section
class RecoveryConfig:
    """What a run bears before it gives up."""

    restarts: CountOrZero = 20
    """Restarts in one command; one more loss ends it with exit code 3 and the history. Whatever is lost at one moment,
    one actor or all ranks of a group, is one restart."""
    backoff_seconds: NotNegative = 0.5
    """Wait before a role is restarted that has died before; it doubles with each death of the role in a row."""
    backoff_limit_seconds: NotNegative = 60.0
    """Longest such wait."""
    stall_factor: AboveOne = 20.0
    """An answer is late after this many times the longest that the same work of the same role has taken so far; never
    later than ``placement.phase_timeout_seconds``, which is the limit of work that has not been done before."""
    stall_floor_seconds: Seconds = 120.0
    """An answer is never late before this, however fast the work has been."""
    bad_samples: CountOrZero = 100
    """Samples that may be set aside in all, because the engine failed on their prompt or gave no response."""


@section
class CanaryConfig:
    """Limits of the numbers that must hold on every run; outside them the run stops and says which one, by how much and
    why it may be."""

    ratio_tolerance: Positive | None = None
    """First pass over fresh rollouts: |mean ratio − 1| and approximate KL stay under this. Default 1e-4 in float32,
    0.02 in bfloat16."""
    clipfrac_limit: Fraction | None = None
    """First pass over fresh rollouts: share of tokens whose ratio is clipped, at most. Default 0 in float32, 0.01 in
    bfloat16."""
    step0_kl_limit: Positive | None = None
    """KL to the reference before the first update, in nats a token, at most in size. Default 1e-4 in float32, 0.02 in
    bfloat16."""
    logprob_gap_limit: Positive | None = None
    """Mean |log-probability by the trainer − by the engine| over response tokens, on every step. Default 1e-4 in
    float32, 0.05 in bfloat16."""
    min_kl: NotPositive = -1.0
    """Mean sequence KL to the reference in nats, at least: a negative value means that sampling and log-probabilities
    disagree."""
    max_kl: Positive | None = None
    """Mean sequence KL to the reference in nats, at most: the recipe's cap. None leaves it open."""


@section
class AlertConfig:
    """Warnings while PPO goes on: events of the kind ``alert``, and W&B's alerts, which reach people by mail or chat.
    None of them stops a run; ``canaries`` do."""

    max_kl: Positive | None = None
    """Mean sequence KL to the reference in nats above which there is one. Without it, four fifths of
    ``canaries.max_kl``, where that is set."""
    length_share: BelowOne = 0.5
    """Share of the mean length of the first five steps' responses below which there is one; 0 switches it off."""
    entropy_share: BelowOne = 0.2
    """The same for the policy's entropy."""
    restarts: CountOrZero = 1
    """Restarts of actors, since the last such warning, for which there is one; 0 switches it off."""
    repeat_steps: Count = 50
    """Steps for which a warning of the same kind is not given again."""


@section
class TrackingConfig:
    """What is written down and shown while a run goes on."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto`` is online when an API key is configured and offline otherwise (``wandb sync`` uploads later)."""
    project: StrictStr = "rlhf"
    """W&B project."""
    run_name: StrictStr | None = None
    """W&B name of the run, the recipe's own by default; the stage is put after it."""
    group: StrictStr | None = None
    """W&B group; the stages of one pipeline share the recipe's name by default."""
    tags: Texts = ()
    """W&B tags."""
    artifacts: Literal["none", "model", "checkpoints"] = "none"
    """What is handed to W&B as artifacts: nothing, the finished model, or that and every checkpoint. Each checkpoint is
    copied first, while the run waits."""
    tensorboard: StrictBool = False
    """Write TensorBoard's event files too, into ``tensorboard/`` in the stage's folder."""
    samples_per_step: CountOrZero = 4
    """Rows of ``samples.jsonl`` per PPO step, drawn at random; of three or more, two are chosen so that the best and
    the worst response of the batch are there."""
    table_every: Count = 10
    """Steps between tables of samples in W&B and TensorBoard."""
    table_rows: Count = 30
    """Rows of such a table at most: the best, the worst and random ones of these steps, a third each."""
    histogram_every: Count = 10
    """Steps between histograms."""
    opentelemetry: CollectorUrl | None = None
    """An OpenTelemetry collector's address, such as ``http://127.0.0.1:4318``: the timeline is sent there too, by OTLP
    over HTTP. Headers, with a token say, come from ``OTEL_EXPORTER_OTLP_HEADERS``."""
    progress: StrictBool = True
    """Show progress bars on a terminal; without a terminal one line per report is printed."""
    alerts: AlertConfig = field(default_factory=AlertConfig)
    """When people are to be warned."""


@section
class EvaluationConfig:
    """The comparison at the end of ``rlhf pipeline``: the same held-out prompts answered by the SFT model and by the
    policy."""

    scorer: StrictStr | None = None
    """Quality judge: ``package.module:function`` or ``file.py:function``, taking lists of prompts and responses and
    returning floats. Without it the two models' answers are kept, and nothing is compared."""
    prompts: Count = 200
    """Held-out prompts answered by each side."""
    show: CountOrZero = 3
    """Prompts whose two answers are printed side by side."""


@section
class Recipe:
    """One run."""

    name: StrictStr
    """Name of the run and of its folder under ``runs_dir``."""
    seed: Seed = 0
    """Seed of everything: data order, initial weights, sampling."""
    runs_dir: StrictStr = "runs"
    """Folder that holds the runs' folders."""
    deterministic: StrictBool = False
    """The same numbers to the last bit whenever this recipe runs on the same kind of machine; generation waits for the
    slowest of each block."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rewards: dict[PartName, RewardSourceConfig] = field(
        default_factory=lambda: {"model": RewardSourceConfig(model=TRAINED)}
    )
    """What PPO's score is the weighted sum of, each part under a name of its own."""
    dpo: DPOConfig = field(default_factory=DPOConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    early_stop: EarlyStopConfig | None = None
    """Stop on over-optimisation; none leaves the run to its last step."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    canaries: CanaryConfig = field(default_factory=CanaryConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def reward_models(self) -> dict[str, RewardSourceConfig]:
        """The parts of the reward that are models."""
        return {name: source for name, source in self.rewards.items() if source.model is not None}

    @property
    def trains_reward(self) -> bool:
        """Whether PPO is scored, or watched, by the model of the run's own reward stage."""
        judge = () if self.early_stop is None else (self.early_stop.scorer,)
        return any(source.model == TRAINED for source in (*self.rewards.values(), *judge))

    @property
    def has_reference(self) -> bool:
        """Whether PPO has a reference model of its own; a policy of adapters is its own reference."""
        return self.model.lora is None
