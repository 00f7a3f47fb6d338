"""The SFT stage: supervised fine-tuning on demonstrations."""

from __future__ import annotations

import ray

from actors.group import Group
from actors.session import Session
from actors.supervised import Summary, record_examinations, running_group, save_model, select_metrics
from actors.supervised_loop import Training
from actors.waiting import PhaseContext
from rlhf.config.stages import check_schedule
from rlhf.data.order import epoch_batches
from rlhf.metrics import labelled
from rlhf.roles.block_result import join_tokens
from rlhf.roles.supervised_data import ExampleData
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker

SHOWN = labelled("train/loss", "eval/loss")


def train_sft(session: Session, run: RunFolder, tracker: Tracker) -> Summary:
    """Fine-tune the base model and save it to ``run.model``; returns the stage's summary."""
    recipe, timer = session.recipe, PhaseTimer(spans=tracker.timeline)
    data = session.demonstrations
    session.report_data(data, run)
    train, held_out = ExampleData.pack(data.train), ExampleData.pack(data.held_out)
    batches = epoch_batches(len(train), recipe.sft.batch_size, recipe.sft.epochs, recipe.seed)
    check_schedule(recipe.sft.optimizer, len(batches), "sft.optimizer")
    with running_group(
        session, "policy", "sft", run, tracker, "rlhf.roles.sft:SFTRole", str(session.base), len(batches)
    ) as group:
        examined = record_examinations(session, tracker, {"policy": group}, session.base)
        data_refs = ray.put(train), ray.put(held_out)
        training = Training(
            title="SFT",
            batches=batches,
            prepare=lambda: group.ask("set_data", *data_refs, context=PhaseContext(phase="start")),
            evaluate=lambda step: _held_out_loss(group, held_out, step),
            eval_every=recipe.sft.eval_every,
            finish=lambda: save_model(session, run, group, timer),
            shown=SHOWN,
        )
        done = training.run(session, run, group, tracker, timer)
    return {**select_metrics(done.latest, SHOWN), **examined, **done.costs}


def _held_out_loss(group: Group, held_out: ExampleData, step: int) -> dict[str, float]:
    if not len(held_out):
        return {}
    parts = group.ask("held_out_logprobs", context=PhaseContext(phase="evaluate", step=step))
    return {"eval/loss": -float(join_tokens(parts, held_out.sequences)[held_out.mask].mean())}
