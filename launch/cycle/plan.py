"""What a cycle is to do, checked before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rlhf.errors import UserError, raise_all

if TYPE_CHECKING:
    from rlhf.arms.spec import ComparisonConfig
    from rlhf.config.schema import CycleConfig, Recipe
    from rlhf.records import Messages

ROUNDS = "rounds"
"""Folder of the rounds, in the cycle's."""
LONGEST_NAME = 50
"""Characters of a recipe's name: a round's version is that, a dash, and a number."""


@dataclass(frozen=True, kw_only=True)
class CyclePlan:
    """A recipe of a cycle with the files that it names."""

    path: str
    overrides: tuple[str, ...]
    recipe: Recipe

    @property
    def config(self) -> CycleConfig:
        """The section ``cycle``."""
        return self.recipe.cycle

    @property
    def root(self) -> Path:
        """The cycle's folder."""
        return Path(self.recipe.runs_dir).expanduser() / self.recipe.name

    @property
    def project(self) -> Path:
        """The project whose votes are trained on."""
        return Path(self.recipe.feedback.project).expanduser()

    @property
    def comparisons(self) -> Path:
        """The project in which candidate and production are compared."""
        return Path(self.config.project).expanduser()

    @property
    def registry(self) -> Path:
        """The registry's file."""
        return Path(self.config.registry).expanduser()

    def version(self, round: int) -> str:
        """Name of a round in the projects and in the registry."""
        return f"{self.recipe.name}-{round}"

    def folder(self, round: int) -> Path:
        """Folder of a round, which is its run's."""
        return self.root / ROUNDS / f"round_{round}"

    def settings(self, round: int, start: Path, policy: Path) -> list[str]:
        """Overrides of a round's stages.

        Args:
            start: the cycle's first model: its tokenizer is that of all rounds, and reward models start from it.
            policy: the model that answers and is improved.
        """
        given: dict[str, str | None] = {
            "runs_dir": str(self.root / ROUNDS),
            "name": self.folder(round).name,
            "model.path": str(start),
            "model.scratch": None,
            "feedback.policy": str(policy),
            "ppo.policy_init": str(policy),
            "data.preferences": str(self.folder(round) / "votes.db"),
        }
        return [*self.overrides, *(f"{key}={json.dumps(value)}" for key, value in given.items())]

    def comparison(self, votes: Path | None, answers: Path) -> ComparisonConfig:
        """The comparison of a round: the file of ``cycle.comparison`` with items, arms and votes."""
        from rlhf.cycle.preferences import CANDIDATE, PRODUCTION

        arms = {arm: str(answers / f"{arm}.jsonl") for arm in (CANDIDATE, PRODUCTION)}
        return _load_comparison(self.recipe, arms, votes)


def load_plan(path: str, overrides: Sequence[str]) -> CyclePlan:
    """Read a recipe and check what it names.

    Raises:
        UserError: lists what is wrong.
    """
    from rlhf.config.load import load_recipe

    recipe = load_recipe(path, overrides)
    plan = CyclePlan(path=path, overrides=tuple(overrides), recipe=recipe)
    raise_all(list(_problems(plan)), f"the cycle of {path}")
    _check_files(plan)
    return plan


def _problems(plan: CyclePlan) -> Iterable[UserError]:
    from launch.feedback.transfer import ImportFormat
    from rlhf.config.fields import PART_NAME

    recipe, config = plan.recipe, plan.config
    if not PART_NAME.fullmatch(recipe.name) or len(recipe.name) > LONGEST_NAME:
        why = "it is part of the artefacts' versions"
        yield UserError(
            f"name = {recipe.name!r}", why, f"use up to {LONGEST_NAME} letters, digits, dashes, underscores"
        )
    if recipe.feedback.policy is not None:
        fix = "feedback.policy=null; ppo.policy_init names the first round's model"
        yield UserError("feedback.policy has no effect", "each round samples from the policy that it improves", fix)
    if not recipe.trains_reward:
        why = "a cycle learns from votes by a reward model"
        yield UserError("no reward is the model that the cycle trains", why, "rewards.model.model=trained")
    if plan.project.absolute() == plan.comparisons.absolute():
        why = "votes on held-out prompts would be trained on"
        yield UserError("cycle.project is feedback.project", why, "make another: rlhf feedback init comparisons.db")
    if not plan.project.exists() and not config.imports:
        yield _no_project("feedback.project", plan.project)
    if not plan.comparisons.exists():
        yield _no_project("cycle.project", plan.comparisons)
    for file, form in config.imports.items():
        if form not in get_args(ImportFormat):
            yield UserError(
                f"cycle.imports.{file} = {form!r}", fix=f"the formats are {', '.join(get_args(ImportFormat))}"
            )
        if not Path(file).expanduser().is_file():
            yield UserError(f"cycle.imports has {file!r}", "there is no such file", "correct the name")


