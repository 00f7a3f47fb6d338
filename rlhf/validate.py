"""Checks a recipe against rules between sections and against the machine, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rlhf.config.lora_rules import check_lora
from rlhf.config.named_files import check_data, check_models, check_name, check_scorer, check_tracking
from rlhf.config.ppo_rules import check_algorithm, check_rewards
from rlhf.config.schema import Recipe, RoleConfig, ScratchConfig, Stage
from rlhf.config.stages import check_schedule, critic_updates, policy_updates, stages_of
from rlhf.errors import UserError, raise_all
from rlhf.generation.limits import check_limits
from rlhf.placement.machine import Machine, check_devices, uses_gpus
from rlhf.placement.parallelism import check_parallelism, data_parallel_size
from rlhf.placement.pools import check_sharing

ENGINE_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Widths of an attention head for which vLLM has a CPU kernel; others fail when the engine first runs."""
LARGEST_SCRATCH = 2e9
"""Largest number of parameters of a model that this project initialises: 8 GB in the memory of one process."""


def validate(recipe: Recipe, stage: Stage, machine: Machine) -> None:
    """Check a recipe for one stage, or for a whole pipeline, against a machine.

    Rules within one section were checked when it was constructed.

    Raises:
        UserError: lists every problem found.
    """
    cannot = "" if stage == "generate" else f" cannot run `{stage}`"
    raise_all(problems_of(recipe, stage, machine), f"the recipe {recipe.name!r}{cannot}")


def problems_of(recipe: Recipe, stage: Stage, machine: Machine) -> list[UserError]:
    """Every problem that ``validate`` finds."""
    if stage == "generate":  # model and prompts are arguments of the command
        limits = check_limits(recipe, uses_gpus(recipe, machine))
        return list(check_name(recipe)) or [*limits, *check_devices(recipe, stage, machine)]
    stages = stages_of(recipe, stage)
    problems = [
        *check_name(recipe),
        *check_models(recipe, stages),
        *check_data(recipe, stages),
        *_scorers(recipe, stage),
        *check_tracking(recipe),
        *_scratch(recipe),
        *_lengths(recipe, stages, machine),
        *_roles(recipe, stages),
        *check_parallelism(recipe, _stages_by_role(recipe, stages)),
        *check_lora(recipe, stages),
        *_batches(recipe, stages),
        *_schedules(recipe, stages),
        *_evaluation(recipe, stage),
        *_time_limit(recipe),
    ]
    problems += [*check_algorithm(recipe), *check_limits(recipe, uses_gpus(recipe, machine))] if "ppo" in stages else []
    wrong = list(check_sharing(recipe)) if "ppo" in stages else []
    return problems + (wrong or list(check_devices(recipe, stage, machine)))


def _scorers(recipe: Recipe, stage: Stage) -> Iterator[UserError]:
    if "ppo" in stages_of(recipe, stage):
        yield from check_rewards(recipe)
    scorer = recipe.evaluation.scorer
    if scorer is not None and stage == "pipeline":
        yield from check_scorer("evaluation.scorer", scorer)


def _scratch(recipe: Recipe) -> Iterator[UserError]:
    scratch = recipe.model.scratch
    if scratch is None:
        return
    if (parameters := _parameters(scratch)) > LARGEST_SCRATCH:
        yield UserError(
            f"model.scratch makes a model of {parameters:.1e} parameters",
            f"randomly initialised models are small: up to {LARGEST_SCRATCH:.0e}",
            "lower hidden_size, layers, intermediate_size or vocab_size, or name a pretrained model in model.path",
        )
    width, remainder = divmod(scratch.hidden_size, scratch.heads)
    shape = f"model.scratch.hidden_size = {scratch.hidden_size} over model.scratch.heads = {scratch.heads}"
    if remainder:
        yield UserError(f"{shape} is not a whole number", "each head takes an equal share", _scratch_fix(scratch.heads))
    elif width not in ENGINE_HEAD_SIZES:
        sizes = ", ".join(map(str, ENGINE_HEAD_SIZES))
        why = f"vLLM's attention supports head widths of {sizes}"
        yield UserError(f"{shape} makes heads {width} wide", why, _scratch_fix(scratch.heads))
    gpus = recipe.rollout.tensor_parallel
    if scratch.heads % gpus:
        yield UserError(
            f"model.scratch.heads = {scratch.heads} is not divisible by rollout.tensor_parallel = {gpus}",
            "an engine distributes the heads over its GPUs",
            "rollout.tensor_parallel=1",
        )


