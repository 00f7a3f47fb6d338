"""Checks everything that can be checked before a process is started or a file is written."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.doctor.memory import gather
from launch.plan.cluster import Cluster
from launch.plan.members import Shapes, check_heads
from launch.plan.strategy import choose, decided
from rlhf.config.named_files import STAGE_DATA
from rlhf.config.schema import TRAINED, DPOConfig, Recipe, RewardConfig, RewardSourceConfig, SFTConfig, Stage
from rlhf.config.stages import check_schedule, stages_of
from rlhf.data.order import epoch_batches
from rlhf.data.stages import comparison_batches
from rlhf.device import Device
from rlhf.errors import UserError, raise_all
from rlhf.evaluation.accuracy import accuracy_ceiling
from rlhf.evaluation.scorers import load_scorer
from rlhf.gpus import GPUS, gpu_named
from rlhf.placement.machine import Machine, uses_gpus
from rlhf.placement.pools import Strategy, pools
from rlhf.retrieval.dataset import check_dataset_template
from rlhf.storage.write_errors import unwritable
from rlhf.tracking.wandb_run import resolve_mode
from rlhf.validate import problems_of, validate

if TYPE_CHECKING:
    from actors.session import Session


def prepare(given: Recipe, command: Stage) -> tuple[Recipe, Device, int]:
    """Check a recipe; returns it, completed, with the device that it runs on and the number of GPUs.

    Raises:
        UserError: the recipe cannot work on this machine or cluster, or anywhere.
    """
    recipe = _with_whole_paths(given)
    machine = _cluster(recipe.placement.ray_address) if recipe.placement.ray_address else _this_machine()
    try:
        context = None if command == "generate" else _context_length(recipe)
    except UserError:
        validate(recipe, command, machine)  # report other errors first: reading the model may be slow
        raise
    validate(recipe, command, replace(machine, context_length=context))
    if command != "generate":
        stages = stages_of(recipe, command)
        heads = {problem.what: problem for problem in check_heads(recipe, stages, Shapes(recipe))}
        raise_all(list(heads.values()), f"the recipe {recipe.name!r}")
        _import_functions(recipe, command)
        accuracy_ceiling(recipe.reward.ceiling if {"reward", "dpo"} & {*stages} else None)
    resolve_mode(recipe.tracking)
    on_gpus = uses_gpus(recipe, machine)
    if recipe.placement.ray_address and command != "generate":
        _check_all_nodes_see(recipe, command, on_gpus)
    if not on_gpus:
        return recipe, "cpu", machine.gpus
    return _with_strategy(recipe, command, machine), "cuda", machine.gpus


def further_problems(recipe: Recipe, command: Stage) -> list[UserError]:
    """Problems of a recipe that has been refused already. No cluster is joined for it, and no model's folder read."""
    any_cluster = Machine(gpus=10**6, cpus=10**6)
    machine = any_cluster if recipe.placement.ray_address is not None else _this_machine()
    return problems_of(_with_whole_paths(recipe), command, machine)


def _with_strategy(recipe: Recipe, command: Stage, machine: Machine) -> Recipe:
    """Replace ``placement.strategy=auto`` by memory, and print the choice, if model and GPUs are known."""
    kinds = {gpu_named(node.type or "") for node in machine.nodes if node.gpus} if machine.nodes else {_own_gpu()}
    name = kinds.pop() if len(kinds) == 1 else None
    if name is None:
        return recipe
    nodes = [node.gpus for node in machine.nodes if node.gpus] or [machine.gpus]
    cluster = Cluster(nodes=len(nodes), gpus=min(nodes), gpu=name, network=GPUS[name].network)
    try:
        choice = choose(recipe, command, cluster, Shapes(recipe))
    except UserError:
        return recipe  # the model's shape is unknown: the number of GPUs decides
    if choice is not None:
        print(f"placement: {choice.why}", flush=True)
    return decided(recipe, choice)


def _own_gpu() -> str | None:
    import torch

    seen = torch.cuda.get_device_properties(0)
    return gpu_named(seen.name, seen.total_memory)


def _this_machine() -> Machine:
    import torch

    try:
        memory: int | None = gather().total
    except OSError:  # a system without control groups or shared memory
        memory = None
    return Machine(gpus=torch.cuda.device_count(), cpus=len(os.sched_getaffinity(0)), memory=memory)


def _cluster(address: str) -> Machine:
    """Resources of a running cluster, on whose nodes the run is placed."""
    from actors.cluster import join, node_gpus, nodes

    join(address)
    there = nodes()
    gpus = tuple(node_gpus(node["Resources"]) for node in there)
    return Machine(gpus=sum(node.gpus for node in gpus), nodes=gpus, cpus=cores([node["Resources"] for node in there]))


def _check_all_nodes_see(recipe: Recipe, command: Stage, on_gpus: bool) -> None:
    from actors.shared_folder import nodes_without_folder

    runs = Path(recipe.runs_dir).absolute()
    strategy: Strategy = "colocated" if recipe.placement.strategy == "colocated" else "separate"
    types = {pool.gpu_type for pool in pools(recipe, command, strategy)}
    try:
        nodes = nodes_without_folder(runs, on_gpus, () if None in types else {kind for kind in types if kind})
    except OSError as error:
        raise unwritable(runs, error) from error
    if nodes:
        raise UserError(
            f"runs_dir = {runs} is not the same folder on every node, and ranks write models and checkpoints there",
            f"files written here are not visible on {', '.join(nodes[:6])}{' and others' if len(nodes) > 6 else ''}",
            "set runs_dir to a folder of a file system that all nodes share, mounted at the same path",
        )


