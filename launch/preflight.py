"""Everything that can be refused before a process is started or a file is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.plan.cluster import Cluster
from launch.plan.members import Shapes, check_heads
from launch.plan.strategy import choose, decided
from rlhf.config.load import load_recipe
from rlhf.config.problems import raise_all
from rlhf.config.schema import TRAINED, DPOConfig, Recipe, RewardConfig, RewardSourceConfig, SFTConfig, Stage
from rlhf.config.stages import check_schedule, stages_of
from rlhf.data.order import epoch_batches
from rlhf.data.stages import comparison_batches
from rlhf.device import Device
from rlhf.errors import UserError
from rlhf.evaluation.accuracy import accuracy_ceiling
from rlhf.evaluation.scorers import load_scorer
from rlhf.gpus import GPUS, gpu_named
from rlhf.placement.machine import Machine, uses_gpus
from rlhf.placement.pools import Strategy, pools
from rlhf.tracking.wandb_run import resolve_mode
from rlhf.validate import validate

if TYPE_CHECKING:
    from actors.session import Session


def prepare(recipe_path: str, overrides: Sequence[str], command: Stage) -> tuple[Recipe, Device, int]:
    """The checked recipe, the device it runs on, and the number of GPUs there are.

    Raises:
        UserError: the recipe cannot work, here or anywhere.
    """
    recipe = _with_whole_paths(load_recipe(recipe_path, overrides))
    machine = _cluster(recipe.placement.ray_address) if recipe.placement.ray_address else _this_machine()
    try:
        context = None if command == "generate" else _context(recipe)
    except UserError:
        validate(recipe, command, machine)  # what is wrong besides comes first: a model may be far away
        raise
    validate(recipe, command, replace(machine, context_length=context))
    if command != "generate":
        heads = list(check_heads(recipe, stages_of(recipe, command), Shapes(recipe)))
        raise_all(list({problem.what: problem for problem in heads}.values()), f"the recipe {recipe.name!r}")
    if command != "generate":
        _import_functions(recipe, command)
        accuracy_ceiling(recipe.reward.ceiling if {"reward", "dpo"} & {*stages_of(recipe, command)} else None)
    resolve_mode(recipe.tracking)
    on_gpus = uses_gpus(recipe, machine)
    if recipe.placement.ray_address and command != "generate":
        _check_all_nodes_see(recipe, command, on_gpus)
    if not on_gpus:
        return recipe, "cpu", machine.gpus
    return _with_strategy(recipe, command, machine), "cuda", machine.gpus


def _with_strategy(recipe: Recipe, command: Stage, machine: Machine) -> Recipe:
    """The recipe with ``placement.strategy`` decided by memory, and said, where model and GPUs are known."""
    kinds = {gpu_named(node.type or "") for node in machine.nodes if node.gpus} if machine.nodes else {_own_gpu()}
    name = kinds.pop() if len(kinds) == 1 else None
    if name is None:
        return recipe
    nodes = [node.gpus for node in machine.nodes if node.gpus] or [machine.gpus]
    cluster = Cluster(nodes=len(nodes), gpus=min(nodes), gpu=name, network=GPUS[name].network)
    try:
        choice = choose(recipe, command, cluster, Shapes(recipe))
    except UserError:
        return recipe  # a model whose shape is not known yet: their number decides
    if choice is not None:
        print(f"placement: {choice.why}", flush=True)
    return decided(recipe, choice)


def _own_gpu() -> str | None:
    import torch

    seen = torch.cuda.get_device_properties(0)
    return gpu_named(seen.name, seen.total_memory)


def _this_machine() -> Machine:
    import torch

    return Machine(gpus=torch.cuda.device_count(), cpus=len(os.sched_getaffinity(0)))


def _cluster(address: str) -> Machine:
    """What a running cluster has: the run is placed on its nodes, whatever this machine is."""
    from actors.cluster import join, node_gpus, nodes

    join(address)
    there = nodes()
    gpus = tuple(node_gpus(node["Resources"]) for node in there)
    return Machine(gpus=sum(node.gpus for node in gpus), nodes=gpus, cpus=cores([node["Resources"] for node in there]))


def _check_all_nodes_see(recipe: Recipe, command: Stage, on_gpus: bool) -> None:
    from actors.shared_folder import blind_nodes

    runs = Path(recipe.runs_dir).absolute()
    strategy: Strategy = "colocated" if recipe.placement.strategy == "colocated" else "separate"
    types = {pool.gpu_type for pool in pools(recipe, command, strategy)}
    try:
        blind = blind_nodes(runs, on_gpus, () if None in types else {kind for kind in types if kind})
    except OSError as error:
        raise UserError(
            f"cannot write to {runs}", str(error), "set runs_dir to a folder that you may write to"
        ) from error
    if blind:
        raise UserError(
            f"runs_dir = {runs} is not the same folder on every node, and ranks write models and checkpoints there",
            f"what is written here is not seen on {', '.join(blind[:6])}{' and others' if len(blind) > 6 else ''}",
            "set runs_dir to a folder of a file system that all nodes share, mounted at the same path",
        )


def cores(there: Sequence[Mapping[str, float]]) -> int:
    """Cores of the smallest node that computes, by the resources of each: one with GPUs where there are some, else one
    with cores. A head may offer none."""
    computes = [node for node in there if node.get("GPU", 0) > 0] or there
    return min((int(node["CPU"]) for node in computes if node.get("CPU", 0) > 0), default=1)


def _context(recipe: Recipe) -> int | None:
    """The context of a pretrained model, where its folder or hub can be read now."""
    if recipe.model.path is None:
        return None
    from rlhf.models.folder import context_length

    try:
        return context_length(os.path.expanduser(recipe.model.path), recipe.model)
    except UserError:
        if recipe.placement.ray_address is None:
            raise
        return None  # only the cluster's nodes may see it


def check_updates(session: Session, stage: str) -> None:
    """Refuse a schedule that does not fit the number of rows, now that they are read.

    Raises:
        UserError: there is no update, there are too many, or all of them are warm-up.
    """
    recipe = session.recipe
    if stage == "sft":
        config: SFTConfig | RewardConfig | DPOConfig = recipe.sft
        batches = epoch_batches(len(session.demonstrations.train), config.batch_size, config.epochs, recipe.seed)
    elif stage in ("reward", "dpo"):
        config = recipe.reward if stage == "reward" else recipe.dpo
        batches = comparison_batches(session.preferences.train, config.batch_size, config.epochs, recipe.seed)
    else:
        return  # the number of PPO's updates is in the recipe
    check_schedule(config.optimizer, len(batches), f"{stage}.optimizer")


def check_models_of_ppo(session: Session) -> None:
    """Refuse PPO by itself where the stages before it left no model; in a pipeline they are yet to run.

    Raises:
        UserError: a model that PPO starts from is not there, or was made with another configuration.
    """
    _ = session.policy_start, session.reward_models, session.judge_model
    if session.recipe.algorithm.has_critic:
        _ = session.critic_start


def check_classifiers(session: Session, stage: str) -> None:
    """Refuse the model folders of a recipe that cannot become what the stage makes of them: reward models and critics.

    Only names and shapes of weights are read. What only a cluster's nodes may see is left to them.

    Raises:
        UserError: names the weights that are missing, or the labels that there are.
    """
    recipe = session.recipe
    if stage not in ("reward", "ppo"):
        return
    from rlhf.models.classifier import inspect_classifier, label_index, start_of_reward

    def is_here(folder: str) -> bool:
        return recipe.placement.ray_address is None or Path(folder).expanduser().exists()

    if stage == "reward":
        if recipe.reward.init is not None and is_here(recipe.reward.init):
            start = Path(recipe.reward.init).expanduser()
            session.require_vocabulary("reward.init", start)
            start_of_reward(start, recipe.model)
        return
    for key, source in _given_models(recipe):
        assert source.model is not None
        if is_here(source.model):
            found = inspect_classifier(Path(source.model).expanduser(), recipe.model, own=True)
            found.require_whole(f"{key}.model")
            label_index(found, source.label, f"{key}.label")
    critic = recipe.ppo.critic_init
    if critic is not None and recipe.algorithm.has_critic and is_here(critic):
        start = Path(critic).expanduser()
        session.require_vocabulary("ppo.critic_init", start)
        found = inspect_classifier(start, recipe.model, own=False)
        found.require_backbone("ppo.critic_init")


def _given_models(recipe: Recipe) -> list[tuple[str, RewardSourceConfig]]:
    """The reward models that a recipe names a folder of, the scorer of ``early_stop`` included, by key."""
    sources = {f"rewards.{name}": source for name, source in recipe.rewards.items()}
    if recipe.early_stop is not None:
        sources["early_stop.scorer"] = recipe.early_stop.scorer
    return [(key, source) for key, source in sources.items() if source.model not in (None, TRAINED)]


def _import_functions(recipe: Recipe, command: Stage) -> None:
    """Import the functions that the command will call: an error in one is better found now."""
    if "ppo" in stages_of(recipe, command):
        watcher = [recipe.early_stop.scorer] if recipe.early_stop else []
        for source in (*recipe.rewards.values(), *watcher):
            if source.function is not None:
                load_scorer(source.function)
    judge = recipe.evaluation.scorer
    if command == "pipeline" and judge is not None and load_scorer(judge).needs_rows:
        raise UserError(
            f"evaluation.scorer = {judge!r} needs data rows",
            "the comparison gives its judge prompts and answers only",
            "give its parameter a default, rows=None, or name another function",
        )


def _with_whole_paths(recipe: Recipe) -> Recipe:
    """Scorer files by their whole path, since actors start elsewhere; ``~`` in ``runs_dir`` as in every other path."""
    evaluation = replace(recipe.evaluation, scorer=_absolute(recipe.evaluation.scorer))
    rewards = {name: replace(part, function=_absolute(part.function)) for name, part in recipe.rewards.items()}
    watch = recipe.early_stop
    if watch is not None:
        watch = replace(watch, scorer=replace(watch.scorer, function=_absolute(watch.scorer.function)))
    runs_dir = os.path.expanduser(recipe.runs_dir)
    return replace(recipe, runs_dir=runs_dir, evaluation=evaluation, rewards=rewards, early_stop=watch)


def _absolute(spec: str | None) -> str | None:
    if spec is None or ".py:" not in spec:
        return spec
    file, function = spec.rsplit(":", 1)
    return f"{os.path.abspath(os.path.expanduser(file))}:{function}"
