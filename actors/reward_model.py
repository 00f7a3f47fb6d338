"""The reward-model stage: trains a reward model on comparisons, or on single answers that were good or bad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ray

from actors.group import Group
from actors.session import Session
from actors.supervised import (
    Summary,
    read_ceiling,
    record_examinations,
    running_group,
    save_model,
    select_metrics,
)
from actors.supervised_loop import Training
from actors.waiting import PhaseContext
from rlhf.config.stages import check_schedule, is_unpaired
from rlhf.data.stages import comparison_batches
from rlhf.errors import NonFiniteError
from rlhf.evaluation.accuracy import label_accuracy, most_frequent_label, preference_accuracy, shorter_wins
from rlhf.metrics import labelled
from rlhf.roles.block_result import join_samples
from rlhf.roles.supervised_data import ExampleData, LabelledData, PairData
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
LABELLED_ROLE = "rlhf.roles.labelled_reward:LabelledRewardRole"
SHORTER_WINS = "accuracy of the rule 'the shorter reply wins'"
NORMALISED_ON = 1000
"""Largest number of demonstrations over which the reward is shifted to a mean of 0."""


def train_reward(session: Session, run: RunFolder, tracker: Tracker) -> Summary:
    """Train a reward model and save it to ``run.model``; returns the stage's summary."""
    recipe, timer = session.recipe, PhaseTimer(spans=tracker.timeline)
    judged = session.judged("reward")
    session.report_data(judged, run)
    data = _labels(session) if is_unpaired(recipe, "reward") else _comparisons(session)
    config = recipe.reward
    batches = comparison_batches(judged.train, config.batch_size, config.epochs, recipe.seed)
    check_schedule(recipe.reward.optimizer, len(batches), "reward.optimizer")
    start = session.model_of("sft", recipe.reward.init, session.base)
    with running_group(session, "reward", "reward", run, tracker, data.role, str(start), len(batches)) as group:
        examined = record_examinations(session, tracker, {"reward": group}, session.base)
        train = ray.put(data.train)
        training = Training(
            title="Reward model",
            batches=batches,
            prepare=lambda: group.ask(data.method, train, context=PhaseContext(phase="start")),
            evaluate=lambda step: data.evaluate(group, step),
            eval_every=recipe.reward.eval_every,
            finish=lambda: _save_normalised(session, run, group, timer),
            shown=labelled("train/loss", "eval/accuracy"),
        )
        done = training.run(session, run, group, tracker, timer)
    return {**select_metrics(done.latest, SHOWN), **data.baseline, **done.results, **examined, **done.costs}


def _save_normalised(session: Session, run: RunFolder, group: Group, timer: PhaseTimer) -> Summary:
    """Save the model with the shift that makes demonstrations score 0 on average; returns their scores without it."""
    with timer("normalise"):
        mean, spread = _demonstration_scores(group, session)
    save_model(session, run, group, timer, "save_shifted", -mean)
    return {"demonstrations' raw score (shifted to 0)": mean, "demonstrations' standard deviation": spread}


@dataclass(frozen=True, kw_only=True)
class _RewardData:
    """Packed training data, the role that trains on it, and how held-out data is evaluated."""

    role: str
    method: str
    """The role's method that receives ``train``."""
    train: PairData | LabelledData
    evaluate: Callable[[Group, int], dict[str, float]]
    """Held-out metrics at a step."""
    baseline: Summary


def _comparisons(session: Session) -> _RewardData:
    data = session.preferences
    held_out = PairData.pack(data.held_out)
    shorter = shorter_wins(held_out.sequences)
    return _RewardData(
        role=ROLE,
        method="set_data",
        train=PairData.pack(data.train),
        evaluate=lambda group, step: _held_out_accuracy(group, held_out, step),
        baseline={**read_ceiling(session), SHORTER_WINS: shorter, "held-out comparisons": float(len(data.held_out))},
    )


def _labels(session: Session) -> _RewardData:
    data = session.labelled
    held_out = LabelledData.pack(data.held_out)
    return _RewardData(
        role=LABELLED_ROLE,
        method="set_labelled",
        train=LabelledData.pack(data.train),
        evaluate=lambda group, step: _held_out_label_accuracy(group, held_out, step),
        baseline=label_baseline(held_out),
    )


def label_baseline(held_out: LabelledData) -> Summary:
    """The accuracy without a model, and the number of held-out labels."""
    frequent = most_frequent_label(held_out.is_good)
    return {"'always the more frequent label'": frequent, "held-out labels": float(len(held_out.is_good))}


def _held_out_label_accuracy(group: Group, held_out: LabelledData, step: int) -> dict[str, float]:
    if not len(held_out.is_good):
        return {}
    return label_accuracy(_rewards(group, held_out.sequences, step), held_out.is_good, held_out.prompt_ids)


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
        raise NonFiniteError(f"numbers that are NaN or infinite, in rewards of demonstrations: {bad} of {len(scores)}")
    return float(scores.mean(dtype=np.float64)), float(scores.std(dtype=np.float64))
