"""Collects the files that a job uploads to the cluster: the whole recipe, and the local files that it names.

A relative path is a file of the current folder and is uploaded; a link out of that folder is refused. An absolute path,
or one that begins with ``~``, is on storage that the cluster's nodes see, and is kept. So are hub names of models and
data sets.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path

from rlhf.config.load import to_yaml
from rlhf.config.schema import TRAINED, Recipe
from rlhf.errors import UserError

RECIPE = "submitted.yaml"
"""The recipe's name among the uploaded files."""
LIMIT_BYTES = 64 * 2**20
"""Upload limit: Ray keeps uploads in the head's memory, and accepts at most 100 MiB at a time."""
OURS = frozenset({"rlhf", "actors", "launch"})
"""Packages of the nodes that uploaded code must not shadow."""
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
"""Keys whose value is a path or a hub name. Scoring models and functions have keys of their own."""
SKIPPED = frozenset({"__pycache__", "runs", "wandb"})
"""Subfolders that are left out, as hidden ones are: ``.git``, ``.venv``."""
LARGEST_SHOWN = 3


def named_paths(recipe: Recipe) -> dict[str, str]:
    """Key → path or hub name, of a recipe's data and models."""
    paths = {key: attrgetter(key)(recipe) for key in PATHS}
    paths |= {f"rewards.{name}.model": part.model for name, part in recipe.rewards.items()}
    if recipe.early_stop is not None:
        paths["early_stop.scorer.model"] = recipe.early_stop.scorer.model
    return {key: path for key, path in paths.items() if path and path != TRAINED}


def named_functions(recipe: Recipe) -> dict[str, str]:
    """Key → file or module, of a recipe's functions."""
    specs = {f"rewards.{name}.function": part.function for name, part in recipe.rewards.items()}
    specs["evaluation.scorer"] = recipe.evaluation.scorer
    if recipe.early_stop is not None:
        specs["early_stop.scorer.function"] = recipe.early_stop.scorer.function
    return {key: spec.rpartition(":")[0] for key, spec in specs.items() if spec}


def is_elsewhere(path: str) -> bool:
    """Whether a path is on the cluster's storage, which this machine need not see."""
    return path.startswith(("/", "~"))


def stage(recipe: Recipe, here: Path, folder: Path) -> list[Path]:
    """Copy a job's files from the folder ``here`` to ``folder``; returns their relative paths.

    Raises:
        UserError: a file is not below ``here``, also behind a link, or the total is too large.
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
            _refuse_project(key, here / path)
            yield from _files_in(key, here, _normalise(key, path))
    for key, source in named_functions(recipe).items():
        if not is_elsewhere(source):
            place = _normalise(key, source) if source.endswith(".py") else Path(source.partition(".")[0])
            yield from _code_files(key, here, place)


def _refuse_project(key: str, path: Path) -> None:
    """Refuse a feedback project: it holds the key of the raters' tokens, and its newest votes are in a second file."""
    from rlhf.feedback.project import is_project  # a slow import

    if is_project(path):
        raise UserError(
            f"{key} = {path.name!r} is a feedback project, which is not uploaded",
            "raters may be working on it, and it holds the key of their links",
            f"write its preferences by `rlhf feedback export {path.name} votes.jsonl --format trl`, and set "
            f"{key}=votes.jsonl",
        )


def _normalise(key: str, path: str) -> Path:
    """The normalised path, which must be below the current folder, so that it is the same on the nodes."""
    plain = os.path.normpath(path)
    if plain.startswith(".."):
        raise UserError(
            f"{key} = {path!r} is not below the current folder",
            "only files below the current folder are uploaded",
            "submit from a folder above it, or give the whole path of a file that the cluster's nodes see",
        )
    return Path(plain)


def _files_in(key: str, here: Path, path: Path) -> Iterator[Path]:
    """A file, or the files of a folder except hidden and compiled files and the output of runs."""
    _require_inside(key, here, path)
    if (here / path).is_file():
        yield path
        return
    for folder, folders, names in os.walk(here / path, followlinks=True):
        own = Path(folder).relative_to(here)
        _require_inside(key, here, own)
        if Path(folder).resolve() in {parent.resolve() for parent in Path(folder).parents}:  # a link to a folder above
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".") and name not in SKIPPED]
        yield from _checked(key, here, (own / name for name in names if not name.startswith(".")))


def _code_files(key: str, here: Path, source: Path) -> Iterator[Path]:
    """A function's file with the modules beside it, or its package, if this folder has one of that name."""
    if source.suffix == ".py":
        yield from _checked(key, here, _modules_in(here, source.parent))
    elif (here / source).is_dir() and source.name not in OURS:
        yield from (file for file in _files_in(key, here, source) if file.suffix == ".py")
    elif (here / source).with_suffix(".py").is_file():
        yield from _checked(key, here, _modules_in(here, Path()))


def _modules_in(here: Path, folder: Path) -> Iterator[Path]:
    return (file.relative_to(here) for file in (here / folder).glob("*.py") if not file.is_dir())


def _checked(key: str, here: Path, files: Iterable[Path]) -> Iterator[Path]:
    for file in files:
        _require_inside(key, here, file)
        yield file


def _require_inside(key: str, here: Path, path: Path) -> None:
    """Check that what a path leads to, also by links, is a file or a folder below the current one."""
    try:
        real = (here / path).resolve(strict=True)
    except OSError as error:
        what = f"{key}: {path} cannot be read: {error.strerror}"
        raise UserError(what, "it is a link to nothing", "remove it, or restore what it leads to") from error
    if not real.is_relative_to(here.resolve()):
        raise UserError(
            f"{key}: {path} is a link to {real}, which is not below the current folder",
            "only files below the current folder are uploaded: a link could send any file of this machine",
            "put a copy in its place, or give the whole path of a file that the cluster's nodes see",
        )
    if not (real.is_file() or real.is_dir()):
        raise UserError(f"{key}: {path} is neither a file nor a folder", "it cannot be copied", "remove it")


def _refuse_too_much(sizes: dict[Path, int]) -> None:
    total = sum(sizes.values())
    if total <= LIMIT_BYTES:
        return
    largest = sorted(sizes, key=lambda file: -sizes[file])[:LARGEST_SHOWN]
    shown = ", ".join(f"{file} {sizes[file] / 2**20:.0f} MiB" for file in largest)
    raise UserError(
        f"the files that the recipe names are {total / 2**20:.0f} MiB",
        f"at most {LIMIT_BYTES / 2**20:.0f} MiB are uploaded; the largest: {shown}",
        "put them on storage that the cluster's nodes see, and give their whole paths",
    )
