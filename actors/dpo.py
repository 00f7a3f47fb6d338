"""The DPO stage: trains the policy on comparisons directly, without a reward model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ray

from actors.group import Group
from actors.reward_model import SHORTER_WINS
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
from rlhf.evaluation.accuracy import shorter_wins
from rlhf.metrics import labelled
from rlhf.roles.supervised_data import PairData, held_out_metrics, prompt_ids, response_logprobs
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker
from rlhf.types import Float32, Pair

ROLE = "rlhf.roles.dpo:DPORole"
SHOWN = {
    "held-out accuracy": "eval/accuracy",
    "95% interval, from": "eval/accuracy_ci_low",
    "95% interval, to": "eval/accuracy_ci_high",
    "held-out loss": "eval/loss",
    "held-out reward margin": "eval/rewards_margin",
}
BLOCK = 1024
"""Comparisons per call to the ranks, so that the deadline covers one block and not all data."""


def train_dpo(session: Session, run: RunFolder, tracker: Tracker) -> Summary:
    """Train the policy on comparisons and save it to ``run.model``; returns the stage's summary."""
    recipe, timer = session.recipe, PhaseTimer(spans=tracker.timeline)
    data = session.preferences
    session.report_data(data, run)
    ceiling = read_ceiling(session)  # a property of the labels, so that it applies to DPO too
    config = recipe.dpo
    batches = comparison_batches(data.train, config.batch_size, config.epochs, recipe.seed)
    check_schedule(recipe.dpo.optimizer, len(batches), "dpo.optimizer")
    with running_group(session, "policy", "dpo", run, tracker, ROLE, str(session.dpo_start), len(batches)) as group:
        examined = record_examinations(session, tracker, {"policy": group}, session.dpo_start)
        with timer("reference"):
            reference, held_out = (_logprobs(group, side, "reference") for side in (data.train, data.held_out))
        train = PairData.pack(data.train).sequences
        group.ask("set_data", ray.put(train), ray.put(reference), context=PhaseContext(phase="start"))
        loop = Loop(
            title="DPO",
            batches=batches,
            evaluate=lambda step: _evaluate(session, group, held_out, step),
            eval_every=recipe.dpo.eval_every,
            shown=labelled("train/loss", "rewards/margins", "eval/accuracy"),
        )
        latest = loop.run(session, group, tracker, timer)
        save_model(session, run, group, timer)
    shorter = shorter_wins(PairData.pack(data.held_out).sequences)
    baseline = {SHORTER_WINS: shorter, "held-out comparisons": float(len(data.held_out))}
    return {**select_metrics(latest, SHOWN), **ceiling, **baseline, **examined, **phase_seconds(timer)}


def _logprobs(group: Group, pairs: Sequence[Pair], phase: str, step: int | None = None) -> Float32:
    """(2K,) log-probabilities of whole responses under the current policy, chosen and rejected in turn."""
    blocks = [np.zeros(0, dtype=np.float32)]
    for begin in range(0, len(pairs), BLOCK):
        sequences = PairData.pack(pairs[begin : begin + BLOCK]).sequences
        parts = group.ask("logprobs", ray.put(sequences), context=PhaseContext(phase=phase, step=step))
        blocks.append(response_logprobs(parts, sequences))
    return np.concatenate(blocks)


def _evaluate(session: Session, group: Group, reference: Float32, step: int) -> dict[str, float]:
    if not len(reference):
        return {}
    pairs = session.preferences.held_out
    logprobs = _logprobs(group, pairs, "evaluate", step)
    return held_out_metrics(logprobs, reference, prompt_ids(pairs), session.recipe.dpo)
