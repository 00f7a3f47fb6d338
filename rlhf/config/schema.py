"""Every option of a run, with its meaning under it. ``docs/configuration.md`` is generated from this file.

All sections are frozen and keyword-only, and validate their values when they are constructed: types, limits of numbers,
and rules within one section. Rules between sections are in ``rlhf/validate.py``. A default is what a careful user would
start from; a field exists only because some run needs another value.
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
    Batch,
    BelowHalf,
    BelowOne,
    ByteVocabulary,
    Coefficient,
    CollectorUrl,
    Context,
    Count,
    CountOrZero,
    Epochs,
    Epsilon,
    ExactInt,
    Factor,
    Fraction,
    Layers,
    LearningRate,
    MetricName,
    NotNegative,
    NotPositive,
    OffSwitch,
    OpenFraction,
    PartName,
    Positive,
    PositiveCoefficient,
    Processes,
    ScorerUrl,
    Seconds,
    SecondsOrZero,
    Seed,
    Several,
    Share,
    Temperature,
    Texts,
    Weight,
    Width,
    ZeroOrOne,
    defaults_of,
    refuse,
    section,
)
from rlhf.errors import UserError


@section
class ScratchConfig:
    """A small, randomly initialised Llama-style model, with a tokenizer trained on the run's own text."""

    hidden_size: Width = 128
    """Width of the residual stream: ``heads`` times a head width that vLLM supports: 32, 64, 80, 96, ..."""
    layers: Layers = 4
    """Number of decoder layers."""
    heads: Width = 4
    """Number of attention heads (and of key-value heads)."""
    intermediate_size: Width = 384
    """Width inside the feed-forward block."""
    vocab_size: ByteVocabulary = 1024
    """Largest vocabulary that the byte-level BPE tokenizer may learn, special tokens included."""
    max_length: Context = 512
    """Longest sequence in tokens: the model's context."""
    tie_embeddings: StrictBool = True
    """Share the matrix of the input embedding and the output head."""


@section
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021) in place of training all weights: W + (alpha/rank)·B·A, B zero at the start.

    The frozen weights serve as the reference. Engines and the saved model get the merged weights.
    """

    rank: Width = 16
    """Rank of A and B."""
    alpha: PositiveCoefficient = 32.0
    """Scale of the update, over ``rank``."""
    targets: Texts = ("all-linear",)
    """Names of the linear layers that get adapters; ``all-linear`` means all except the output head."""
    quantization: Literal["nf4"] | None = None
    """Precision of the frozen linear layers: null for ``model.dtype``, ``nf4`` for 4 bits with double quantisation
    (QLoRA, Dettmers et al. 2023). With ``nf4`` the reward stage trains adapters and its head too."""
    publish: Literal["merged", "adapter"] = "merged"
    """What PPO sends to the engines after each update: the merged weights, or A and B alone, which vLLM adds to the
    outputs of the base model's layers."""


@section
class ModelConfig:
    """The language model that every role starts from."""

    path: StrictStr | None = None
    """Folder or hub name of a pretrained causal language model that vLLM supports; set either this or ``scratch``."""
    scratch: ScratchConfig | None = None
    """Create a small, randomly initialised model instead of loading one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward passes and of the engine; master weights and optimizer states stay float32."""
    lora: LoRAConfig | None = None
    """Train adapters instead of all weights, in SFT, DPO and PPO."""
    gradient_checkpointing: StrictBool = False
    """Recompute activations in the backward pass: takes less memory and about a third more time."""
    packing: Annotated[Literal["auto", "off"], OffSwitch] = "auto"
    """Whether sequences share a row without padding. ``auto`` probes every model before its stage begins, and gives
    each sequence a separate row if sequences in one row would influence each other; ``off`` always gives separate
    rows."""
    trust_remote_code: StrictBool = False
    """Run Python code that comes with the model. Leave it off unless you have read this code."""
    chat_template: StrictStr | None = None
    """Path of a Jinja chat template, which replaces the tokenizer's own, if any."""

    @property
    def engine_lora(self) -> LoRAConfig | None:
        """Adapters that the engines load, instead of merged weights."""
        return self.lora if self.lora is not None and self.lora.publish == "adapter" else None

    @property
    def reward_lora(self) -> LoRAConfig | None:
        """Adapters of the reward stage, which trains them only on a quantised model."""
        return self.lora if self.lora is not None and self.lora.quantization is not None else None