def _no_project(key: str, path: Path) -> UserError:
    return UserError(
        f"{key} = '{path}': there is no such file", fix=f"name your project, or: rlhf feedback init {path}"
    )


def _check_files(plan: CyclePlan) -> None:
    """Check items, comparison, gate and registry.

    Raises:
        UserError: one of them cannot be used.
    """
    from rlhf.config.schema import DataConfig
    from rlhf.cycle.journal import JOURNAL
    from rlhf.cycle.preferences import CANDIDATE, PREFERRED, PRODUCTION
    from rlhf.data.formats import load_prompts
    from rlhf.serving.gate_spec import load_gate
    from rlhf.serving.registry import Registry

    config = plan.config
    items = load_prompts(DataConfig(prompts=config.items, bad_rows="error")).rows
    if not (plan.root / JOURNAL).exists():  # data may be large, and a begun cycle has been checked
        _require_held_out(plan, [row.prompt for row in items])
    compared = _load_comparison(plan.recipe, {CANDIDATE: config.items, PRODUCTION: config.items}, None)
    gate = load_gate(Path(config.gate))
    if gate.for_stage != "shadow":
        fix = "give the gate for shadow; the later ones read live counts"
        raise UserError(f"cycle.gate = {config.gate!r} is for {gate.for_stage}", "a round ends in shadow", fix)
    known = {PREFERRED, *compared.metrics, *compared.scores, *compared.scorers}
    unknown = [name for name, kpi in gate.kpis.items() if (kpi.metric or name) not in known]
    if unknown and not gate.results:
        why = f"a round measures {', '.join(sorted(known))}"
        raise UserError(f"{config.gate}: nothing measures kpis.{unknown[0]}", why, "add it to cycle.comparison")
    if plan.registry.exists():
        Registry(plan.registry).close()


def _require_held_out(plan: CyclePlan, items: Sequence[Messages | str]) -> None:
    """Check that no item is a prompt of PPO or of the pairs that people label.

    Raises:
        UserError: one is, or the prompts cannot be read.
    """
    from rlhf.data.split import canonical_prompt
    from rlhf.feedback.project import load_prompts

    trained = {canonical_prompt(row.prompt) for row in load_prompts(plan.recipe.data).rows}
    if shared := sum(canonical_prompt(item) in trained for item in items):
        what = f"{shared:,} of the {len(items):,} prompts of cycle.items = {plan.config.items!r} are prompts of PPO"
        raise UserError(what, "a model is compared on what it was not trained on", "leave them out of data.prompts")


def _load_comparison(recipe: Recipe, arms: dict[str, str], votes: Path | None) -> ComparisonConfig:
    from rlhf.arms.spec import ComparisonConfig, load_comparison
    from rlhf.cycle.preferences import PRODUCTION

    config = recipe.cycle
    given: dict[str, object] = {"items": config.items, "arms": arms, "base": PRODUCTION, "seed": recipe.seed}
    if votes is not None:
        given["votes"] = str(votes)
    if config.comparison is None:
        return ComparisonConfig(metrics=("length",), **given)  # type: ignore[arg-type]
    return load_comparison(config.comparison, [f"{key}={json.dumps(value)}" for key, value in given.items()])
