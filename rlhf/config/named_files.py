"""Checks names, paths, functions and URLs in a recipe before anything starts, without importing any function."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf.config.schema import Recipe
from rlhf.errors import UserError
from rlhf.secrets import without_secrets

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
DATA_FILE = re.compile(r".+\.(jsonl|json|parquet|csv|txt|db)(\.\w+)?", re.IGNORECASE)
"""A file name, by its extension; a hub name such as ``Qwen/Qwen2.5-0.5B`` has dots, but none of these extensions."""
STAGE_DATA = {"sft": "demonstrations", "reward": "preferences", "dpo": "preferences", "ppo": "prompts"}
"""Stage → its key in ``data``."""
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MODULE_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
EXAMPLES = {
    "data/travel": "python -m examples.travel.make_data --out data/travel",
    "data/travel_retrieval": "python -m examples.travel.passages --out data/travel_retrieval",
}
"""Folder of an example's data → the command that makes it."""
SCORER_FIX = "write package.module:function or file.py:function, for example examples/travel/guideline.py:quality"


def check_name(recipe: Recipe) -> Iterator[UserError]:
    """Check that the run's name can be a folder name, and that ``runs_dir`` can be a folder."""
    if not SAFE_NAME.fullmatch(recipe.name):
        yield UserError(
            f"name = {recipe.name!r} cannot be a folder's name",
            "a run's files go to <runs_dir>/<name>",
            "use up to 100 letters, digits, dots, dashes and underscores, beginning with a letter or digit",
        )
    if "://" in recipe.runs_dir:
        yield UserError(
            f"runs_dir = {without_secrets(recipe.runs_dir)!r} is a URL",
            "a run writes, renames and locks local files; a folder of this name would be created here",
            "name a folder, on a cluster one of a file system that all nodes share; copy the finished run to the store",
        )
    elif not recipe.runs_dir or not _is_path(recipe.runs_dir) or _exists(recipe.runs_dir, file=True):
        fix = "name a folder; it is created if it does not exist"
        yield UserError(f"runs_dir = {recipe.runs_dir!r} is not a folder", fix=fix)


def check_data(recipe: Recipe, stages: Sequence[str]) -> Iterator[UserError]:
    """Check that every stage has data, and that local files exist."""
    paths: dict[str, str] = {}
    for stage in stages:
        own = f"data.{STAGE_DATA[stage]}"
        if path := getattr(recipe.data, STAGE_DATA[stage]):
            paths[own] = path
        elif recipe.data.path:
            paths["data.path"] = recipe.data.path
        else:
            yield UserError(
                f"the {stage} stage has no data",
                f"neither {own} nor data.path is set",
                f"add {own}=<file, folder or hub name>, or data.path=<...> for all stages",
            )
    for key, path in paths.items():
        yield from check_path(key, path)


def check_models(recipe: Recipe, stages: Sequence[str]) -> Iterator[UserError]:
    """Check that the model has one source, and that the folders from which the stages start exist."""
    if (recipe.model.path is None) == (recipe.model.scratch is None):
        given = "neither is" if recipe.model.path is None else "both are"
        yield UserError(
            f"exactly one of model.path and model.scratch is needed: {given} given",
            fix="model.path=<folder or hub name> model.scratch=null to load a model, model.scratch={} model.path=null "
            "to create one",
        )
    paths = {"model.path": recipe.model.path, "ppo.policy_init": recipe.ppo.policy_init}  # whose tokenizer is the run's
    if "reward" in stages:
        paths["reward.init"] = recipe.reward.init
    if "ppo" in stages:
        paths["ppo.critic_init"] = recipe.ppo.critic_init
    if "dpo" in stages:
        paths["dpo.init"] = recipe.dpo.init
    for key, path in paths.items():
        if path is not None:
            yield from check_path(key, path)
    template = recipe.model.chat_template
    if template is not None and not _exists(template, file=True):
        yield UserError(f"model.chat_template = {template!r}: there is no such file", fix="name a Jinja file")


def check_scorer(key: str, spec: str) -> Iterator[UserError]:
    """Check that a scorer is ``package.module:function`` or ``file.py:function``, and that the file exists."""
    source, colon, function = spec.rpartition(":")
    if not colon or not function.isidentifier():
        yield UserError(f"{key} = {spec!r} does not name a function", fix=SCORER_FIX)
    elif source.endswith(".py"):
        if not _exists(source, file=True):
            yield UserError(f"{key} = {spec!r}: there is no file {source}", fix=from_here())
    elif not MODULE_SPEC.fullmatch(source):
        yield UserError(f"{key} = {spec!r} names neither a module nor a Python file", fix=SCORER_FIX)


def check_path(key: str, path: str) -> Iterator[UserError]:
    """Check that a path is not empty, and that it exists unless it may be a hub name."""
    if not path:
        yield UserError(f"{key} is empty", fix=f"{key}=<file, folder or hub name>, or {key}=null to leave it out")
    elif "://" in path:
        why = "data and models are read from local files, and from the Hugging Face Hub by their name"
        yield UserError(f"{key} = {without_secrets(path)!r} is a URL", why, f"download it, and set {key} to its path")
    elif _looks_local(path) and not _exists(path):
        yield UserError(f"{key} = {path!r}: there is no such file or folder", fix=_maker(path) or from_here())


def check_tracking(recipe: Recipe) -> Iterator[UserError]:
    """Check that the URL of the timeline's collector contains no secret."""
    if recipe.tracking.opentelemetry is not None:
        how = "set OTEL_EXPORTER_OTLP_HEADERS in the environment, as 'authorization=Bearer%20...'"
        yield from check_secret("tracking.opentelemetry", recipe.tracking.opentelemetry, how)


def check_secret(key: str, url: str, fix: str) -> Iterator[UserError]:
    """Check that a URL contains no password and no secret of the environment."""
    if (shown := without_secrets(url)) != url:
        why = "the recipe is written to the run's folder"
        yield UserError(f"{key} = {shown!r} holds a password or token (shown as ***)", why, fix)


def _maker(path: str) -> str:
    """Fix for a file of an example's data that has not been made yet."""
    return next((f"`{command}` makes it" for folder, command in EXAMPLES.items() if path.startswith(f"{folder}/")), "")


def _looks_local(path: str) -> bool:
    """Whether a name can only be a path: it cannot be a hub name, has a data file's extension, or its folder exists."""
    if not HUB_NAME.fullmatch(path) or DATA_FILE.fullmatch(path):
        return True
    return "/" in path and _exists(path.partition("/")[0])


def _exists(path: str, file: bool = False) -> bool:
    try:
        place = Path(path).expanduser()
        return place.is_file() if file else place.exists()
    except (OSError, ValueError, RuntimeError):  # too long for the file system, a null character, an unknown ~user
        return False


def _is_path(path: str) -> bool:
    """Whether a file or folder of this name could exist."""
    try:
        Path(path).expanduser().exists()
        os.fsencode(path)
    except (OSError, ValueError, RuntimeError):
        return False
    return "\0" not in path


def from_here() -> str:
    """Fix for a path at which there is nothing."""
    return f"check the path; relative paths start at the folder that the command runs in, {Path.cwd()}"