def _parameters(scratch: ScratchConfig) -> float:
    """Number of weights of the layers and, once, of the embedding."""
    layer = 4.0 * scratch.hidden_size**2 + 3.0 * scratch.hidden_size * scratch.intermediate_size
    return scratch.layers * layer + scratch.hidden_size * scratch.vocab_size


def _scratch_fix(heads: int) -> str:
    return f"for example model.scratch.hidden_size={32 * heads} with {heads} heads, which are then 32 wide"


def _longest(recipe: Recipe, stage: str) -> tuple[str, int]:
    """The longest sequence of a stage in tokens, preceded by the keys that determine it."""
    prompt = recipe.data.max_prompt_length
    key, response = ("data.max_response_length", recipe.data.max_response_length)
    if stage == "ppo":
        key, response = ("rollout.max_response_length", recipe.rollout.max_response_length)
    return f"data.max_prompt_length + {key} = {prompt} + {response}", prompt + response


def _lengths(recipe: Recipe, stages: tuple[str, ...], machine: Machine) -> Iterator[UserError]:
    scratch = recipe.model.scratch
    context = scratch.max_length if scratch else machine.context_length
    if context is None:
        return
    or_longer = ", or model.scratch.max_length={}" if scratch else ""
    for keys, length in dict.fromkeys(_longest(recipe, stage) for stage in stages):
        if length > context:
            yield UserError(
                f"{keys} = {length} tokens exceed the model's context of {context}",
                "a sequence would not fit into the model",
                f"lower the two lengths to {context} together{or_longer.format(length)}",
            )


def _roles(recipe: Recipe, stages: tuple[str, ...]) -> Iterator[UserError]:
    for name, roles_stages in _stages_by_role(recipe, stages).items():
        role: RoleConfig = getattr(recipe.placement, name)
        keys, longest = max((_longest(recipe, stage) for stage in roles_stages), key=lambda pair: pair[1])
        if role.micro_batch_tokens < longest:
            yield UserError(
                f"placement.{name}.micro_batch_tokens = {role.micro_batch_tokens} is less than the longest sequence, "
                f"{keys} = {longest} tokens",
                "a sequence is never split over two passes",
                f"placement.{name}.micro_batch_tokens={longest} or more, if the memory allows it",
            )
        if role.offload and role.zero_stage == 0:
            yield UserError(
                f"placement.{name}.offload needs ZeRO, and placement.{name}.zero_stage is 0",
                "DeepSpeed offloads only state that ZeRO manages",
                f"placement.{name}.zero_stage=1 or higher, or placement.{name}.offload=false",
            )


def _stages_by_role(recipe: Recipe, stages: tuple[str, ...]) -> dict[str, list[str]]:
    """Role → the stages in which it computes."""
    members = {"sft": ["policy"], "dpo": ["policy"], "reward": ["reward"], "ppo": _ppo_roles(recipe)}
    roles = dict.fromkeys(role for stage in stages for role in members[stage])
    return {role: [stage for stage in stages if role in members[stage]] for role in roles}


def _ppo_roles(recipe: Recipe) -> list[str]:
    """Roles of PPO that compute with a network."""
    parts = {
        "critic": recipe.algorithm.has_critic,
        "reference": recipe.has_reference,
        "reward": bool(recipe.reward_models),
    }
    return ["policy", *(role for role, is_there in parts.items() if is_there)]


