"""The third stage: PPO against the reward model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from actors.answering import answers_of, unseen
from actors.crew import Crew, Start, crew
from actors.examined import record_examinations
from actors.keeper import Keeper, Kept
from actors.session import Session
from actors.supervised import Summary, named, seconds_of
from actors.supervisor import STATUS, Supervisor
from actors.survival import Survivor
from actors.timeline import Timeline
from actors.trainer import PPOTrainer
from actors.waiting import Moment
from actors.watch import Policy, Watcher, judged_prompts, outcome, watch_summary
from rlhf.checkpoints.store import CheckpointStore
from rlhf.config.load import to_yaml
from rlhf.config.schema import Recipe
from rlhf.evaluation.comparison import write_answers
from rlhf.evaluation.progress import learned
from rlhf.run_state import RunState
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.plots import plot_overoptimisation
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker

BEFORE, AFTER = "before.json", "after.json"
"""Files in the stage's folder: where the run is now, and the answers of the policy before and after all steps."""
SHOWN = {
    "score": "objective/scores",
    "KL": "objective/kl",
    "entropy": "policy/entropy_avg",
    "length": "rollout/length_mean",
    "gap": "rollout/logprob_gap_mean",
    "held out": "holdout/score",
}


def train_ppo(session: Session, run: RunFolder, tracker: Tracker) -> Summary:
    """Train the policy and leave it in ``run.model``; returns what is worth knowing at the end."""
    recipe = session.recipe
    data = session.prompts
    session.report_data(data, run)
    if run.resumes and session.changes_of_data("ppo"):
        _forget_answers(run)
    compared = data.held_out[: _compared(run, recipe)]
    judged = judged_prompts(recipe.early_stop, data.held_out)
    start = Start(
        policy=session.policy_start,
        critic=session.critic_start,
        reward_models=session.reward_models,
        max_length=session.longest,
        end_tokens=session.end_tokens(session.policy_start),
        prompts=[*data.train, *max(compared, judged, key=len)],  # the shorter is the beginning of the longer
        logs=run.logs,
        day=session.day,
        judge_model=session.judge_model,
        held_out=data.held_out,
    )
    timeline = Timeline(tracker.timeline, tracker.spans)
    supervisor = Supervisor(recipe, tracker.event, session.check, run.path / STATUS, timeline)
    supervisor.steps = recipe.ppo.steps
    begun = timeline.spans.clock()
    with crew(recipe, start, session.device, session.gpus, supervisor) as actors, supervisor.on_timeline():
        timeline.spans.add("start", begun)
        examined = record_examinations(session, tracker, actors.networks, session.policy_start)
        trainer = PPOTrainer(actors, len(data.train))
        kept = recipe.checkpoint
        store = CheckpointStore(run.checkpoints, kept.keep_last, kept.keep_best, session.files_of("ppo"))
        keeper = Keeper(actors, run, store, to_yaml(recipe), tracker, trainer.timer)
        survivor = Survivor(trainer, keeper, _kept(session, keeper, supervisor, tracker))
        policy = _policy(session, actors, range(len(data.train), len(data.train) + len(compared)))
        survivor.begin()
        before = _before(run, survivor, policy)
        asked = range(len(data.train), len(data.train) + len(judged))
        watcher = (
            Watcher(recipe.early_stop, actors, trainer.timer, asked, judged, policy, run, tracker)
            if recipe.early_stop
            else None
        )
        was_over = survivor.is_over
        _steps(session, tracker, survivor, watcher)
        after = _after(run, survivor, policy, watcher, was_over)
    texts = [session.tokenizer.decode(prompt.tokens, skip_special_tokens=True) for prompt in compared]
    write_answers(run.path, texts, before, after)
    history = [{name: value for name, value in row.items() if value is not None} for row in read_lines(run.metrics)]
    watched = _tell(session, run, survivor.state) if watcher else {}
    return {**learned(history), **watched, **examined, **supervisor.summary(), **seconds_of(history)}


def _kept(session: Session, keeper: Keeper, supervisor: Supervisor, tracker: Tracker) -> Kept:
    """Where the run begins: at its last checkpoint, which policy and critic are given, or at the beginning."""
    checkpoint = session.checkpoint("ppo")
    if checkpoint is None:
        return RunState.start(session.recipe), ()
    state, ahead = keeper.load(checkpoint, Moment(phase="load"))
    supervisor.resume(state.goodput, keeper.run.path / STATUS)
    tracker.event("resumed", step=state.step, path=str(checkpoint.path))
    return state, ahead


def _forget_answers(run: RunFolder) -> None:
    """Other prompts are compared now: answers to the old ones are no measure of theirs."""
    for name in (BEFORE, AFTER):
        (run.path / name).unlink(missing_ok=True)


def _compared(run: RunFolder, recipe: Recipe) -> int:
    """How many prompts are answered before and after: as many as an earlier command of the run has had answered."""
    kept = run.path / BEFORE
    return (
        len(json.loads(kept.read_text(encoding="utf-8")))
        if run.resumes and kept.exists()
        else recipe.evaluation.prompts
    )


def _before(run: RunFolder, survivor: Survivor, policy: Policy) -> list[str]:
    """The answers of the policy before the first step, which only the first command of a run can have."""
    kept = run.path / BEFORE
    if not (run.resumes and kept.exists()):
        write_atomically(kept, json.dumps(survivor.surely(policy.answers), ensure_ascii=False))
    answers: list[str] = json.loads(kept.read_text(encoding="utf-8"))
    return answers


def _policy(session: Session, actors: Crew, compared: Sequence[int]) -> Policy:
    """What can be had of the policy, which the engines hold too."""

    def save(folder: Path) -> None:
        actors.save(folder.resolve(), Moment(phase="save"))
        session.tokenizer.save_pretrained(folder)

    start = session.policy_start
    return Policy(save=save, answers=lambda: answers_of(actors.engines, compared, start, unseen))


def _steps(session: Session, tracker: Tracker, survivor: Survivor, watcher: Watcher | None) -> None:
    """Go through the steps, recording and showing each."""
    with session.console.stage("PPO", session.recipe.ppo.steps) as report:
        for step, result in survivor.run(watcher):
            tracker.log(step, result.metrics)
            tracker.samples(step, result.samples)
            tracker.histograms(step, result.histograms)
            report(step + 1, named(result.metrics, SHOWN))


def _after(run: RunFolder, survivor: Survivor, policy: Policy, watcher: Watcher | None, was_over: bool) -> list[str]:
    """Leave the run its model; returns that policy's answers for the comparison. The answers are kept first: once the
    model is in its place, there may be no other way to them. A command that made steps has a model of its own."""
    kept = run.path / AFTER
    if not (was_over and kept.exists() and run.model.exists()):
        answers = survivor.surely(lambda: watcher.answers(survivor.state) if watcher else policy.answers())
        write_atomically(kept, json.dumps(answers, ensure_ascii=False))
        survivor.surely(lambda: watcher.leave_model(survivor.state) if watcher else _save(policy, run))
    after: list[str] = json.loads(kept.read_text(encoding="utf-8"))
    return after


def _save(policy: Policy, run: RunFolder) -> None:
    with run.writing_model() as folder:
        policy.save(folder)


def _tell(session: Session, run: RunFolder, state: RunState) -> Summary:
    """Say how the watch ended, and draw what it saw."""
    session.console.print(outcome(state, session.recipe.ppo.steps))
    plot_overoptimisation(run.metrics, run.path / "overoptimisation.png")
    return watch_summary(state, session.recipe.ppo.steps)
