"""One round: its steps up to a trained candidate. ``judging`` has those that decide about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launch.cycle import work
from launch.cycle.deciding import found_bad
from launch.cycle.plan import CyclePlan
from launch.cycle.steps import RoundSteps, StepOutcome
from launch.cycle.votes import VoteCount, VoteFeed, await_votes
from rlhf.cycle.journal import CycleStep, starting_policy
from rlhf.errors import UserError

if TYPE_CHECKING:
    from rlhf.config.schema import Recipe
    from rlhf.feedback.store import Store

VOTES = "votes.db"
"""Copy of the project in the round's folder: later votes do not change what was trained on."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round and the models that it starts from."""

    plan: CyclePlan
    number: int
    start: Path
    """The cycle's first model."""
    policy: Path
    """The model that is improved."""
    hours: float | None
    """How long to wait for votes; None not at all."""

    @property
    def version(self) -> str:
        """Its name in projects and registry."""
        return self.plan.version(self.number)

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.plan.folder(self.number)

    @cached_property
    def settings(self) -> list[str]:
        """Overrides of its stages."""
        return self.plan.settings(self.number, self.start, self.policy)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of its stages."""
        from rlhf.config.load import load_recipe

        return load_recipe(self.plan.path, self.settings)


def start_cycle(plan: CyclePlan, steps: RoundSteps) -> Path:
    """Find the first model, or train it by the recipe's SFT stage; returns its folder."""
    given = plan.recipe.ppo.policy_init
    folder = Path(given).expanduser().absolute() if given else (plan.root / "sft" / "model").absolute()
    made = steps.take(
        CycleStep.START,
        {"policy_init": given, "recipe": "" if given else _depends(plan.recipe, "sft")},
        (lambda: None) if given else partial(work.train_stage, plan.path, plan.overrides, "sft"),
        lambda: StepOutcome(
            result={"model": str(folder), "registry": str(plan.registry.absolute())},
            cost={} if given else _stage_cost(folder.parent),
        ),
    )
    return Path(made["model"])


def open_policy(plan: CyclePlan, steps: RoundSteps) -> Path:
    """The model that a round improves, chosen once: a round that goes on later keeps it."""

    def read() -> StepOutcome:
        policy = starting_policy(steps.journal.entries(), steps.round, found_bad(plan))
        return StepOutcome(result={"model": str(policy)})

    return Path(steps.take(CycleStep.START, {"round": steps.round}, lambda: None, read)["model"])


def train_candidate(round: Round, steps: RoundSteps) -> Path:
    """Sample, wait for votes, and train the reward model and the policy; returns the candidate's folder."""
    project = {"round": round.version, "project": str(round.plan.project.absolute())}
    if round.plan.config.sample:
        steps.take(CycleStep.SAMPLE, project, partial(_sample, round), partial(_read_sample, round))
    copy = round.folder / VOTES
    labelled = steps.take(
        CycleStep.LABEL, project, partial(_label, round, copy), partial(_read_votes, round, copy), copy
    )
    _train(round, steps, CycleStep.REWARD, labelled["digest"])
    trained = _train(round, steps, CycleStep.PPO, labelled["digest"])
    return Path(trained["model"])


def _sample(round: Round) -> None:
    """Sample the round's pairs, unless the project has them: they are added in one transaction."""
    from rlhf.feedback.store import Store

    with Store.open(round.plan.project) as store:
        if store.items(round=round.version):
            return
    work.sample_pairs(round.plan.path, round.settings, round.version)


def _read_sample(round: Round) -> StepOutcome:
    from rlhf.feedback.store import Store

    with Store.open(round.plan.project) as store:
        pairs = len(store.items(round=round.version))
    if not pairs:
        raise UserError(
            f"round {round.number} has no pair",
            "all sampled answers to a prompt were equal, or every pair is in the project",
            "raise feedback.answers, feedback.prompts or rollout.temperature",
        )
    return StepOutcome(result={"pairs": pairs})


def _label(round: Round, copy: Path) -> None:
    """Wait for the votes, and copy the project."""
    from rlhf.feedback.project import load_preferences
    from rlhf.feedback.store import Store

    if copy.exists():
        return
    plan = round.plan
    feed = VoteFeed(project=plan.project, files=plan.config.imports)
    feed.pull()
    with Store.open(plan.project) as store:
        await_votes(_counter(round, store, feed), f"round {round.number}", plan.project, round.hours)
        load_preferences(replace(plan.recipe.data, preferences=str(plan.project)))  # refused before it is copied
        copy_project(store, copy)


def _counter(round: Round, store: Store, feed: VoteFeed) -> Callable[[], VoteCount]:
    plan, asked = round.plan, round.plan.recipe.feedback.votes

    def count() -> VoteCount:
        feed.pull()
        if not plan.config.sample:
            return VoteCount(given=store.counts().votes, needed=asked * round.number)
        given, open_slots = store.round_progress(round.version, store.settings.overlap)
        return VoteCount(given=given, needed=min(asked, given + open_slots))

    return count


def copy_project(store: Store, copy: Path) -> None:
    """Copy a project; the copy is whole or absent."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial_copy = copy.with_suffix(".partial")
    partial_copy.unlink(missing_ok=True)
    store.backup(partial_copy)
    partial_copy.rename(copy)


def _read_votes(round: Round, copy: Path) -> StepOutcome:
    before = round.plan.folder(round.number - 1) / VOTES
    return read_votes(copy, before if before.exists() else None)


def read_votes(copy: Path, before: Path | None) -> StepOutcome:
    """Votes and minutes of a copied project that an earlier copy does not have."""
    from rlhf.feedback.snapshot import read_snapshot
    from rlhf.serving.gate_costs import LONGEST_VOTE_SECONDS

    known = {vote.id for vote in read_snapshot(before).votes} if before else set()
    snapshot = read_snapshot(copy)
    new = [vote for vote in snapshot.votes if vote.id not in known]
    minutes = sum(min(vote.seconds or 0.0, LONGEST_VOTE_SECONDS) for vote in new) / 60
    result = {"votes": len(new), "raters": len({vote.rater for vote in new}), "digest": snapshot.digest}
    return StepOutcome(result=result, cost={"rater_minutes": minutes})


def _train(
    round: Round, steps: RoundSteps, step: Literal[CycleStep.REWARD, CycleStep.PPO], votes: str
) -> dict[str, Any]:
    stage: Literal["reward", "ppo"] = "reward" if step is CycleStep.REWARD else "ppo"
    folder = (round.folder / stage).absolute()

    def read() -> StepOutcome:
        from rlhf.tracking.run_folder import RunFolder

        summary = RunFolder(round.folder, stage).read_summary()
        numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
        return StepOutcome(result={"model": str(folder / "model"), "summary": numbers}, cost=_stage_cost(folder))

    return dict(
        steps.take(
            step,
            {"votes": votes, "recipe": _depends(round.recipe, stage)},
            partial(work.train_stage, round.plan.path, round.settings, stage),
            read,
        )
    )


def _depends(recipe: Recipe, stage: str) -> str:
    """Digest of the settings that a stage's result depends on."""
    from rlhf.config.load import recipe_digest
    from rlhf.config.stages import DEPENDS_ON

    return recipe_digest(recipe, DEPENDS_ON[stage])


def _stage_cost(folder: Path) -> dict[str, float]:
    """Seconds of a stage's steps, those before a kill included."""
    from rlhf.serving.gate_costs import read_costs
    from rlhf.serving.gate_spec import CostConfig

    return {"seconds": 3600 * read_costs(CostConfig(runs=(str(folder),)), 0)["gpu_hours"]}
