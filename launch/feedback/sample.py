"""``rlhf feedback sample``: samples answers from a model, and adds pairs of them to a project as one round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.answering_model import answering_model
from launch.options import Overrides, RecipePath
from launch.run import Work, run_work
from rlhf.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from actors.answering import SampledAnswers
    from actors.session import Session
    from rlhf.config.schema import Recipe
    from rlhf.feedback.records import Item
    from rlhf.records import PromptRow
    from rlhf.types import Prompt

PURPOSE = "sample answers from a model and add pairs of them to a project, as one round"
EXAMPLE = "rlhf feedback sample recipes/quickstart.yaml feedback.project=feedback.db feedback.answers=4"
Round = Annotated[str, typer.Option(metavar="NAME", help="name of the round; by default round-1, round-2, ...")]


def run(recipe: RecipePath, overrides: Overrides, round: Round = "") -> None:
    """Sample one round."""
    run_work("generate", recipe, overrides, partial(load, name=round), log="feedback-sample")


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """What a round asks, checked before an engine starts."""

    session: Session
    project: Path
    name: str
    policy: Path
    rows: tuple[PromptRow, ...]
    prompts: tuple[Prompt, ...]
    """A prompt's ``id`` is its index."""


def load(session: Session, name: str = "") -> Work:
    """Read and check everything; returns the function that samples.

    Raises:
        UserError: the project, the prompts or the model cannot be used, or the project has a round of this name.
    """
    return partial(sample, plan_round(session, name))


def plan_round(session: Session, name: str = "") -> RoundPlan:
    """Choose a round's prompts and tokenise them. Raises as ``load``."""
    from rlhf.data.formats import load_prompts
    from rlhf.data.tokenise import tokenise_prompts
    from rlhf.feedback.records import Purpose
    from rlhf.feedback.rounds import choose_prompts, next_round
    from rlhf.feedback.store import Store

    recipe, config = session.recipe, session.recipe.feedback
    project = project_path(recipe)
    with Store.open(project) as store:
        items = store.items(Purpose.LABEL)
    name = name or next_round(items)
    if any(item.round == name for item in items):
        raise UserError(
            f"{project} has a round {name!r}",
            "a round is sampled once",
            "name another round, or leave --round out for the next number",
        )
    policy = answering_model(session, "feedback.policy", recipe.feedback.policy, "raters would compare noise")
    _check_ensemble(session)
    loaded = load_prompts(recipe.data)
    chosen = choose_prompts([row.prompt for row in loaded.rows], items, config.prompts, recipe.seed)
    rows = [loaded.rows[i] for i in chosen]
    tokenised = tokenise_prompts(rows, session.chat, recipe.data, session.facts, recipe.rollout.max_response_length)
    kept = tuple(rows[i] for i in tokenised.row_of_item)
    prompts = tuple(replace(prompt, id=i) for i, prompt in enumerate(tokenised.items))
    return RoundPlan(session=session, project=project, name=name, policy=policy, rows=kept, prompts=prompts)


def project_path(recipe: Recipe) -> Path:
    """The file of ``feedback.project``.

    Raises:
        UserError: it does not exist.
    """
    path = recipe.feedback.project
    if not Path(path).expanduser().exists():
        raise UserError(
            f"feedback.project = {path!r}: there is no such file",
            "a round adds its pairs to a project",
            f"name your project, feedback.project=votes.db, or make one: rlhf feedback init {path}",
        )
    return Path(path).expanduser()


def _check_ensemble(session: Session) -> None:
    """Check the folders of the reward models that select pairs."""
    from rlhf.models.classifier import inspect_classifier

    for folder in session.recipe.feedback.ensemble:
        found = inspect_classifier(session.verified(Path(folder).expanduser()), session.recipe.model, own=True)
        found.require_whole("feedback.ensemble")


def sample(plan: RoundPlan) -> str:
    """Sample the round's answers, add its pairs to the project, and print a summary; returns the round's name."""
    from actors.answering import sample_answers
    from rlhf.feedback.rounds import first_seed
    from rlhf.feedback.store import Store

    session, config = plan.session, plan.session.recipe.feedback
    logs, seed = session.root / "logs", first_seed(session.recipe.seed, plan.name)
    answers = sample_answers(session, plan.policy, plan.prompts, config.answers, seed, logs)
    pairs, summary = _select_pairs(plan, answers, logs)
    with Store.open(plan.project) as store:
        added = store.add_items([_item(plan, answers, *pair) for pair in pairs])
    session.console.summary(
        f"{plan.name} → {plan.project}",
        {
            "model": str(plan.policy),
            "prompts": len(plan.prompts),
            "answers": len(answers.texts),
            **summary,
            "pairs added": added,
        },
    )
    return plan.name


def _select_pairs(
    plan: RoundPlan, answers: SampledAnswers, logs: Path
) -> tuple[list[tuple[int, int]], dict[str, float | str]]:
    """Pairs of indices of answers, and lines for the summary."""
    import numpy as np

    from rlhf.feedback.selection import candidate_pairs, disagreement, select

    config = plan.session.recipe.feedback
    found = candidate_pairs(answers.rollouts.prompt_ids.tolist(), answers.texts)
    lines: dict[str, float | str] = {"identical pairs dropped": found.identical, "selection": config.selection}
    if config.selection == "random":
        priority = np.random.default_rng(answers.rollouts.seeds[:1]).random(len(found.pairs))
    else:
        scores = _ensemble_scores(plan, answers, logs)
        priority = disagreement(found.pairs, scores)
    chosen = select(found.pairs, priority, config.pairs)
    if config.selection == "uncertainty" and chosen:
        ours = disagreement(chosen, scores).mean()
        lines["disagreement, chosen / all candidates"] = f"{ours:.4f} / {priority.mean():.4f}"
    return [(pair.first, pair.second) for pair in chosen], lines


def _ensemble_scores(plan: RoundPlan, answers: SampledAnswers, logs: Path) -> np.ndarray:
    """(M, A) scores of all answers by the ensemble's models, one after another."""
    import numpy as np

    from actors.answer_scoring import score_answers
    from rlhf.config.schema import RewardSourceConfig

    folders = plan.session.recipe.feedback.ensemble
    return np.stack(
        [
            score_answers(
                plan.session,
                RewardSourceConfig(model=folder),
                answers.rollouts,
                plan.prompts,
                logs,
                f"Scores {i + 1}/{len(folders)}",
            )
            for i, folder in enumerate(folders)
        ]
    )


def _item(plan: RoundPlan, answers: SampledAnswers, first: int, second: int) -> Item:
    from launch.generate import sampling_of
    from rlhf.feedback.items import make_item
    from rlhf.feedback.records import Answer

    sampling = sampling_of(plan.session.recipe.rollout)

    def answer(i: int) -> Answer:
        seed = int(answers.rollouts.seeds[i])
        return Answer(text=answers.texts[i], policy=str(plan.policy), seed=seed, sampling=sampling)

    prompt = plan.rows[int(answers.rollouts.prompt_ids[first])].prompt
    return make_item(prompt, (answer(first), answer(second)), round=plan.name)
