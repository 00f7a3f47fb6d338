"""The DPO stage: trains the policy on comparisons (DPO, IPO, ORPO) or single answers (KTO), without a reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import ray

from actors.group import Group
from actors.reward_model import SHORTER_WINS, label_baseline
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
from rlhf.config.schema import DPOConfig
from rlhf.config.stages import check_schedule, is_unpaired
from rlhf.data.stages import comparison_batches
from rlhf.evaluation.accuracy import shorter_wins
from rlhf.metrics import labelled
from rlhf.roles.supervised_data import (
    LabelledData,
    PairData,
    held_out_kto_metrics,
    held_out_metrics,
    mismatched_pairs,
    prompt_ids,
    response_logprobs,
)
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker
from rlhf.types import Bool, Float32, Pair

DPO = "rlhf.roles.dpo:DPORole"
ROLES = {"dpo": DPO, "ipo": DPO, "orpo": DPO, "kto": "rlhf.roles.kto:KTORole"}
"""Loss → role."""
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
    """Train the policy on what people judged and save it to ``run.model``; returns the stage's summary."""
    recipe, timer = session.recipe, PhaseTimer(spans=tracker.timeline)
    session.report_data(session.judged("dpo"), run)
    config, role = recipe.dpo, ROLES[recipe.dpo.loss]
    data = _data(session)
    batches = comparison_batches(data.train, config.batch_size, config.epochs, recipe.seed)
    check_schedule(recipe.dpo.optimizer, len(batches), "dpo.optimizer")
    with running_group(session, "policy", "dpo", run, tracker, role, str(session.dpo_start), len(batches)) as group:
        examined = record_examinations(session, tracker, {"policy": group}, session.dpo_start)
        with timer("reference"):
            reference, held_out = (_reference(group, side, config) for side in (data.train, data.held_out))
        data_refs = ray.put(PairData.pack(data.train).sequences), ray.put(reference)
        training = Training(
            title=config.loss.upper(),
            batches=batches,
            prepare=lambda: _give_data(group, data_refs, data.labels),
            evaluate=lambda step: _evaluate(data, group, held_out, config, step),
            eval_every=recipe.dpo.eval_every,
            finish=lambda: save_model(session, run, group, timer),
            shown=labelled("train/loss", "rewards/margins", "eval/accuracy"),
        )
        done = training.run(session, run, group, tracker, timer)
    return {**select_metrics(done.latest, SHOWN), **data.baseline, **examined, **done.costs}


@dataclass(frozen=True, kw_only=True)
class _PolicyData:
    """Pairs of two responses, for KTO of a response and a mismatched one, and how held-out ones are evaluated."""

    train: Sequence[Pair]
    held_out: Sequence[Pair]
    metrics: Callable[[Float32, Float32], dict[str, float]]
    """Held-out metrics from log-probabilities of policy and reference, (2K,) each."""
    baseline: Summary
    labels: Bool | None = None
    """(K,) whether each training response is good, for KTO."""


def _data(session: Session) -> _PolicyData:
    return _labels(session) if is_unpaired(session.recipe, "dpo") else _comparisons(session)


def _comparisons(session: Session) -> _PolicyData:
    data, config = session.preferences, session.recipe.dpo
    ids = prompt_ids(data.held_out)
    shorter = shorter_wins(PairData.pack(data.held_out).sequences)
    ceiling = read_ceiling(session)  # a property of the labels, so that it applies to DPO too
    return _PolicyData(
        train=data.train,
        held_out=data.held_out,
        metrics=lambda logprobs, reference: held_out_metrics(logprobs, reference, ids, config),
        baseline={**ceiling, SHORTER_WINS: shorter, "held-out comparisons": float(len(data.held_out))},
    )


def _labels(session: Session) -> _PolicyData:
    data, config = session.labelled, session.recipe.dpo
    held_out = LabelledData.pack(data.held_out)
    return _PolicyData(
        train=mismatched_pairs(data.train, session.facts.context),
        held_out=mismatched_pairs(data.held_out, session.facts.context),
        metrics=lambda logprobs, reference: held_out_kto_metrics(logprobs, reference, held_out, config),
        baseline=label_baseline(held_out),
        labels=LabelledData.pack(data.train).is_good,
    )


def _give_data(group: Group, data_refs: Sequence[ray.ObjectRef], labels: Bool | None) -> None:
    """Give ranks that were just built the pairs with their reference log-probabilities, and for KTO the labels."""
    group.ask("set_data", *data_refs, context=PhaseContext(phase="start"))
    if labels is not None:
        group.ask("set_labels", labels, context=PhaseContext(phase="start"))


def _reference(group: Group, pairs: Sequence[Pair], config: DPOConfig) -> Float32:
    """(2K,) log-probabilities before the first update; 0, and not computed, if the loss has no reference."""
    if not config.has_reference:
        return np.zeros(2 * len(pairs), dtype=np.float32)
    return _logprobs(group, pairs, PhaseContext(phase="reference"))


def _logprobs(group: Group, pairs: Sequence[Pair], context: PhaseContext, is_mean: bool = False) -> Float32:
    """(2K,) log-probabilities of whole responses under the current policy, chosen and rejected in turn."""
    blocks = [np.zeros(0, dtype=np.float32)]
    for begin in range(0, len(pairs), BLOCK):
        sequences = PairData.pack(pairs[begin : begin + BLOCK]).sequences
        parts = group.ask("logprobs", ray.put(sequences), context=context)
        blocks.append(response_logprobs(parts, sequences, is_mean))
    return np.concatenate(blocks)


def _evaluate(data: _PolicyData, group: Group, reference: Float32, config: DPOConfig, step: int) -> dict[str, float]:
    if not len(reference):
        return {}
    context = PhaseContext(phase="evaluate", step=step)
    return data.metrics(_logprobs(group, data.held_out, context, not config.has_reference), reference)