@section
class DataConfig:
    """Location and format of the human data. A stage's own path takes precedence over ``path``."""

    path: StrictStr | None = None
    """File, folder or hub name of data for all stages: a preference file or feedback project, whose chosen answers are
    used in SFT and whose prompts are used in PPO."""
    demonstrations: StrictStr | None = None
    """Data of the SFT stage: prompt-completion rows, ``messages``, or preferences whose chosen answers are used."""
    preferences: StrictStr | None = None
    """Data of the reward and DPO stages: rows with chosen and rejected answers, for ``reward.loss: pointwise`` and
    ``dpo.loss: kto`` rows with completion and label, or a feedback project."""
    aggregation: Literal["majority", "dawid_skene", "bradley_terry"] | None = None
    """How several votes on two answers of a feedback project become one preference, and its margin; null: by
    ``majority``. ``dawid_skene`` weighs each rater by an estimated accuracy, ``bradley_terry`` fits strengths of all
    answers that were compared with each other. ``data.ignore=[margin]`` trains without the margin."""
    ties: Literal["drop", "both_orders"] | None = None
    """How two answers of a feedback project that are equally good are handled: left out and counted (``drop``, also
    null), or trained on in both orders with margin 0, which pulls their scores together."""
    prompts: StrictStr | None = None
    """Data of the PPO stage: rows with a prompt; their answers are ignored."""
    format: Literal["auto", "jsonl", "json", "parquet", "datasets", "hh"] = "auto"
    """Format of the files; ``auto`` detects it from the file name extension and the first row. ``hh`` is the format of
    Anthropic's transcripts."""
    split: StrictStr = "train"
    """Split of a ``datasets`` folder or hub dataset to read, or, by file names, of a folder of files."""
    columns: dict[StrictStr, StrictStr] = field(default_factory=dict)
    """Column names: maps a name that rlhf reads (prompt, completion, chosen, rejected, messages, text, label, margin,
    system, input, tools, documents, chat_template_kwargs) to the name in the file, or to a dotted path into a nested
    column (``outputs.0.text``). For rows with two answers ``label`` names the column of the winner; several columns
    (``a, b, c``) are votes, or represent one outcome each."""
    labels: dict[StrictStr, StrictStr] = field(default_factory=dict)
    """Meaning of labels in rows with two answers: maps a label to ``chosen`` or ``rejected`` (the column of this name
    won) or ``tie``. If empty, 1, 2 and 0, a and b, and the columns' own names and numbers are understood if they are
    unambiguous."""
    ignore: Texts = ()
    """Columns of the file, or dotted paths into them, to ignore without a remark."""
    held_out_fraction: BelowOne = 0.1
    """Fraction of the prompts held out of training for evaluation; the split is by prompt, so that no prompt is in both
    parts."""
    preference_fraction: Share = 1.0
    """Fraction of the training prompts whose comparisons are used, for curves over the number of labels: the held-out
    comparisons stay the same, and a smaller fraction is part of a larger one."""
    max_prompt_length: Context = 256
    """Longest prompt in tokens; ``long_prompts`` defines how longer ones are handled."""
    max_response_length: Context = 256
    """Longest response in training data, in tokens, end token included. Longer ones are left out and counted, never
    truncated."""
    long_prompts: Literal["drop", "truncate_left", "error"] = "drop"
    """How a longer prompt is handled: left out and counted, truncated at its beginning and counted, or an error."""
    bad_rows: Literal["skip", "error"] = "skip"
    """How a malformed row is handled, which is always reported with file and line: skipped and counted, or an error."""
    max_rows: Count | None = None
    """Largest number of rows to read of each file."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if None not in (self.path, self.demonstrations, self.preferences, self.prompts):
            error = UserError(
                f"data.path = {self.path!r} has no effect",
                "data.demonstrations, data.preferences and data.prompts are set, and each takes precedence",
                "set the one that your file is for (data.preferences=...), or add data.demonstrations=null, "
                "data.preferences=null or data.prompts=null for those that are to be read from data.path",
            )
            refuse([error])
        return self


@section
class OptimizerConfig:
    """AdamW and its schedule, the same for every trained model."""

    lr: LearningRate = 1e-5
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after warm-up; ``linear`` and ``cosine`` decay to 0 at the last update."""
    warmup_steps: CountOrZero = 0
    """Number of updates over which the rate rises from 0 to ``lr``."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""
    eps: Epsilon = 1e-5
    """Adam's epsilon; 1e-5 rather than 1e-8 keeps the first steps small (Ziegler et al. 2019; Huang et al. 2024)."""
    weight_decay: Coefficient = 0.0
    """Decoupled weight decay."""
    max_grad_norm: NotNegative = 1.0
    """Gradients are scaled down to this global norm; 0 disables clipping."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.lr * self.weight_decay >= 1:
            refuse(
                [
                    UserError(
                        f"{HERE}.weight_decay = {self.weight_decay:g} with {HERE}.lr = {self.lr:g}",
                        "each update multiplies the weights by 1 - lr * weight_decay, which would not be above 0",
                        f"{HERE}.weight_decay=0.1, or 0 for none",
                    )
                ]
            )
        return self


@section
class SFTConfig:
    """Supervised fine-tuning on demonstrations. The loss covers the completion, end token included."""

    train_on: Literal["last", "all"] = "last"
    """Assistant turns of a conversation that are trained on: the last one or all. With ``all``, a conversation is one
    example if the chat template renders each turn independently of the turns after it, else one example per turn."""
    epochs: Epochs = 1
    """Passes over the demonstrations."""
    batch_size: Batch = 32
    """Demonstrations per update, over all ranks."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-5))
    """Optimizer and schedule."""
    eval_every: Count = 50
    """Number of updates between evaluations on held-out demonstrations; the last update is always evaluated."""


@section
class RewardConfig:
    """The reward model: a sequence classifier trained on comparisons, −log σ(r_chosen − r_rejected − margin), or on
    single answers."""

    loss: Literal["pairwise", "pointwise"] = "pairwise"
    """``pairwise``: the loss above. ``pointwise``: −log σ(r) of good answers and −log σ(−r) of bad ones, on unpaired
    data: rows with prompt, completion and label (true or false), or the thumbs of a feedback project."""
    epochs: Epochs = 1
    """Passes over the comparisons; more than one overfits (InstructGPT, section 3.5)."""
    batch_size: Batch = 32
    """Prompts per update, over all ranks; all comparisons of one prompt stay together."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    """Optimizer and schedule."""
    eval_every: Count = 50
    """Number of updates between evaluations on held-out comparisons; the last update is always evaluated."""
    init: StrictStr | None = None
    """Model folder to start from; by default the SFT stage's model of the same run, or ``model`` if there is none."""
    ceiling: StrictStr | None = None
    """JSON file whose ``accuracy_ceiling`` is the best accuracy that the noise of the labels allows, if it is known; it
    is shown next to the model's accuracy. If the file's ``accuracy_ceiling_data`` lists digests of data files, only
    with these files."""


@section
class EndpointConfig:
    """An HTTP service that scores responses: it receives ``{"prompts": [...], "responses": [...], "rows": [...]}`` as
    JSON and answers ``{"scores": [...]}``, one finite number per response."""

    url: ScorerUrl
    """URL for POST requests, for example ``http://127.0.0.1:8000/score``."""
    batch_size: Batch = 32
    """Samples per request."""
    connections: Processes = 4
    """Number of concurrent requests, over connections that stay open."""
    timeout_seconds: Seconds = 30.0
    """Timeout of one request."""
    retries: CountOrZero = 3
    """Number of retries of a request that failed or timed out, with exponential backoff."""
    on_failure: Literal["fail", "retry", "drop"] = "fail"
    """Action after the last failed attempt: stop the run, retry until ``placement.phase_timeout_seconds``, or leave the
    request's samples out of the update and count them."""


TRAINED = "trained"
"""Value for the model of the run's reward stage, instead of a folder."""
REWARD_KINDS = ("model", "function", "endpoint")


@section
class RewardSourceConfig:
    """One part of the reward: exactly one of ``model``, ``function`` and ``endpoint``."""

    model: StrictStr | None = None
    """Folder or hub name of a sequence classifier of any architecture, or ``trained`` for that of the run's reward
    stage. If its tokenizer differs from the policy's, it reads the text; an encoder reads prompt and response as a
    pair."""
    label: StrictInt | StrictStr | None = None
    """Label of the model whose logit is the score, by index or name; required if the model has several labels."""
    max_length: Context | None = None
    """Longest sequence for a model, in tokens; longer ones are truncated at the prompt's beginning and counted. The
    default is the model's context."""
    function: StrictStr | None = None
    """A Python function, ``package.module:function`` or ``file.py:function``, that takes lists of prompts and responses
    and returns a list of floats; a third parameter named ``rows`` receives the prompts' data rows."""
    endpoint: EndpointConfig | None = None
    """An HTTP service."""
    weight: Weight = 1.0
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
                f"keep one, and put the other into a separate part; {HERE}.<kind>=null leaves one out"
                if given
                else f"{HERE}.function=file.py:function, {HERE}.model=<folder, or {TRAINED}>, or "
                f"{HERE}.endpoint.url=http://...",
            )
        for name in ("label", "max_length"):
            value = getattr(self, name)
            if value is not None and self.model is None:
                why = "it applies to models only"
                yield UserError(f"{HERE}.{name} = {value!r} and no model folder", why, f"{HERE}.{name}=null")
        if self.label is not None and self.model == TRAINED:
            what = f"{HERE}.label = {self.label!r} and {HERE}.model = {TRAINED!r}"
            yield UserError(what, "the run's reward model has one label", f"{HERE}.label=null")


