"""The PPO stage: trains the policy against the reward."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from actors.answering import answers_of
from actors.checkpoint_manager import open_checkpoints
from actors.early_stop import EarlyStopping, PolicyAccess, describe_outcome, held_out_prompts, summarise_early_stop
from actors.ppo_loop import PPOLoop
from actors.run_actors import RunActors, Start, start_actors
from actors.session import Session
from actors.supervised import Summary, record_examinations, recorded_rows, recorded_seconds, select_metrics
from actors.supervisor import STATUS, Supervisor
from actors.timeline import TimelineCollector
from actors.trainer import PPOTrainer
from actors.waiting import START, PhaseContext
from rlhf.config.schema import Recipe
from rlhf.evaluation.comparison import read_answers, write_answers
from rlhf.evaluation.progress import summarise_progress
from rlhf.metrics import labelled
from rlhf.run_state import RunState
from rlhf.storage.durable import write_atomically
from rlhf.storage.reading import damaged
from rlhf.storage.write_errors import writing
from rlhf.tracking.plots import plot_overoptimisation
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker

SHOWN = labelled(
    *("objective/scores", "objective/kl", "policy/entropy_avg", "rollout/length_mean", "rollout/logprob_gap_mean"),
    "holdout/score",
)
"""Metrics on the progress line."""


def train_ppo(session: Session, run: RunFolder, tracker: Tracker) -> Summary:
    """Train the policy and save it to ``run.model``; returns the stage's summary."""
    recipe, began = session.recipe, time.perf_counter()
    data = session.prompts
    session.report_data(data, run)
    if run.resumes and session.changes_of_data("ppo"):
        for stored in (run.before, run.after):  # stored answers belong to the prompts of the earlier data
            stored.unlink(missing_ok=True)
    compared = data.held_out[: _count_compared(run, recipe, len(data.held_out))]
    if len(compared) == len(data.held_out) < (asked := recipe.evaluation.prompts):
        session.console.print(f"compared before and after: {len(compared)} of {asked} prompts, all that are held out")
    held_out = held_out_prompts(recipe.early_stop, data.held_out)
    start = Start(
        policy=session.policy_start,
        critic=session.critic_start,
        reward_models=session.reward_models,
        max_length=session.longest,
        end_tokens=session.end_tokens(session.policy_start),
        prompts=[*data.train, *max(compared, held_out, key=len)],  # the shorter list is a prefix of the longer one
        logs=run.logs,
        day=session.day,
        held_out_model=session.held_out_model,
        held_out=data.held_out,
    )
    timeline = TimelineCollector(tracker.timeline, tracker.spans)
    supervisor = Supervisor(recipe, tracker.event, session.check, run.path / STATUS, timeline, session.console.notice)
    supervisor.steps = recipe.ppo.steps
    begun = timeline.spans.clock()
    with start_actors(recipe, start, session.device, session.gpus, supervisor) as actors, supervisor.on_timeline():
        timeline.spans.add("start", begun)
        examined = record_examinations(session, tracker, actors.networks, session.policy_start)
        trainer = PPOTrainer(actors, len(data.train))
        policy = _policy(session, actors, range(len(data.train), len(data.train) + len(compared)))
        held_out_indices = range(len(data.train), len(data.train) + len(held_out))
        early_stop = (
            EarlyStopping(recipe.early_stop, actors, trainer.timer, held_out_indices, held_out, policy, run, tracker)
            if recipe.early_stop
            else None
        )
        loop = PPOLoop(
            trainer,
            *open_checkpoints(session, run, tracker, actors, trainer.timer, RunState.start(recipe)),
            early_stop,
        )
        loop.begin()
        before = _answers_before(run, loop, policy)
        was_over = loop.is_over
        trainer.timer.add(START, began)
        _run_steps(session, tracker, loop)
        after = _answers_after(session, run, loop, policy, early_stop, was_over)
        if len(after) != len(before):
            raise damaged(run.after, f"holds {len(after)} answers to {len(before)} prompts", _fix(run.after))
    texts = [session.tokenizer.decode(prompt.tokens, skip_special_tokens=True) for prompt in compared]
    write_answers(run.path, texts, before, after)
    history = recorded_rows(run)
    stopping: Summary = {}
    if early_stop:
        session.console.print(describe_outcome(loop.state, recipe.ppo.steps))
        plot_overoptimisation(run.metrics, run.path / "overoptimisation.png")
        stopping = summarise_early_stop(loop.state, recipe.ppo.steps)
    return {**summarise_progress(history), **stopping, **examined, **supervisor.summary(), **recorded_seconds(history)}


