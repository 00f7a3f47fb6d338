"""``rlhf feedback round``: samples pairs, serves them until enough votes are in, and trains a reward model on them.

The same command continues an interrupted round: pairs that are sampled, votes that are given and models that are
trained stay.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import launch.feedback.sample
from launch.options import Overrides, RecipePath
from launch.run import run_stages
from rlhf.errors import Stopped, UserError

if TYPE_CHECKING:
    from launch.feedback.serve import Address
    from rlhf.config.schema import Recipe
    from rlhf.feedback.store import Store

PURPOSE = "one round: sample pairs, serve them until enough votes are in, and train a reward model on all votes"
EXAMPLE = "rlhf feedback round recipes/quickstart.yaml feedback.project=feedback.db feedback.votes=300"
SNAPSHOT = "feedback.db"
"""Copy of the project in the folder of the round's run: later votes do not change what it was trained on."""


def run(
    recipe: RecipePath,
    overrides: Overrides,
    host: Annotated[str, typer.Option(help="address of the labelling page")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the labelling page")] = 8450,
) -> None:
    """Run or continue a round.

    Raises:
        UserError: the recipe, the project, the model or the address cannot be used.
        Stopped: the page was stopped before the votes were in.
    """
    from launch.feedback.serve import Address

    name = _open_round(recipe, overrides)
    if name:
        print(f"{name} is sampled already: the command continues it", flush=True)
    else:
        launch.feedback.sample.run(recipe, overrides)
        name = _open_round(recipe, overrides)
    if not name:
        raise UserError(
            "the round has no pair",
            "all sampled answers to a prompt were equal, or every pair is in the project",
            "raise feedback.answers, feedback.prompts or rollout.temperature",
        )
    settings = _serve(recipe, overrides, name, Address(host=host, port=port))
    run_stages("reward", recipe, [*overrides, *settings])


def _recipe(path: str, overrides: list[str]) -> Recipe:
    from rlhf.config.load import load_recipe

    return load_recipe(path, overrides)


def _open_round(path: str, overrides: list[str]) -> str:
    """Name of the newest round if no model is trained on it yet; else empty."""
    from launch.feedback.sample import project_path
    from rlhf.feedback.records import Purpose
    from rlhf.feedback.rounds import last_round
    from rlhf.feedback.store import Store
    from rlhf.tracking.run_folder import RunFolder

    recipe = _recipe(path, overrides)
    with Store.open(project_path(recipe)) as store:
        last = last_round(store.items(Purpose.LABEL))
    is_trained = RunFolder(_root(recipe, last), "reward").finished_digest() is not None
    return "" if not last or is_trained else last


def _root(recipe: Recipe, round: str) -> Path:
    return Path(recipe.runs_dir).expanduser() / f"{recipe.name}-{round}"


def _serve(path: str, overrides: list[str], name: str, address: Address) -> list[str]:
    """Serve the round until its votes are in, and copy the project; returns the settings of its training run."""
    from dataclasses import replace

    from launch.feedback.sample import project_path
    from rlhf.feedback.project import load_preferences
    from rlhf.feedback.store import Store
    from rlhf.tracking.run_folder import RunFolder

    recipe = _recipe(path, overrides)
    copy = _root(recipe, name) / SNAPSHOT
    start = _start_model(recipe)  # refused now, not after the votes
    is_used = copy.exists() and RunFolder(copy.parent, "reward").path.exists()
    if not is_used:  # a copy that nothing was trained on is made anew
        project = project_path(recipe)
        with Store.open(project) as store:
            serve_until_voted(store, address, name, recipe.feedback.votes)
            load_preferences(replace(recipe.data, preferences=str(project)))  # refused before it is copied
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            store.backup(partial)
            partial.rename(copy)
    given: dict[str, str | None] = {"name": copy.parent.name, "data.preferences": str(copy)}
    if recipe.reward.init is None:
        given |= {"model.path": str(start), "model.scratch": None}
    return [f"{key}={json.dumps(value)}" for key, value in given.items()]


def _start_model(recipe: Recipe) -> Path:
    """Folder of the model that the round's reward model starts from: the run's SFT model, or its pretrained one."""
    from actors.session import Session
    from rlhf.tracking.console import Console

    session = Session(recipe=recipe, console=Console(sys.stdout), device="cpu", gpus=0)
    return session.model_of("sft", recipe.reward.init, session.base if recipe.model.path else None)


def serve_until_voted(store: Store, address: Address, name: str, votes: int) -> None:
    """Serve the labelling page until a round has ``votes`` votes, or its items need no more.

    Raises:
        UserError: the address cannot be used.
        Stopped: SIGINT or SIGTERM came first; the votes are kept.
    """
    from launch.feedback.serve import run_server
    from rlhf.tracking.console import Console

    overlap = store.settings.overlap
    if _has_votes(store.round_progress(name, overlap), votes):
        return
    with Console(sys.stdout).stage("Votes", votes) as report:

        def is_done() -> bool:
            progress = store.round_progress(name, overlap)
            report(min(progress[0], votes), {})
            return _has_votes(progress, votes)

        run_server(store, address, name, is_done)
    if not is_done():
        raise Stopped("the labelling page was stopped")


def _has_votes(progress: tuple[int, int], votes: int) -> bool:
    given, open_slots = progress
    return given >= votes or open_slots == 0