@section
class AdaptiveKLConfig:
    """β that follows a target (Ziegler et al. 2019): after each step β is multiplied by
    1 + clip(KL/target − 1, ±0.2) · batch_size/horizon."""

    target: PositiveCoefficient = 6.0
    """Target KL to the reference, in nats per response: summed over tokens, averaged over responses."""
    horizon: Count = 10000
    """Number of responses over which β may change by a fifth."""


Stage = Literal["sft", "reward", "dpo", "ppo", "pipeline", "generate"]
"""A command that runs a recipe."""
CRITIC_OPTIONS = ("gamma", "lam", "value_clip_range", "critic_warmup_steps")
"""Options of the algorithm that apply only with a critic."""
LossMean = Literal["token", "sequence", "constant"]
AlgorithmName = Literal[
    "ppo", "grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline", "dapo", "gspo", "cispo"
]
COMPARES_A_GROUP = ("grpo", "dr_grpo", "rloo", "reinforce++_baseline", "dapo", "gspo", "cispo")
"""Algorithms whose baseline is the other responses to the same prompt."""


@section
class AlgorithmConfig:
    """The algorithm that trains the policy; names as in the papers, with a page for each in ``docs/algorithms/``.

    Some defaults depend on the algorithm; ``docs/configuration.md`` shows those of ``ppo``, and then lists all of them.
    """

    name: AlgorithmName = "ppo"
    """``ppo`` has a critic; the others compare responses to one prompt, or over the whole batch (``reinforce++``)."""
    kl_coef: Coefficient = 0.05
    """β: weight of the KL to the reference."""
    kl_in: Literal["reward", "loss"] | None = None
    """Whether the KL is part of each token's reward (the estimator k1) or of the loss (the value of k3 with the
    gradient of the reverse KL)."""
    adaptive_kl: AdaptiveKLConfig | None = None
    """Adapt β to a target KL, starting from ``kl_coef``."""
    clip_range: OpenFraction | None = None
    """ε: the ratio is clipped to [1 − ε, 1 + ε]. null: 0.2; 0.0003 in ``gspo``, whose ratio is that of a whole
    response; ``cispo`` has no lower limit."""
    clip_range_high: Positive | None = None
    """Upper ε, if it differs: the ratio is clipped to [1 − clip_range, 1 + clip_range_high]. null: ``clip_range``; 0.28
    in ``dapo``, 0.0004 in ``gspo``; 4 in ``cispo``, whose importance weight is at most 1 + clip_range_high."""
    dual_clip: AboveOne | None = None
    """c > 1: for a negative advantage the loss is at most −c·Â (Ye et al. 2020); null leaves it unbounded."""
    value_clip_range: Positive | None = 0.2
    """ε_v: the new value is clipped to within this distance of the old one; null disables clipping."""
    entropy_coef: Coefficient = 0.0
    """Weight of the entropy bonus in the loss."""
    gamma: Fraction = 1.0
    """γ: discount per token."""
    lam: Fraction = 0.95
    """λ of generalised advantage estimation."""
    whiten_advantages: StrictBool | None = None
    """Shift and scale advantages to mean 0 and variance 1 over the response tokens of the global batch."""
    loss_mean: LossMean | None = None
    """Average of the loss over the global batch: over all tokens (``token``); over responses, each the mean of its
    tokens (``sequence``); or over responses, each the sum of its tokens over ``rollout.max_response_length``
    (``constant``)."""
    missing_eos: Literal["replace", "subtract"] = "replace"
    """Whether the penalty for a response without an end token replaces the score or is subtracted from it."""
    missing_eos_penalty: Coefficient | None = 1.0
    """Size of this penalty; null disables it."""
    length_penalty: Coefficient = 0.0
    """Subtracted from the score for every token of the response."""
    overlong_buffer: Count | None = None
    """Soft punishment of long responses (DAPO): over the last ``overlong_buffer`` tokens before
    ``rollout.max_response_length`` a penalty rises from 0 to 1, which is subtracted from the score; null disables
    it."""
    drop_uniform_groups: StrictBool | None = None
    """Leave the responses to a prompt out of the update if all of them have the same score: they carry no signal, and
    would only increase the number by which the loss is divided."""
    reward_scale: Literal["none", "running_std"] = "none"
    """Divide scores by their standard deviation over all steps so far; β then applies to scaled scores."""
    reward_clip: Positive | None = None
    """Scores are clipped to this absolute value, after scaling."""
    epochs: Epochs = 4
    """Passes over each batch of rollouts."""
    minibatches: Batch = 1
    """Updates per pass; ``ppo.batch_size`` is divisible by it."""
    target_kl: Positive | None = None
    """Skip the remaining policy updates of a step after an update in which the policy is this far from that of the
    step's beginning: mean of ½ (log ratio)² over tokens, in nats. The critic's updates are not skipped."""
    importance_sampling: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "token_truncate"
    )
    """Correction for differences between the engine's and the trainer's probabilities: weights π_trainer/π_engine of
    tokens or of whole responses, limited to ``importance_cap`` (truncate), or 0 above it (mask)."""
    importance_cap: AtLeastOne = 2.0
    """Largest importance weight."""
    old_logprobs: Literal["scoring", "update"] | None = None
    """Whether log π_old is computed by a forward pass before the update, or by the update's own. The latter needs
    epochs · minibatches = 1, so that π_old is the policy that is updated, and saves a forward pass; the canaries of the
    first pass then compare nothing. null: ``update`` where it is possible."""
    critic_warmup_steps: CountOrZero = 0
    """Number of first steps in which only the critic is trained."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        for key, value in ALGORITHM_DEFAULTS[self.name].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        if self.old_logprobs is None:
            object.__setattr__(self, "old_logprobs", "scoring" if any(self._needs_scoring()) else "update")
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[UserError]:
        """Options that have no effect, or that contradict each other. Options that are only unusual pass."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        given = {key: changed[key] for key in CRITIC_OPTIONS if key in changed}
        if given and not self.has_critic:
            shown = (f"algorithm.{key} = {'null' if value is None else value}" for key, value in given.items())
            yield UserError(
                f"{', '.join(shown)}: {self.name} has no critic",
                "they apply to the critic's values and the advantages computed from them, and would have no effect",
                f"{self._without(*given)}, or algorithm.name=ppo",
            )
        if self.name == "dr_grpo" and self.whiten_advantages:
            yield UserError(
                "algorithm.whiten_advantages = true with algorithm.name = dr_grpo",
                "dr_grpo exists to leave the division by a standard deviation out",
                f"{self._without('whiten_advantages')}, or use grpo: algorithm.name=grpo",
            )
        if self.name == "dr_grpo" and self.loss_mean == "sequence":
            yield UserError(
                "algorithm.loss_mean = sequence with algorithm.name = dr_grpo",
                "dr_grpo exists to leave the division by each response's length out",
                f"{self._without('loss_mean')}, or use grpo: algorithm.name=grpo",
            )
        yield from self._clip_problems()
        if self.drop_uniform_groups and self.name not in COMPARES_A_GROUP:
            yield UserError(
                f"algorithm.drop_uniform_groups = true with algorithm.name = {self.name}",
                "a response is not compared with the other responses to its prompt, so that one whose group has equal "
                "scores carries a signal too",
                f"{self._without('drop_uniform_groups')}, or algorithm.name=dapo",
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
                "there is nothing to subtract from the score",
                f"algorithm.missing_eos_penalty=1.0, or {self._without('missing_eos')}",
            )
        if self.importance_sampling == "none" and "importance_cap" in changed:
            yield UserError(
                f"algorithm.importance_cap = {self.importance_cap} with algorithm.importance_sampling = none",
                "without importance weights there is nothing to limit",
                f"{self._without('importance_cap')}, or algorithm.importance_sampling=token_truncate",
            )
        if self.target_kl is not None and self.epochs * self.minibatches == 1:
            yield UserError(
                f"algorithm.target_kl = {self.target_kl} with a single update per step",
                "it skips a step's further updates, and there are none",
                f"{self._without('target_kl')}, or raise algorithm.epochs or algorithm.minibatches",
            )

        if self.old_logprobs == "update":
            for option, why in self._needs_scoring():
                yield UserError(
                    f"algorithm.old_logprobs = update with {option}",
                    why,
                    f"{self._without('old_logprobs')}, or change {option.split(' ')[0]}",
                )

    def _without(self, *names: str) -> str:
        """Fix: these options as if they had been left out."""
        return defaults_of(type(self), "algorithm", names)

    def _needs_scoring(self) -> Iterator[tuple[str, str]]:
        """Options that need log π_old before the update, with the reason."""
        if self.epochs * self.minibatches > 1:
            option = "epochs" if self.epochs > 1 else "minibatches"
            why = "from the second update on the policy is no longer the one at the beginning of the step"
            yield f"algorithm.{option} = {getattr(self, option)}", why
        if self.kl_in == "reward" and self.kl_coef:
            yield "algorithm.kl_in = reward", "rewards and advantages are computed before the update"
        if self.importance_sampling.startswith("sequence"):
            why = "the weight of a response is computed from all its tokens, before the update"
            yield f"algorithm.importance_sampling = {self.importance_sampling}", why
        if self.critic_warmup_steps:
            why = "without an update of the policy nothing compares it with the engine"
            yield f"algorithm.critic_warmup_steps = {self.critic_warmup_steps}", why

    def _clip_problems(self) -> Iterator[UserError]:
        """Limits of the ratio that have no effect, or that contradict each other."""
        if self.name == "cispo":
            limits = {key: getattr(self, key) for key in ("clip_range", "dual_clip")}
            given = {key: value for key, value in limits.items() if value is not None}
            shown = [f"algorithm.{key} = {value:g}" for key, value in given.items()]
            if shown:
                yield UserError(
                    f"{', '.join(shown)} with algorithm.name = cispo",
                    "cispo limits the importance weight only from above, by algorithm.clip_range_high, and clips no "
                    "loss: it would have no effect",
                    f"{self._without(*given)}; algorithm.clip_range_high is the limit of cispo",
                )
            return
        edge = 1 + self.clip_high
        if self.dual_clip is not None and self.dual_clip < edge:
            key = "clip_range" if self.clip_range_high is None else "clip_range_high"
            yield UserError(
                f"algorithm.dual_clip = {self.dual_clip} is less than 1 + algorithm.{key} = {edge:g}",
                "for a negative advantage the loss is |Â|ρ from 1 − ε upwards, held at |Â|c: with c < 1 + ε a token "
                "would lose its gradient at ratios ρ from c to 1 + ε, which the clip range allows",
                f"algorithm.dual_clip=3.0, or at least {edge:g}",
            )

    @property
    def has_critic(self) -> bool:
        """Whether advantages come from a critic's values."""
        return self.name == "ppo"

    @property
    def averaging(self) -> LossMean:
        """``loss_mean``, after the algorithm's default is filled in."""
        assert self.loss_mean is not None
        return self.loss_mean

    @property
    def clip_low(self) -> float:
        """Lower ε; ``cispo`` has none."""
        assert self.clip_range is not None
        return self.clip_range

    @property
    def narrowest_clip(self) -> float:
        """The smaller ε of those that the algorithm has."""
        return self.clip_high if self.clip_range is None else min(self.clip_range, self.clip_high)

    @property
    def clip_high(self) -> float:
        """Upper ε."""
        return self.clip_low if self.clip_range_high is None else self.clip_range_high