def _count_compared(run: RunFolder, recipe: Recipe, held_out: int) -> int:
    """Number of prompts answered before and after PPO: as many as a resumed run has stored, otherwise
    ``evaluation.prompts``."""
    if not (run.resumes and run.before.exists()):
        return recipe.evaluation.prompts
    answers = len(_read_answers(run.before))
    if answers > held_out:
        raise damaged(run.before, f"holds {answers} answers to {held_out} held-out prompts", _fix(run.before))
    return answers


def _answers_before(run: RunFolder, loop: PPOLoop, policy: PolicyAccess) -> list[str]:
    """Answers of the policy before the first step; a resumed run reads those that its first command stored."""
    stored = run.before
    if not (run.resumes and stored.exists()):
        write_atomically(stored, json.dumps(loop.retry(policy.answers), ensure_ascii=False))
    return _read_answers(stored)


def _policy(session: Session, actors: RunActors, compared: Sequence[int]) -> PolicyAccess:
    """Access to the current policy: ranks save it, engines answer with it."""

    def save(folder: Path) -> None:
        context = PhaseContext(phase="save")
        actors.supervisor.enter_phase(context)
        actors.save(folder.resolve(), context)
        with writing(folder / "tokenizer.json"):
            session.tokenizer.save_pretrained(folder)

    def answers() -> list[str]:
        actors.supervisor.enter_phase(PhaseContext(phase="answers"))
        with session.console.stage("Answering held-out prompts", len(compared)) as report:
            return answers_of(actors.engines, compared, start, report)

    start = session.policy_start
    return PolicyAccess(save=save, answers=answers)


def _run_steps(session: Session, tracker: Tracker, loop: PPOLoop) -> None:
    """Run all steps; record each and show it on the console."""
    with session.console.stage("PPO", session.recipe.ppo.steps) as report:
        for step, result in loop.run():
            tracker.log(step, result.metrics)
            tracker.samples(step, result.samples)
            tracker.histograms(step, result.histograms)
            report(step + 1, select_metrics(result.metrics, SHOWN))


def _answers_after(
    session: Session,
    run: RunFolder,
    loop: PPOLoop,
    policy: PolicyAccess,
    early_stop: EarlyStopping | None,
    was_over: bool,
) -> list[str]:
    """Save the run's model, and return its answers for the comparison.

    Answers are stored before the model: a command that finds the model then finds them too.
    """
    stored = run.after
    if not (was_over and stored.exists() and run.model.exists()):
        answers = loop.retry(lambda: early_stop.answers(loop.state) if early_stop else policy.answers())
        write_atomically(stored, json.dumps(answers, ensure_ascii=False))
        session.console.notice("saving the model")
        loop.retry(lambda: early_stop.save_final_model(loop.state) if early_stop else _save(policy, run))
    return _read_answers(stored)


def _read_answers(stored: Path) -> list[str]:
    return read_answers(stored, _fix(stored))


def _fix(stored: Path) -> str:
    return f"restore the file, or delete {stored.parent} to train the ppo stage again"


def _save(policy: PolicyAccess, run: RunFolder) -> None:
    with run.writing_model() as folder:
        policy.save(folder)
