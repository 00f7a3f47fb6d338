"""The reward-model stage: trains a reward model on comparisons."""

from __future__ import annotations

import numpy as np
import ray

from actors.group import Group
from actors.session import Session
from actors.supervised import (
    Loop,
    Summary,
    phase_seconds,
    read_ceiling,
    record_examinations,
    running_group,
    save_model,
    select_metrics,
)
from actors.waiting import PhaseContext
from rlhf.config.stages import check_schedule
from rlhf.data.stages import comparison_batches
from rlhf.errors import MachineryError
from rlhf.evaluation.accuracy import preference_accuracy, shorter_wins
from rlhf.metrics import labelled
from rlhf.roles.block_result import join_samples
from rlhf.roles.supervised_data import ExampleData, PairData
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker
from rlhf.types import Float32, Sequences

SHOWN = {
    "held-out accuracy": "eval/accuracy",
    "95% interval, from": "eval/accuracy_ci_low",
    "95% interval, to": "eval/accuracy_ci_high",
    "held-out loss": "eval/loss",
}
ROLE = "rlhf.roles.preference:RewardTrainingRole"
SHORTER_WINS = "'the shorter reply wins'"
NORMALISED_ON = 1000
"""Largest number of demonstrations over which the reward is shifted to a mean of 0."""


def train_reward(session: Session, run: RunFolder, tracker: Tracker) -> Summary:
    """Train a reward model and save it to ``run.model``; returns the stage's summary."""
    recipe, timer = session.recipe, PhaseTimer(spans=tracker.timeline)
    data = session.preferences
    session.report_data(data, run)
    ceiling = read_ceiling(session)
    train, held_out = PairData.pack(data.train), PairData.pack(data.held_out)
    config = recipe.reward
    batches = comparison_batches(data.train, config.batch_size, config.epochs, recipe.seed)
    check_schedule(recipe.reward.optimizer, len(batches), "reward.optimizer")
    start = session.model_of("sft", recipe.reward.init, session.base)
    with running_group(session, "reward", "reward", run, tracker, ROLE, str(start), len(batches)) as group:
        examined = record_examinations(session, tracker, {"reward": group}, session.base)
        group.ask("set_data", ray.put(train), context=PhaseContext(phase="start"))
        loop = Loop(
            title="Reward model",
            batches=batches,
            evaluate=lambda step: _held_out_accuracy(group, held_out, step),
            eval_every=recipe.reward.eval_every,
            shown=labelled("train/loss", "eval/accuracy"),
        )
        latest = loop.run(session, group, tracker, timer)
        with timer("normalise"):
            mean, spread = _demonstration_scores(group, session)
        save_model(session, run, group, timer, "save_shifted", -mean)
    baseline = {SHORTER_WINS: shorter_wins(held_out.sequences), "held-out comparisons": float(len(data.held_out))}
    scores = {"demonstrations' raw score (shifted to 0)": mean, "demonstrations' standard deviation": spread}
    return {**select_metrics(latest, SHOWN), **ceiling, **baseline, **scores, **examined, **phase_seconds(timer)}


def _held_out_accuracy(group: Group, held_out: PairData, step: int) -> dict[str, float]:
    if not len(held_out.margins):
        return {}
    return preference_accuracy(_rewards(group, held_out.sequences, step), held_out.margins, held_out.prompt_ids)


def _rewards(group: Group, sequences: Sequences, step: int) -> Float32:
    parts = group.ask("rewards", ray.put(sequences), context=PhaseContext(phase="evaluate", step=step))
    return join_samples(parts, len(sequences))


def _demonstration_scores(group: Group, session: Session) -> tuple[float, float]:
    """Mean and standard deviation of the raw reward of demonstrations."""
    scores = _rewards(group, ExampleData.pack(session.demonstrations.train[:NORMALISED_ON]).sequences, 0)
    bad = int(np.count_nonzero(~np.isfinite(scores)))
    if bad:
        raise MachineryError(f"numbers that are NaN or infinite, in rewards of demonstrations: {bad} of {len(scores)}")
    return float(scores.mean(dtype=np.float64)), float(scores.std(dtype=np.float64))
