"""What goes to the cluster with a job: the whole recipe, and the files of the current folder that it names.

A relative path is a file of this folder and goes along. An absolute one, or one that begins with ``~``, is a file of
storage that the cluster's nodes see, and stays what it is. So do names of models and data sets on the hub.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from rlhf.config.load import to_yaml
from rlhf.config.schema import TRAINED, Recipe
from rlhf.errors import UserError

RECIPE = "submitted.yaml"
"""The recipe's name among the uploaded files."""
LIMIT_BYTES = 64 * 2**20
"""Most that is uploaded: Ray keeps it in the memory of the head, and takes no more than 100 MiB at a time."""
OURS = frozenset({"rlhf", "actors", "launch"})
"""Packages that the nodes have: code that is uploaded never takes their place."""
PATHS = (
    "data.path",
    "data.demonstrations",
    "data.preferences",
    "data.prompts",
    "model.path",
    "model.chat_template",
    "reward.init",
    "reward.ceiling",
    "ppo.policy_init",
    "ppo.critic_init",
    "dpo.init",
)
"""Keys whose value is a path, or a hub's name. Models and functions that score have keys of their own."""
SKIPPED = frozenset({"__pycache__", "runs", "wandb"})
"""Folders inside a named folder that are left out, as hidden ones are: ``.git``, ``.venv``."""
LARGEST_SHOWN = 3


def named_paths(recipe: Recipe) -> dict[str, str]:
    """Key → path or hub name, of the data and models that a recipe names."""
    paths = {key: attrgetter(key)(recipe) for key in PATHS}
    paths |= {f"rewards.{name}.model": part.model for name, part in recipe.rewards.items()}
    if recipe.early_stop is not None:
        paths["early_stop.scorer.model"] = recipe.early_stop.scorer.model
    return {key: path for key, path in paths.items() if path and path != TRAINED}


def named_functions(recipe: Recipe) -> dict[str, str]:
    """Key → file or module of the functions that a recipe names."""
    specs = {f"rewards.{name}.function": part.function for name, part in recipe.rewards.items()}
    specs["evaluation.scorer"] = recipe.evaluation.scorer
    if recipe.early_stop is not None:
        specs["early_stop.scorer.function"] = recipe.early_stop.scorer.function
    return {key: spec.rpartition(":")[0] for key, spec in specs.items() if spec}


def is_elsewhere(path: str) -> bool:
    """Whether a path means the cluster's storage, which this machine need not see."""
    return path.startswith(("/", "~"))


def stage(recipe: Recipe, here: Path, folder: Path) -> list[Path]:
    """Put into ``folder`` what a job needs of the folder ``here``; returns the files' relative paths.

    Raises:
        UserError: a file is not below ``here``, or it is too much in all.
    """
    files = sorted(set(_files(recipe, here)))
    _refuse_too_much({file: (here / file).stat().st_size for file in files})
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(here / file, folder / file)
    (folder / RECIPE).write_text(to_yaml(recipe), encoding="utf-8")
    return files


def _files(recipe: Recipe, here: Path) -> Iterator[Path]:
    for key, path in named_paths(recipe).items():
        if not is_elsewhere(path) and (here / path).exists():
            yield from _in(here, _below(key, path))
    for key, source in named_functions(recipe).items():
        if not is_elsewhere(source):
            yield from _code(here, _below(key, source) if source.endswith(".py") else Path(source.partition(".")[0]))


def _below(key: str, path: str) -> Path:
    """A path without ``..``: it must stand at the same place on the nodes."""
    plain = os.path.normpath(path)
    if plain.startswith(".."):
        raise UserError(
            f"{key} = {path!r} is not below the current folder",
            "a job is sent files of the folder that it is submitted from",
            "submit from a folder above it, or give the whole path of a file that the cluster's nodes see",
        )
    return Path(plain)


def _in(here: Path, path: Path) -> Iterator[Path]:
    """A file, or all of a folder but what is hidden, compiled, or the output of runs."""
    if (here / path).is_file():
        yield path
        return
    for folder, folders, names in os.walk(here / path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in SKIPPED]
        yield from (Path(folder).relative_to(here) / name for name in names if not name.startswith("."))


def _code(here: Path, source: Path) -> Iterator[Path]:
    """A function's file with the modules beside it, or its package, where this folder has one of that name."""
    if source.suffix == ".py":
        yield from (file.relative_to(here) for file in (here / source).parent.glob("*.py"))
    elif (here / source).is_dir() and source.name not in OURS:
        yield from (file for file in _in(here, source) if file.suffix == ".py")
    elif (here / source).with_suffix(".py").is_file():
        yield from (file.relative_to(here) for file in here.glob("*.py"))


def _refuse_too_much(sizes: dict[Path, int]) -> None:
    total = sum(sizes.values())
    if total <= LIMIT_BYTES:
        return
    largest = sorted(sizes, key=lambda file: -sizes[file])[:LARGEST_SHOWN]
    shown = ", ".join(f"{file} {sizes[file] / 2**20:.0f} MiB" for file in largest)
    raise UserError(
        f"the files that the recipe names are {total / 2**20:.0f} MiB",
        f"a job is sent {LIMIT_BYTES / 2**20:.0f} MiB at most; the largest: {shown}",
        "put them on storage that the cluster's nodes see, and give their whole paths",
    )
