"""The third stage: PPO against the reward model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from actors.answering import answers_of, unseen
from actors.crew import Crew, Start, crew
from actors.session import Session
from actors.supervised import Summary, named, seconds
from actors.trainer import PPOTrainer
from actors.waiting import Moment
from actors.watch import Policy, Watcher, judged_prompts
from rlhf.evaluation.comparison import write_answers
from rlhf.evaluation.progress import learned
from rlhf.roles.assemble import BatchReport
from rlhf.tracking.plots import plot_overoptimisation
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker

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
    compared = data.held_out[: recipe.evaluation.prompts]
    judged = judged_prompts(recipe.early_stop, data.held_out)
    start = Start(
        policy=session.policy_start,
        critic=session.critic_start,
        reward_models=session.reward_models,
        max_length=session.longest,
        end_tokens=session.end_tokens(session.policy_start),
        prompts=[*data.train, *max(compared, judged, key=len)],  # the shorter is the beginning of the longer
        logs=run.logs,
        judge_model=session.judge_model,
        held_out=data.held_out,
    )
    with crew(recipe, start, session.device, session.gpus) as actors:
        trainer = PPOTrainer(actors, len(data.train))
        policy = _policy(session, actors, range(len(data.train), len(data.train) + len(compared)))
        trainer.publish(version=0, step=0)
        before = policy.answers()
        asked = range(len(data.train), len(data.train) + len(judged))
        watcher = Watcher(recipe.early_stop, trainer, asked, policy, run, tracker) if recipe.early_stop else None
        history = _steps(session, tracker, watcher.run_steps() if watcher else trainer.run())
        after = watcher.finish() if watcher else _finish(policy, run)
    texts = [session.tokenizer.decode(prompt.tokens, skip_special_tokens=True) for prompt in compared]
    write_answers(run.path, texts, before, after)
    return {**learned(history), **(_tell(session, run, watcher) if watcher else {}), **seconds(trainer.timer)}


def _policy(session: Session, actors: Crew, compared: Sequence[int]) -> Policy:
    """What can be had of the policy, which the engines hold too."""

    def save(folder: Path) -> None:
        actors.policy.ask("save", folder.resolve(), moment=Moment(phase="save"))
        session.tokenizer.save_pretrained(folder)

    start = session.policy_start
    return Policy(save=save, answers=lambda: answers_of(actors.engines, compared, start, unseen))


def _steps(session: Session, tracker: Tracker, steps: Iterator[tuple[int, BatchReport]]) -> list[Mapping[str, float]]:
    """Go through the steps, recording and showing each; returns their metrics."""
    history: list[Mapping[str, float]] = []
    with session.console.stage("PPO", session.recipe.ppo.steps) as report:
        for step, result in steps:
            tracker.log(step, result.metrics)
            tracker.samples(step, result.samples)
            history.append(result.metrics)
            report(step + 1, named(result.metrics, SHOWN))
    return history


def _finish(policy: Policy, run: RunFolder) -> list[str]:
    """Leave the last policy as the run's model; returns its answers for the comparison."""
    answers = policy.answers()
    with run.writing_model() as folder:
        policy.save(folder)
    return answers


def _tell(session: Session, run: RunFolder, watcher: Watcher) -> Summary:
    """Say how the watch ended, and draw what it saw."""
    session.console.print(watcher.outcome())
    plot_overoptimisation(run.metrics, run.path / "overoptimisation.png")
    return watcher.summary()
