"""The report at the end of a pipeline: comparison before and after PPO, plot of all stages, and summary table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from actors.reward_model import SHORTER_WINS
from actors.session import Session
from actors.supervised import Summary
from rlhf.algorithms.canaries import Limits
from rlhf.evaluation.accuracy import CEILING
from rlhf.evaluation.comparison import ANSWERS, Comparison, compare_answers
from rlhf.evaluation.scorers import load_scorer
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.plots import Marks, plot_pipeline


def report_pipeline(session: Session, summaries: Mapping[str, Summary], seconds: float) -> None:
    """Compare answers, plot the curves and print the summary. ``seconds`` is the duration of all stages."""
    comparison = _compare(session)
    picture = session.root / "curves.png"
    plot_pipeline(session.root, picture, reference_lines(session, summaries, comparison))
    if comparison:
        _show(session, comparison)
    session.console.summary(session.recipe.name, _headline(session.root, summaries, picture, seconds))


def _compare(session: Session) -> Comparison | None:
    """Compare answers before and after PPO by the recipe's scorer; None without a scorer or held-out prompts."""
    scorer = session.recipe.evaluation.scorer
    stage = session.root / "ppo"
    if scorer is None or not (stage / ANSWERS).exists() or not read_lines(stage / ANSWERS):
        return None
    out = session.root / "evaluation"
    comparison = compare_answers(stage, load_scorer(scorer), out, session.recipe.seed)
    write_atomically(out / "summary.json", json.dumps(comparison.summary(), indent=2) + "\n")
    return comparison


def _show(session: Session, comparison: Comparison) -> None:
    for i in range(min(session.recipe.evaluation.show, len(comparison.prompts))):
        session.console.side_by_side(comparison.prompts[i], comparison.before[i], comparison.after[i])
    scorer = {"scorer": scorer_name(session.recipe.evaluation.scorer)}
    session.console.summary("Before and after PPO", scorer | comparison.summary())


def reference_lines(session: Session, summaries: Mapping[str, Summary], comparison: Comparison | None) -> Marks:
    """Reference values for the plot of the pipeline's curves."""
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
        scorer=scorer_name(recipe.evaluation.scorer),
    )


def scorer_name(scorer: str | None) -> str:
    """Name of a scorer for display: without folders."""
    return Path(scorer).name if scorer else ""


def _number(value: float | str | None) -> float | None:
    return value if isinstance(value, float) else None


def _headline(root: Path, summaries: Mapping[str, Summary], picture: Path, seconds: float) -> Summary:
    reward, ppo = summaries.get("reward", {}), summaries["ppo"]
    found = {
        "reward model, held-out accuracy": reward.get("held-out accuracy"),
        "PPO's gain in standard deviations": ppo.get("gain in standard deviations"),
        "sequence KL at the end, nats": ppo.get("sequence KL at the end, nats"),
    }
    return {
        **{name: value for name, value in found.items() if value is not None},
        "seconds of this command": seconds,
        "picture": str(picture),
        "metrics, samples, logs": str(root),
        "the policy": str(root / "ppo" / "model"),
        "all of it on one page": f"rlhf report {root}",
    }
