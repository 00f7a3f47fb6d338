"""``rlhf evaluate``: which of its uses is meant, and whether the options fit it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from launch.options import OptionalRecipePath, Overrides
from rlhf.errors import UserError

PURPOSE = "compare models' answers by metrics, a judge and people's votes; or a reward model with people's votes"
EXAMPLE = "rlhf evaluate --comparison comparison.yaml --out report.json"


def run(
    *,
    recipe: OptionalRecipePath = None,
    overrides: Overrides,
    reward_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="with a recipe: folder or hub name of a reward model")
    ] = None,
    preferences: Annotated[
        str | None, typer.Option(metavar="FILE", help="with a reward model: a feedback project, or comparisons")
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="with preferences: accuracy by this column (RewardBench: subset)"),
    ] = None,
    comparison: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="items, arms, metrics and judge, see docs/evaluation.md")
    ] = None,
    lint: Annotated[
        bool, typer.Option("--lint", help="only check the comparison's items; exit 1 with findings")
    ] = False,
    power: Annotated[
        float | None, typer.Option(metavar="DIFFERENCE", help="print the prompts that such a difference needs")
    ] = None,
    device: Annotated[str, typer.Option(help="where the encoder of BERTScore runs")] = "cpu",
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="file to write the numbers to")] = None,
) -> int:
    """Run the use that the options name; returns the exit code: 1 if the lint finds something.

    Raises:
        UserError: the options do not fit each other, or what they name cannot be used.
    """
    settings = [*([recipe] if recipe else []), *overrides]
    if comparison is not None:
        from launch.evaluate.comparison import compare, show_lint

        given = {"--reward-model": reward_model, "--preferences": preferences, "--category": category}
        _refuse(given, "--comparison")
        _refuse({"--power": power, "--out": out} if lint else {}, "--lint")
        return show_lint(comparison, settings) if lint else compare(comparison, settings, power, device, out)
    _refuse({"--lint": lint or None}, "an evaluation without --comparison")
    if power is not None:
        from launch.evaluate.comparison import show_power

        _refuse(
            {"--reward-model": reward_model, "RECIPE": recipe, "--category": category, "--out": out}, "--power alone"
        )
        return show_power(power)
    if recipe is None or reward_model is None or preferences is None:
        what = "nothing to evaluate"
        fix = f"`{EXAMPLE}`, or a recipe with --reward-model and --preferences"
        raise UserError(what, "a comparison file, or a recipe, a reward model and preferences are needed", fix)
    from launch.evaluate.reward_model import evaluate_reward_model

    evaluate_reward_model(recipe, overrides, reward_model, preferences, category, out)
    return 0


def _refuse(options: Mapping[str, object | None], use: str) -> None:
    """Refuse options that a use does not read."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} has no effect with {use}", fix=f"leave {', '.join(given)} out")