def _batches(recipe: Recipe, stages: tuple[str, ...]) -> Iterator[UserError]:
    place, algorithm = recipe.placement, recipe.algorithm
    if "sft" in stages:
        divisors = _parts("policy", place.policy)
        yield from _uneven("sft.batch_size", recipe.sft.batch_size, divisors)
    if "dpo" in stages:
        divisors = _parts("policy", place.policy)
        yield from _uneven("dpo.batch_size", recipe.dpo.batch_size, divisors)
    if "reward" in stages:
        divisors = _parts("reward", place.reward)
        yield from _uneven("reward.batch_size", recipe.reward.batch_size, divisors)
    if "ppo" in stages:
        divisors = {
            "ppo.samples_per_prompt": recipe.ppo.samples_per_prompt,
            "algorithm.minibatches": algorithm.minibatches,
            **_parts("policy", place.policy, algorithm.minibatches),
        }
        if algorithm.has_critic:
            divisors |= _parts("critic", place.critic, algorithm.minibatches)
        yield from _uneven("ppo.batch_size", recipe.ppo.batch_size, divisors)


def _parts(name: str, role: RoleConfig, minibatches: int | None = None) -> dict[str, int]:
    """Divisor of a batch over a role's groups of ranks, by its keys in the recipe."""
    sharing = [key for key in ("sequence_parallel", "tensor_parallel") if getattr(role, key) > 1]
    key = " / ".join(f"placement.{name}.{part}" for part in ("ranks", *sharing))
    count = max(1, data_parallel_size(role))
    return {key: count} if minibatches is None else {f"algorithm.minibatches * {key}": minibatches * count}


def _uneven(key: str, size: int, divisors: dict[str, int]) -> Iterator[UserError]:
    """The error of a batch that cannot be divided evenly, with the nearest sizes that satisfy all divisors."""
    by_value = {divisor: name for name, divisor in reversed(divisors.items())}  # of equal divisors, the simplest name
    broken = [f"{name} = {divisor}" for divisor, name in reversed(by_value.items()) if size % divisor]
    if not broken:
        return
    step = math.lcm(*divisors.values())
    below = size // step * step
    fitting = [f"{key}={fit}" for fit in (below, below + step) if fit]
    why = "every rank gets the same number of samples in every update"
    yield UserError(f"{key} = {size} is not divisible by {', '.join(broken)}", why, " or ".join(fitting))


def _schedules(recipe: Recipe, stages: tuple[str, ...]) -> Iterator[UserError]:
    if "ppo" not in stages:
        return  # updates of the other stages depend on the number of rows: they are checked when the data is read
    warmup, steps = recipe.algorithm.critic_warmup_steps, recipe.ppo.steps
    schedules = []
    if recipe.algorithm.has_critic:
        schedules.append(("ppo.critic_optimizer", recipe.ppo.critic_optimizer, critic_updates(recipe)))
    if warmup < steps:
        schedules.append(("ppo.optimizer", recipe.ppo.optimizer, policy_updates(recipe)))
    else:
        yield UserError(
            f"algorithm.critic_warmup_steps = {warmup} leaves the policy none of the run's ppo.steps = {steps}",
            "the policy is not trained while the critic warms up",
            "a few steps are enough: algorithm.critic_warmup_steps=0 or more ppo.steps",
        )
    for key, optimizer, updates in schedules:
        try:
            check_schedule(optimizer, updates, key)
        except UserError as problem:
            yield problem


def _time_limit(recipe: Recipe) -> Iterator[UserError]:
    limit, before = recipe.checkpoint.time_limit_seconds, recipe.checkpoint.before_deadline
    if limit is not None and limit <= before:
        yield UserError(
            f"checkpoint.time_limit_seconds = {limit:g} is not above checkpoint.before_deadline = {before:g}",
            "the run would stop before its first step, every time",
            "a smaller checkpoint.before_deadline: the duration of a checkpoint and a few seconds",
        )


def _evaluation(recipe: Recipe, stage: Stage) -> Iterator[UserError]:
    if stage == "pipeline" and recipe.data.held_out_fraction == 0:
        yield UserError(
            "data.held_out_fraction = 0 leaves nothing to evaluate on",
            "the pipeline compares SFT model and policy on prompts that neither was trained on",
            "data.held_out_fraction=0.1",
        )
