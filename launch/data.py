"""``rlhf data``: shows the models' view of a recipe's data before training. It writes nothing.

It needs the data, a tokenizer and a model's settings, and no weights, so it runs before GPUs are paid for.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Overrides, RecipePath, Run

if TYPE_CHECKING:
    from actors.session import Session
    from rlhf.config.schema import Recipe
    from rlhf.data.show import Shown

PURPOSE = "show what the models will see of a recipe's data, token by token, and the rows that are not used"
EXAMPLE = "rlhf data recipes/quickstart.yaml --rows 3"


def run(
    recipe: RecipePath,
    overrides: Overrides,
    rows: Annotated[int, typer.Option(help="rows of each stage shown token by token")] = 2,
    stage: Annotated[Run, typer.Option(help="the command whose data is shown")] = "pipeline",
) -> None:
    """Print the page.

    Raises:
        UserError: the recipe, the data or the model's folder cannot be used.
    """
    from rlhf.config.load import load_recipe
    from rlhf.config.named_files import check_data, check_models
    from rlhf.errors import raise_all

    loaded = load_recipe(recipe, overrides)
    stages = [name for name in _stages(loaded, stage) if stage != "pipeline" or _has_data(loaded, name)]
    problems = [*check_models(loaded, stages), *check_data(loaded, stages)]
    raise_all(problems, f"the recipe {loaded.name!r}")
    with tempfile.TemporaryDirectory() as folder:
        _show(loaded, stages, rows, Path(folder))


def _stages(recipe: Recipe, stage: Run) -> list[str]:
    """The stages of a command. In place of a reward model's comparisons, DPO's single answers if the recipe has these.

    A recipe has one key for both stages' data; without a command, its losses say which of them reads it.
    """
    from rlhf.config.stages import is_unpaired, stages_of

    is_for_dpo = stage == "pipeline" and is_unpaired(recipe, "dpo") and not is_unpaired(recipe, "reward")
    return ["dpo" if name == "reward" and is_for_dpo else name for name in stages_of(recipe, stage)]


def _has_data(recipe: Recipe, stage: str) -> bool:
    from rlhf.config.named_files import STAGE_DATA

    return bool(recipe.data.path or getattr(recipe.data, STAGE_DATA[stage]))


def _show(recipe: Recipe, stages: list[str], rows: int, folder: Path) -> None:
    """Print each stage's data as its session reads it; a tokenizer that has to be trained is written to ``folder``."""
    from actors.session import Session
    from rlhf.data.show import show_stage
    from rlhf.tracking.console import Console
    from rlhf.tracking.quiet import quiet_framework_logs

    if recipe.model.scratch is not None:
        recipe = replace(recipe, runs_dir=str(folder / "runs"))
    with quiet_framework_logs(folder / "log") as stdout:
        console = Console(stdout)
        session = Session(recipe=recipe, console=console, device="cpu", gpus=0)
        for stage in stages:
            title, data = _data_of(session, stage)
            console.page(
                show_stage(title, data, session.chat, session.facts, recipe.data, rows, colour=console.has_colour)
            )


def _data_of(session: Session, stage: str) -> tuple[str, Shown]:
    from rlhf.config.stages import is_unpaired

    if stage == "sft":
        return "sft: demonstrations", session.demonstrations
    if stage == "ppo":
        return "ppo: prompts", session.prompts
    kind = "unpaired labels" if is_unpaired(session.recipe, stage) else "comparisons"
    return f"{stage}: {kind}", session.judged(stage)