_EACH: dict[str, str | bool | float] = {"clip_range": 0.2, "drop_uniform_groups": False}
ALGORITHM_DEFAULTS: dict[AlgorithmName, dict[str, str | bool | float]] = {
    "ppo": {**_EACH, "kl_in": "reward", "loss_mean": "token", "whiten_advantages": True},
    "grpo": {**_EACH, "kl_in": "loss", "loss_mean": "sequence", "whiten_advantages": False},
    "dr_grpo": {**_EACH, "kl_in": "loss", "loss_mean": "constant", "whiten_advantages": False},
    "rloo": {**_EACH, "kl_in": "reward", "loss_mean": "token", "whiten_advantages": False},
    "reinforce++": {**_EACH, "kl_in": "reward", "loss_mean": "token", "whiten_advantages": True},
    "reinforce++_baseline": {**_EACH, "kl_in": "loss", "loss_mean": "token", "whiten_advantages": True},
    "dapo": {
        "kl_in": "loss",
        "loss_mean": "token",
        "whiten_advantages": False,
        "clip_range": 0.2,
        "clip_range_high": 0.28,
        "drop_uniform_groups": True,
    },
    "gspo": {
        "kl_in": "loss",
        "loss_mean": "sequence",
        "whiten_advantages": False,
        "clip_range": 3e-4,
        "clip_range_high": 4e-4,
        "drop_uniform_groups": False,
    },
    "cispo": {
        "kl_in": "loss",
        "loss_mean": "token",
        "whiten_advantages": False,
        "clip_range_high": 4.0,
        "drop_uniform_groups": False,
    },
}
"""Defaults of each algorithm, as in its paper; the limit of ``cispo`` is that of Khatri et al. (2025)."""


