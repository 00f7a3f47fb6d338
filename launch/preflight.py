"""Everything that can be refused before a process is started or a file is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from rlhf.config.load import load_recipe
from rlhf.config.machine import Machine, Stage
from rlhf.config.schema import Recipe
from rlhf.config.validate import validate
from rlhf.device import Device, pick
from rlhf.errors import UserError
from rlhf.evaluation.scorers import load_scorer
from rlhf.tracking.wandb_run import resolve_mode


def prepare(recipe_path: str, overrides: Sequence[str], command: str) -> tuple[Recipe, Device, int]:
    """The checked recipe, the device it runs on, and the number of GPUs of this machine.

    Raises:
        UserError: the recipe cannot work, here or anywhere.
    """
    recipe = load_recipe(recipe_path, overrides)
    device = pick(recipe.placement.device)
    gpus = _gpus() if device == "cuda" else 0
    stage = cast(Stage, "ppo" if command == "generate" else command)
    recipe = _with_own_scorers(recipe)
    if command != "generate":
        machine = Machine(gpus=gpus, cpus=os.cpu_count() or 1, context_length=_context(recipe))
        validate(recipe, stage, machine)
        for spec in (recipe.reward.scorer, recipe.evaluation.scorer):
            if spec is not None:
                load_scorer(spec)  # an import error in it is better found now
    resolve_mode(recipe.tracking)
    return recipe, device, gpus


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _context(recipe: Recipe) -> int | None:
    """The context of a pretrained model, where its folder or hub can be read now."""
    if recipe.model.path is None:
        return None
    from rlhf.models.load import context_length

    try:
        return context_length(recipe.model.path, recipe.model)
    except UserError:
        if recipe.placement.ray_address is None:
            raise
        return None  # only the cluster's nodes may see it


def _with_own_scorers(recipe: Recipe) -> Recipe:
    """Scorer files by their whole path, since actors start elsewhere."""
    reward = replace(recipe.reward, scorer=_absolute(recipe.reward.scorer))
    evaluation = replace(recipe.evaluation, scorer=_absolute(recipe.evaluation.scorer))
    return replace(recipe, reward=reward, evaluation=evaluation)


def _absolute(spec: str | None) -> str | None:
    if spec is None or ".py:" not in spec:
        return spec
    file, function = spec.rsplit(":", 1)
    return f"{os.path.abspath(file)}:{function}"
