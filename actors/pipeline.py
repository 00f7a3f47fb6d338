"""A command's stages, one after another: what is finished is not done again, and at the end a table says what was learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from actors.comparison import Comparison, compare_models
from actors.ppo import train_ppo
from actors.reward_model import CEILING, SHORTER_WINS, train_reward
from actors.session import Session
from actors.sft import train_sft
from actors.supervised import Summary
from rlhf.algorithms.canaries import Limits
from rlhf.config.load import recipe_digest, to_yaml
from rlhf.tracking.jsonl import read_lines
from rlhf.tracking.plots import Marks, plot_pipeline
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker

Train = Callable[[Session, RunFolder, Tracker], Summary]

STAGES: Mapping[str, Train] = {"sft": train_sft, "reward": train_reward, "ppo": train_ppo}

DEPENDS_ON: Mapping[str, tuple[str, ...]] = {
    "sft": ("seed", "model", "data", "sft"),
    "reward": ("seed", "model", "data", "sft", "reward"),
    "ppo": ("seed", "model", "data", "sft", "reward", "ppo", "algorithm", "rollout"),
}
"""Sections of the recipe that a stage's result depends on: with others changed, a finished stage is still the same."""


def run_stage(session: Session, stage: str, train: Train | None = None) -> Summary:
    """Run one stage, or return what it found when it is finished already."""
    digest = recipe_digest(session.recipe, DEPENDS_ON[stage])
    run = RunFolder.create(session.root, stage, to_yaml(session.recipe), digest)
    if run.is_finished(digest):
        session.console.print(f"{stage}: finished before, in {run.path}")
        return run.read_summary()
    try:
        start = time.perf_counter()
        with Tracker(run, session.recipe) as tracker:
            summary = (train or STAGES[stage])(session, run, tracker)
            summary["seconds in all"] = time.perf_counter() - start
            tracker.close(summary)
        run.finish(summary)
    finally:
        run.release()
    session.console.summary(f"{stage} → {run.path}", summary)
    return summary


def run_pipeline(session: Session) -> None:
    """All stages of the recipe, the comparison of before and after, a picture, and the summary."""
    start = time.perf_counter()
    summaries = {stage: run_stage(session, stage) for stage in _stages(session)}
    before, after = session.policy_start, session.root / "ppo" / "model"
    folder = session.root / "evaluation"
    folder.mkdir(exist_ok=True)
    comparison = compare_models(session, before, after, folder) if session.recipe.evaluation.scorer else None
    picture = session.root / "curves.png"
    plot_pipeline(session.root, picture, marks(session, summaries, comparison))
    if comparison:
        for i in range(min(session.recipe.evaluation.show, len(comparison.prompts))):
            session.console.side_by_side(comparison.prompts[i], comparison.before[i], comparison.after[i])
        session.console.summary("Before and after PPO", comparison.summary(session.recipe.evaluation.scorer or ""))
    session.console.summary(f"{session.recipe.name}", _headline(session.root, summaries, picture, time.perf_counter() - start))


def _stages(session: Session) -> list[str]:
    """The stages that the recipe asks for: a model that is given is not trained."""
    recipe = session.recipe
    skipped = set()
    if recipe.ppo.policy_init is not None:
        skipped.add("sft")
    if recipe.ppo.reward_init is not None or recipe.reward.scorer is not None:
        skipped.add("reward")
    return [stage for stage in STAGES if stage not in skipped]


def marks(session: Session, summaries: Mapping[str, Summary], comparison: Comparison | None) -> Marks:
    """What the picture's curves are drawn beside."""
    recipe, reward = session.recipe, summaries.get("reward", {})
    first = next(iter(read_lines(session.root / "ppo" / "metrics.jsonl")), {})
    return Marks(
        accuracy_ceiling=_number(reward.get(CEILING)),
        accuracy_baseline=_number(reward.get(SHORTER_WINS)),
        baseline_name=SHORTER_WINS,
        sft_score=first.get("objective/scores"),
        max_kl=recipe.canaries.max_kl,
        logprob_gap_limit=Limits.of(recipe.canaries, recipe.model.dtype).gap,
        win_rate=comparison.win_rate if comparison else None,
        judge=recipe.evaluation.scorer or "",
    )


def _number(value: float | str | None) -> float | None:
    return value if isinstance(value, float) else None


def _headline(root: Path, summaries: Mapping[str, Summary], picture: Path, seconds: float) -> Summary:
    accuracy = summaries.get("reward", {}).get("held-out accuracy")
    ppo = summaries["ppo"]
    return {
        **({"reward model, held-out accuracy": accuracy} if accuracy is not None else {}),
        "PPO's gain in standard deviations": ppo["gain in standard deviations"],
        "sequence KL at the end, nats": ppo["sequence KL at the end, nats"],
        "seconds in all": seconds,
        "picture": str(picture),
        "metrics, samples, logs": str(root),
        "the policy": str(root / "ppo" / "model"),
    }