def cores(there: Sequence[Mapping[str, float]]) -> int:
    """Cores of the smallest node that computes, from the nodes' resources: nodes with GPUs if there are any, else nodes
    with cores. A head may offer none."""
    computes = [node for node in there if node.get("GPU", 0) > 0] or there
    return min((int(node["CPU"]) for node in computes if node.get("CPU", 0) > 0), default=1)


def _context_length(recipe: Recipe) -> int | None:
    """Context length of a pretrained model, if its folder or hub is accessible."""
    if recipe.model.path is None:
        return None
    from rlhf.models.folder import context_length

    try:
        return context_length(os.path.expanduser(recipe.model.path), recipe.model)
    except UserError:
        if recipe.placement.ray_address is None:
            raise
        return None  # only the cluster's nodes may have access


def check_updates(session: Session, stage: str) -> None:
    """Check a schedule against the number of rows, once they are read.

    Raises:
        UserError: the schedule has no update, too many, or only warm-up updates.
    """
    recipe = session.recipe
    if stage == "sft":
        config: SFTConfig | RewardConfig | DPOConfig = recipe.sft
        batches = epoch_batches(len(session.demonstrations.train), config.batch_size, config.epochs, recipe.seed)
    elif stage in ("reward", "dpo"):
        config = recipe.reward if stage == "reward" else recipe.dpo
        batches = comparison_batches(session.judged(stage).train, config.batch_size, config.epochs, recipe.seed)
    else:
        return  # the recipe states the number of PPO's updates
    check_schedule(config.optimizer, len(batches), f"{stage}.optimizer")


def check_template(session: Session, stage: str) -> None:
    """Check that a stage's prompts from ``rlhf retrieval build`` have the recipe's template.

    Raises:
        UserError: they have another one.
    """
    data = session.recipe.data
    path = getattr(data, STAGE_DATA[stage]) or data.path
    if path is not None:
        check_dataset_template(path, session.recipe.retrieval)


def check_models_of_ppo(session: Session) -> None:
    """Check that the models exist from which PPO alone starts; in a pipeline, earlier stages create them.

    Raises:
        UserError: an initial model of PPO is missing, or was trained with another configuration.
    """
    models = ["policy_start", "reward_models", "held_out_model"]
    if session.recipe.algorithm.has_critic:
        models.append("critic_start")
    wrong: dict[str, UserError] = {}  # by message: several may start from the same model
    for name in models:
        try:
            getattr(session, name)
        except UserError as error:
            wrong[str(error)] = error
    raise_all(list(wrong.values()), f"the models of the recipe {session.recipe.name!r}")


def check_classifiers(session: Session, stage: str) -> None:
    """Check the model folders of a recipe that become reward models or critics.

    Only names and shapes of weights are read. Folders that only a cluster's nodes can access are checked there.

    Raises:
        UserError: weights are missing, or a label does not exist.
    """
    recipe = session.recipe
    if stage not in ("reward", "ppo"):
        return
    from rlhf.models.classifier import inspect_classifier, label_index, start_of_reward

    def is_here(folder: str) -> bool:
        return recipe.placement.ray_address is None or Path(folder).expanduser().exists()

    if stage == "reward":
        if recipe.reward.init is not None and is_here(recipe.reward.init):
            start = session.verified(Path(recipe.reward.init).expanduser())
            session.require_vocabulary("reward.init", start)
            start_of_reward(start, recipe.model)
        return
    for key, source in _named_models(recipe):
        assert source.model is not None
        if is_here(source.model):
            found = inspect_classifier(session.verified(Path(source.model).expanduser()), recipe.model, own=True)
            found.require_whole(f"{key}.model")
            label_index(found, source.label, f"{key}.label")
    critic = recipe.ppo.critic_init
    if critic is not None and recipe.algorithm.has_critic and is_here(critic):
        start = session.verified(Path(critic).expanduser())
        session.require_vocabulary("ppo.critic_init", start)
        found = inspect_classifier(start, recipe.model, own=False)
        found.require_backbone("ppo.critic_init")


def _named_models(recipe: Recipe) -> list[tuple[str, RewardSourceConfig]]:
    """The recipe's reward models with a folder, including the scorer of ``early_stop``, by key."""
    sources = {f"rewards.{name}": source for name, source in recipe.rewards.items()}
    if recipe.early_stop is not None:
        sources["early_stop.scorer"] = recipe.early_stop.scorer
    return [(key, source) for key, source in sources.items() if source.model not in (None, TRAINED)]


def _import_functions(recipe: Recipe, command: Stage) -> None:
    """Import the functions that the command will call, so that errors in them are found now."""
    if "ppo" in stages_of(recipe, command):
        watcher = [recipe.early_stop.scorer] if recipe.early_stop else []
        for source in (*recipe.rewards.values(), *watcher):
            if source.function is not None:
                _load_as_actors_do(source.function)
    scorer = recipe.evaluation.scorer
    if command == "pipeline" and scorer is not None and load_scorer(scorer).needs_rows:
        raise UserError(
            f"evaluation.scorer = {scorer!r} needs data rows",
            "the comparison passes only prompts and answers to its scorer",
            "give its parameter a default, rows=None, or name another function",
        )


def _load_as_actors_do(function: str) -> None:
    """Load a function outside the main thread, where signals cannot be handled.

    Raises:
        UserError: it cannot be loaded there.
    """
    errors = list[BaseException]()

    def load() -> None:
        try:
            load_scorer(function)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=load, daemon=True)  # one whose import hangs does not outlive the command
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _with_whole_paths(recipe: Recipe) -> Recipe:
    """Make scorer files absolute, because actors start in other folders, and expand ``~`` in ``runs_dir``."""
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