@section
class DPOConfig:
    """Direct preference optimisation (Rafailov et al. 2023): trains the policy on comparisons without a reward model,
    −log σ(β [(log π_c − log π_r) − (log ref_c − log ref_r)]); or IPO or ORPO, also on comparisons, or KTO, on single
    answers."""

    loss: Literal["dpo", "ipo", "orpo", "kto"] = "dpo"
    """``dpo``: the loss above. ``ipo`` (Azar et al. 2023): pulls the same difference to 1/(2β). ``orpo`` (Hong et al.
    2024): SFT on chosen answers and an odds ratio, without a reference. ``kto`` (Ethayarajh et al. 2024): on unpaired
    data, as ``reward.loss: pointwise``."""
    desirable_weight: PositiveCoefficient = 1.0
    """λ of good answers in KTO. With few good or few bad answers, the weights times their numbers should be in a ratio
    from 1 to 4/3."""
    undesirable_weight: PositiveCoefficient = 1.0
    """λ of bad answers in KTO."""
    beta: PositiveCoefficient = 0.1
    """β: strength of the regularisation towards the reference (τ in IPO); in ORPO, weight of the odds ratio (λ)."""
    label_smoothing: BelowHalf = 0.0
    """Assumed fraction of comparisons with swapped labels (conservative DPO)."""
    epochs: Epochs = 1
    """Passes over the comparisons."""
    batch_size: Batch = 32
    """Prompts per update, over all ranks; all comparisons of one prompt stay together."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6))
    """Optimizer and schedule."""
    eval_every: Count = 50
    """Number of updates between evaluations on held-out comparisons; the last update is always evaluated."""
    init: StrictStr | None = None
    """Model folder to start from; by default the SFT stage's model of the same run, or ``model.path`` if there is
    none."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        defaults = {
            "label_smoothing": (0.0, "dpo"),
            "desirable_weight": (1.0, "kto"),
            "undesirable_weight": (1.0, "kto"),
        }
        refuse(
            UserError(
                f"dpo.{key} = {getattr(self, key):g} has no effect with dpo.loss = {self.loss}",
                fix=f"dpo.{key}={default:g}, or dpo.loss={loss}",
            )
            for key, (default, loss) in defaults.items()
            if getattr(self, key) != default and self.loss != loss
        )
        return self

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares the policy with the reference; otherwise it reads means over tokens."""
        return self.loss != "orpo"


@section
class EarlyStopConfig:
    """Early stopping of PPO on over-optimisation: a held-out scorer, which the policy is not trained on, evaluates
    answers to held-out prompts during the run, and the policy with the best held-out score is kept."""

    scorer: RewardSourceConfig
    """The held-out scorer: a second reward model, a function, or a service."""
    every: Count = 10
    """Number of steps between held-out evaluations; the policy before the first and after the last step is always
    evaluated."""
    prompts: Count = 100
    """Number of held-out prompts, the same in every evaluation."""
    patience: Count = 1
    """Number of consecutive evaluations with a held-out score significantly lower than the best (paired test; 5% over a
    whole run) and a higher reward, after which the run stops. The best policy becomes the run's model."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.scorer.weight == 0:
            refuse([UserError("early_stop.scorer.weight = 0", "every score would be 0", "early_stop.scorer.weight=1")])
        return self


@section
class PPOConfig:
    """Length, batch size, optimizers and initial models of a PPO run."""

    steps: Count = 100
    """Number of steps, each a rollout and an update."""
    batch_size: Batch = 128
    """Rollouts that a step trains on, over all ranks and engines."""
    samples_per_prompt: Batch = 1
    """Responses sampled for each prompt of a step; ``batch_size`` is divisible by it."""
    oversampling: Factor = 1
    """Factor by which a step samples more responses than ``batch_size``, so that groups of unequal scores can fill the
    update (DAPO's dynamic sampling); needs ``algorithm.drop_uniform_groups``. Groups that are not needed are
    discarded."""
    sampling_rounds: Factor = 1
    """Most rounds of sampling in a step: while groups of unequal scores do not fill the update, another round samples
    as many responses to the next prompts. Needs ``algorithm.drop_uniform_groups``."""
    staleness: ZeroOrOne = 0
    """Number of weight versions by which rollouts may be older than the policy that is trained on them. 0: each step
    generates, then trains. 1: while a step trains, the engines generate the next step's rollouts, on separate GPUs;
    ``algorithm.importance_sampling`` corrects for the older weights."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6))
    """The policy's optimizer."""
    critic_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=9e-6))
    """The critic's optimizer."""
    policy_init: StrictStr | None = None
    """Model folder of the policy and the reference; by default the SFT stage's model of the same run."""
    critic_init: StrictStr | None = None
    """Model folder from which the critic is initialised, with a new head; by default the first reward model of
    ``rewards`` that has the policy's vocabulary and a linear head, or the initial policy if there is none."""

    @property
    def rollouts_per_step(self) -> int:
        """Responses that a step samples and scores; it trains on ``batch_size`` of them."""
        return self.batch_size * self.oversampling


@section
class RolloutConfig:
    """The vLLM engines that generate responses."""

    engines: Processes = 1
    """Number of engines; each is a separate actor."""
    tensor_parallel: Processes = 1
    """GPUs per engine."""
    temperature: Temperature = 1.0
    """Sampling temperature, also of the trainer's log-probabilities. There is no top-p, top-k or penalty."""
    max_response_length: Context = 256
    """Longest response in tokens, end token included."""
    block_size: Count = 32
    """Number of finished samples that an engine returns together; they are scored while others are still generated."""
    memory_gib: Positive = 1.0
    """KV cache of an engine on CPU, in GiB."""
    gpu_memory_fraction: Share = 0.5
    """Fraction of a GPU's memory that an engine may use."""
    enforce_eager: StrictBool = False
    """Run without compilation and CUDA graphs: starts faster and generates more slowly."""
    max_num_seqs: Count | None = None
    """Most sequences that an engine computes at a time. null: vLLM's default for offline use on its device: 1,024 on a
    GPU of 70 GiB or more other than an A100, 256 on smaller ones, on a CPU 256 times ``tensor_parallel``."""
    max_num_batched_tokens: Count | None = None
    """Most tokens that an engine computes at a time, at least ``max_num_seqs``; on a CPU also at least the longest
    sequence, because prompts are not split there. null: vLLM's default for offline use on its device: 16,384 on a GPU
    of 70 GiB or more other than an A100, 8,192 on smaller ones, on a CPU 4,096 times ``tensor_parallel``."""


@section
class RoleConfig:
    """Processes of one model, and how it is sharded over them."""

    ranks: Processes = 1
    """Number of processes; on GPUs, one GPU each. Samples are distributed over ranks, or over groups of ranks if
    ``sequence_parallel`` or ``tensor_parallel`` is above 1."""
    sequence_parallel: Processes = 1
    """Number of neighbouring ranks that split each packed row, for rows that are too long for one rank: each computes a
    range of token positions, and in attention a part of the heads (DeepSpeed Ulysses). Divides ``ranks`` and the
    model's heads."""
    tensor_parallel: Processes = 1
    """Number of neighbouring ranks that split the matrices of each decoder layer (DeepSpeed AutoTP). Divides ``ranks``,
    the model's heads and the width of its feed-forward blocks; requires ZeRO stage 1 or 2."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], ExactInt] = 1
    """ZeRO stage; DeepSpeed shards nothing (0), optimizer states (1), also gradients (2), also parameters (3)."""
    offload: StrictBool = False
    """Keep optimizer states (at stage 3 also parameters) in host memory at all times, and run the optimizer there."""
    offload_between_phases: Literal["auto", "none", "states", "all"] = "auto"
    """State that a role of PPO offloads to host memory while it does not use it: ``none``; ``states``, which only
    updates use (moments, master weights, gradients); or ``all``, which includes the weights. Roles that share GPUs, and
    roles with ``all``, run one after another; with ``all``, or on the engines' GPUs, they score after the last response
    is generated. ``auto`` is ``states`` if the role shares its GPUs, else ``none``."""
    micro_batch_tokens: Count = 4096
    """Token budget of a packed row, into which sequences are packed without padding; at least the longest sequence. A
    pair of answers, in reward training and DPO, stays in one row and may exceed it. A larger budget means fewer passes
    and proportionally more memory."""
    share_with: Literal["policy", "critic", "reference", "reward"] | None = None
    """With ``separate``: the role whose GPUs this one shares, rank by rank, instead of having its own. Only in PPO: the
    other stages have one role each."""
    gpu_type: StrictStr | None = None
    """Type of its GPUs, on a cluster: the name after ``accelerator_type:`` in ``ray status``, for example ``H100``."""


@section
class EnginePlacementConfig:
    """GPUs of the engines; their number and tensor-parallel size are in ``rollout``."""

    share_with: Literal["policy"] | None = None
    """With ``separate``: whether engine i shares the GPU of policy rank i, and sleeps during training."""
    gpu_type: StrictStr | None = None
    """Type of their GPUs, as for the other roles."""


@section
class PlacementConfig:
    """Processes and GPUs of each role."""

    strategy: Literal["auto", "colocated", "separate"] = "auto"
    """``colocated``: all roles share every GPU, vLLM sleeps during training, weights are transferred by CUDA IPC.
    ``separate``: each role has its own GPUs, weights are transferred by NCCL. ``auto``: separate if there are enough
    GPUs and everything fits by the estimates of `rlhf plan`, else colocated; the run logs the reason. Without GPUs all
    roles are CPU processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` uses GPUs if the machine or cluster has any."""
    policy: RoleConfig = field(default_factory=RoleConfig)
    """The policy in PPO, and the trained model in SFT and DPO."""
    critic: RoleConfig = field(default_factory=RoleConfig)
    """The critic in PPO."""
    reference: RoleConfig = field(default_factory=RoleConfig)
    """The frozen reference in PPO."""
    reward: RoleConfig = field(default_factory=RoleConfig)
    """The frozen reward models in PPO, and the trained model in the reward stage."""
    rollout: EnginePlacementConfig = field(default_factory=EnginePlacementConfig)
    """The vLLM engines."""
    threads_per_rank: Count = 1
    """CPU threads of each process that computes on the CPU; more threads than cores slow the run down."""
    start_method: Literal["fork", "spawn"] | None = None
    """How processes start. ``fork``: from a server that has imported PyTorch, DeepSpeed and vLLM once, in under a
    second; only in a Ray that the command starts. ``spawn``: each imports for itself, in some ten seconds of a core.
    By default ``fork`` on CPUs, and ``spawn`` on GPUs and on a running cluster."""
    ray_address: StrictStr | None = None
    """Address of a running Ray cluster, or ``auto`` for that of ``ray start`` on this machine; by default a local Ray
    is started, which listens on 127.0.0.1 and no other command joins."""
    start_timeout_seconds: Seconds = 600.0
    """Deadline for all actors to be placed and loaded."""
    phase_timeout_seconds: Seconds = 1800.0
    """Longest time without an answer of an actor within one phase of a step."""

    def host_of(self, role: str) -> str | None:
        """The role whose GPUs a role shares; None if it has its own."""
        host: str | None = getattr(self, role).share_with
        return host

    def gpu_type_of(self, role: str) -> str | None:
        """The type of GPUs that a role requests, if any."""
        kind: str | None = getattr(self, role).gpu_type
        return kind


@section
class CheckpointConfig:
    """Checkpoints and snapshots of every stage, from which the same command resumes after any failure."""

    every: Count = 10
    """Number of steps between PPO's checkpoints; there is also one after its last step. On a stop request the last
    snapshot is written."""
    supervised_every: Count = 200
    """The same in SFT, reward training and DPO, whose steps are much shorter; stages with fewer steps write none."""
    keep_last: Count = 2
    """Number of newest checkpoints to keep. Older ones are removed only after a newer one is complete on the disk."""
    keep_best: CountOrZero = 1
    """Number of best checkpoints to keep as well: in PPO by ``best_metric``, in other stages by the held-out loss."""
    best_metric: MetricName = "objective/rlhf_reward"
    """Metric by which PPO's checkpoints are ranked, at the step of the checkpoint; higher is better."""
    snapshot_every: Literal["auto"] | CountOrZero = "auto"
    """Number of steps between snapshots in the nodes' memory, from which a failed trained model is restored; the steps
    since the last one are repeated. ``auto``: as often as keeps the measured cost under 2% of the time since the
    last one. With 0, snapshots are taken only for checkpoints; a stop request then loses the steps since the last."""
    failures: Count = 3
    """Number of consecutive failed checkpoints (on a full disk, for example) after which the run stops."""
    grace_seconds: Seconds = 120.0
    """Longest time between a request to stop (SIGTERM, SIGINT, SIGHUP) and the end of the process. A checkpoint that
    does not fit into it is reported."""
    time_limit_seconds: Seconds | None = None
    """Time limit of the scheduler for this command, if any; in a SLURM job it is found automatically."""
    before_deadline: SecondsOrZero = 300.0
    """Seconds before this limit at which the run commits a checkpoint and ends with exit code 75."""
    changed_data: Literal["refuse", "accept"] = "refuse"
    """Action if a data file has changed since the checkpoint was made or the stage was finished: refuse to run, or
    accept the change. If it is accepted, a finished stage stays valid, PPO begins an epoch of the new prompts, and the
    other stages go on at the same step of the new data."""

    def every_in(self, stage: str) -> int:
        """Number of steps between checkpoints of a stage."""
        return self.every if stage == "ppo" else self.supervised_every


@section
class RecoveryConfig:
    """Limits of recovery, and deadlines of actors."""

    restarts: CountOrZero = 20
    """Largest number of restarts in one command; the next failure ends it with exit code 3 and the history. Actors that
    fail together, such as all ranks of a group or all actors of a node, count as one restart."""
    device_errors: CountOrZero = 5
    """Largest number of restarts in one command because of a GPU or of the network between GPUs: memory, ECC, illegal
    access, assertions, NCCL. They do not count in ``restarts``."""
    steps_per_restart: CountOrZero = 10
    """Number of newly completed steps after which one restart is given back to both budgets; repeated steps do not
    count. 0 gives back none."""
    requeues: CountOrZero = 3
    """Largest number of times in a row that ``launch/slurm.sh`` and a RayJob repeat a command that ended before it
    completed a further step. Only a cause that may pass is repeated: a failed machine, not a violated canary."""
    backoff_seconds: SecondsOrZero = 0.5
    """Wait before a role is restarted that has failed before; it doubles with each consecutive failure of the role."""
    backoff_limit_seconds: SecondsOrZero = 60.0
    """Longest wait before a restart."""
    stall_factor: AboveOne = 20.0
    """Deadline of an answer, as a multiple of the longest duration so far of the same work of the same role. It is at
    most ``placement.phase_timeout_seconds``, which is also the deadline of work that has not been done before."""
    stall_floor_seconds: Seconds = 120.0
    """Shortest deadline of an answer, however fast the work has been."""
    progress_limit_seconds: Seconds = 14400.0
    """Longest time without an answer of an actor that makes progress. An actor whose deadline passes is asked when it
    last completed a micro-batch, or an engine a step of generation, and its deadline counts from then."""
    bad_samples: CountOrZero = 100
    """Largest number of quarantined samples in a run: the engine failed on their prompt or returned no response."""


@section
class CanaryConfig:
    """Canaries: invariants that are checked on every step. A run whose metrics leave these limits stops with an error
    that gives the value, the limit and the usual causes."""

    ratio_tolerance: Positive | None = None
    """Limit of |mean ratio − 1| and of the approximate KL in the first pass over fresh rollouts. Default 1e-4 in
    float32, 0.02 in bfloat16."""
    clipfrac_limit: Fraction | None = None
    """Largest fraction of clipped tokens in the first pass over fresh rollouts. Default 0 in float32, 0.01 in bfloat16;
    1 in bfloat16 if the clip range is at most 0.02, as in ``gspo``: rounding exceeds it."""
    step0_kl_limit: Positive | None = None
    """Largest mean |log-probability by the policy − by the reference| before the first update, in nats per token.
    Default 1e-4 in float32, 0.02 in bfloat16."""
    logprob_gap_limit: Positive | None = None
    """Largest mean |log-probability by the trainer − by the engine| over response tokens, on every step. Default 1e-4
    in float32, 0.05 in bfloat16."""
    min_kl: NotPositive = -1.0
    """Smallest mean sequence KL to the reference, in nats: a negative KL means that sampling and log-probabilities
    disagree."""
    max_kl: Positive | None = None
    """Largest mean sequence KL to the reference, in nats; null means no limit."""


@section
class AlertConfig:
    """Warnings during PPO: events of the kind ``alert``, and W&B alerts, which are sent by mail or chat. They never
    stop a run; ``canaries`` do."""

    max_kl: Positive | None = None
    """Mean sequence KL to the reference, in nats, above which a warning is sent. Default: four fifths of
    ``canaries.max_kl``, if that is set."""
    length_share: BelowOne = 0.5
    """Fraction of the mean response length in the first five steps below which a warning is sent; 0 disables it."""
    entropy_share: BelowOne = 0.2
    """The same for the policy's entropy."""
    restarts: CountOrZero = 1
    """Number of restarts since the last such warning at which a warning is sent; 0 disables it."""
    repeat_steps: Count = 50
    """Number of steps within which a warning of the same kind is not repeated."""


@section
class TrackingConfig:
    """Records and displays of a run."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto`` is online when an API key is configured and offline otherwise (``wandb sync`` uploads later)."""
    project: StrictStr = "rlhf"
    """W&B project."""
    run_name: StrictStr | None = None
    """W&B name of the run, to which the stage is appended; by default the recipe's name."""
    group: StrictStr | None = None
    """W&B group; the stages of one pipeline share the recipe's name by default."""
    tags: Texts = ()
    """W&B tags."""
    artifacts: Literal["none", "model", "checkpoints"] = "none"
    """Artifacts uploaded to W&B: none, the finished model, or the model and every checkpoint. A checkpoint is copied
    first, while the run waits."""
    tensorboard: StrictBool = False
    """Also write TensorBoard event files, to ``tensorboard/`` in the stage's folder."""
    samples_per_step: CountOrZero = 4
    """Number of rows of ``samples.jsonl`` per PPO step, drawn at random; if there are three or more, two of them are
    the best and the worst of the other responses."""
    table_every: Count = 10
    """Number of steps between tables of samples in W&B and TensorBoard."""
    table_rows: Count = 30
    """Largest number of rows of such a table: the best, the worst and random samples of these steps, a third each."""
    histogram_every: Count = 10
    """Number of steps between histograms."""
    opentelemetry: CollectorUrl | None = None
    """Address of an OpenTelemetry collector, for example ``http://127.0.0.1:4318``, to which the timeline is also
    exported, by OTLP over HTTP. Headers, with a token for example, are read from ``OTEL_EXPORTER_OTLP_HEADERS``."""
    progress: StrictBool = True
    """Show progress bars on a terminal; without a terminal, one line per report is printed."""
    alerts: AlertConfig = field(default_factory=AlertConfig)
    """Warnings about the run."""


@section
class EvaluationConfig:
    """The comparison at the end of ``rlhf pipeline``: answers of the SFT model and of the policy to the same held-out
    prompts."""

    scorer: StrictStr | None = None
    """Scorer of the comparison: ``package.module:function`` or ``file.py:function``, which takes lists of prompts and
    responses and returns floats. Without it the answers of both models are stored and not compared."""
    prompts: Count = 200
    """Number of held-out prompts."""
    show: CountOrZero = 3
    """Number of prompts whose two answers are printed side by side."""


@section
class FeedbackConfig:
    """Rounds of human feedback: sampling answers for raters, collecting their votes, and retraining on them."""

    project: StrictStr = "feedback.db"
    """The project's file, made by ``rlhf feedback init``."""
    policy: StrictStr | None = None
    """Folder of the model that answers; by default the run's last finished stage of PPO, DPO and SFT, or its base
    model."""
    prompts: Count = 100
    """Prompts of a round: those of ``data.prompts`` that were answered least often before, in an order of the seed."""
    answers: Several = 2
    """Answers sampled per prompt; every two that differ are a candidate pair."""
    pairs: Count = 100
    """Pairs that a round adds to the project."""
    selection: Literal["random", "uncertainty"] = "random"
    """Which candidates become pairs: any, or those about whose order the ``ensemble`` is least sure."""
    ensemble: Texts = ()
    """Folders of at least two reward models, for ``uncertainty``: trained with other seeds, or on other samples."""
    votes: Count = 300
    """Votes on a round's pairs after which ``rlhf feedback round`` trains."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.selection == "uncertainty" and len(self.ensemble) < 2:
            refuse(
                [
                    UserError(
                        f"{HERE}.selection = 'uncertainty' and {len(self.ensemble)} models in {HERE}.ensemble",
                        "uncertainty is the models' disagreement",
                        f"{HERE}.ensemble='[folder, folder, folder]' with reward models of different seeds, or "
                        f"{HERE}.selection=random",
                    )
                ]
            )
        return self


@section
class RetrievalConfig:
    """Answers from passages (RAFT, Zhang et al. 2024): training data with the passage that answers a question among
    distractors, an index of the passages, and prompts with retrieved passages."""

    passages: StrictStr | None = None
    """Passages: rows with ``text``, and optionally ``id``, ``title`` and ``document``. Passages of one document are
    never on both sides of the split; without ``document`` the title names it, without a title the passage is a
    document."""
    questions: StrictStr | None = None
    """Questions for ``rlhf retrieval build``: rows with ``question``, ``answer``, ``oracle`` (the id of the passage
    that answers it, or a list of several), and optionally ``quote``."""
    dataset: StrictStr = "retrieval"
    """Folder that ``rlhf retrieval build`` writes: rows for training and for evaluation, rejected questions, and a
    manifest."""
    index: StrictStr = "index"
    """Folder that ``rlhf retrieval index`` writes, and ``rlhf retrieval ask`` reads."""
    method: Literal["bm25", "dense"] = "bm25"
    """How passages are ranked for a question: by their words (BM25), or by the cosine of an encoder's embeddings."""
    encoder: StrictStr | None = None
    """Folder or hub name of any transformers encoder, for ``method: dense``; its last hidden states are averaged."""
    distractors: CountOrZero = 4
    """Number of distractors beside the oracle: the passages that the ranking prefers, without the answer. ``ask``
    retrieves one passage more than this, so that prompts have the same number of passages."""
    oracle_probability: Fraction = 0.8
    """Probability that the oracle is among the passages of a training prompt; otherwise one more distractor takes its
    place. It is always among those of an evaluation prompt."""
    evaluation_fraction: BelowOne = 0.1
    """Fraction of the documents whose questions are for evaluation."""
    template: StrictStr | None = None
    """Path of a Jinja template of the prompt, with the variables ``passages`` (each has ``title`` and ``text``) and
    ``question``; null for the built-in one. Its digest is written into dataset and index."""
    messages: StrictBool = False
    """Write each prompt as one user message, which goes through the model's chat template, instead of plain text."""
    model: StrictStr | None = None
    """Folder of the model that ``ask`` uses; by default the run's last finished stage of PPO, DPO and SFT, or its base
    model."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.method == "dense" and self.encoder is None:
            fix = f"{HERE}.encoder=<folder or hub name>, or {HERE}.method=bm25"
            refuse(
                [UserError(f"{HERE}.method = 'dense' and no {HERE}.encoder", "an encoder makes the embeddings", fix)]
            )
        if self.method == "bm25" and self.encoder is not None:
            fix = f"{HERE}.method=dense, or {HERE}.encoder=null"
            refuse([UserError(f"{HERE}.encoder = {self.encoder!r} has no effect", f"{HERE}.method is 'bm25'", fix)])
        return self


@section
class CycleConfig:
    """Rounds from votes to a candidate in shadow, by ``rlhf cycle``."""

    rounds: Count = 1
    """Rounds in all: a larger number, later, adds rounds to those that are finished."""
    sample: StrictBool = True
    """Sample pairs for each round and wait for ``feedback.votes`` votes on them; false trains on the votes that
    ``feedback.project`` holds, from wherever they came, as soon as there are as many."""
    imports: dict[StrictStr, StrictStr] = field(default_factory=dict)
    """Name of a file of votes → its format, as of ``rlhf feedback import``; added to the project before a wait, and
    again whenever the file has changed."""
    items: StrictStr = "items.jsonl"
    """Prompts that candidate and production answer: rows with ``prompt``, and with the columns that the metrics need.
    None of them may be a prompt of PPO."""
    project: StrictStr = "comparisons.db"
    """Feedback project in which people compare those answers, made by ``rlhf feedback init``; not that of
    ``feedback.project``, since nothing is trained on these votes."""
    comparison: StrictStr | None = None
    """YAML file with the metrics, scorers and judge of a comparison; ``rlhf cycle`` adds items, arms, base and votes.
    By default only lengths and people's votes are measured."""
    gate: StrictStr = "shadow.yaml"
    """The gate for shadow. Besides the comparison's metrics it can name ``preferred``: 1 where people prefer the
    candidate, 0 where they prefer production, 0.5 where neither."""
    registry: StrictStr = "registry.db"
    """The registry's file, created if there is none. While nothing is in production, the model that the first round
    starts from takes its place in the comparison."""


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
    """Compute bit-identical numbers whenever this recipe runs on the same kind of machine; each block of rollouts then
    waits for its slowest response."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rewards: dict[PartName, RewardSourceConfig] = field(
        default_factory=lambda: {"model": RewardSourceConfig(model=TRAINED)}
    )
    """Parts of the reward, by name; PPO's score is their weighted sum."""
    dpo: DPOConfig = field(default_factory=DPOConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    early_stop: EarlyStopConfig | None = None
    """Stop on over-optimisation; null runs all steps."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    canaries: CanaryConfig = field(default_factory=CanaryConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    cycle: CycleConfig = field(default_factory=CycleConfig)

    @property
    def reward_models(self) -> dict[str, RewardSourceConfig]:
        """The parts of the reward that are models."""
        return {name: source for name, source in self.rewards.items() if source.model is not None}

    @property
    def trains_reward(self) -> bool:
        """Whether the reward or the held-out scorer of PPO is the model of the run's own reward stage."""
        held_out = () if self.early_stop is None else (self.early_stop.scorer,)
        return any(source.model == TRAINED for source in (*self.rewards.values(), *held_out))

    @property
    def has_reference(self) -> bool:
        """Whether PPO has a separate reference model; a policy with adapters is its own reference."""
        return self.model.lora is None
