"""The third stage: PPO against the reward model."""

from __future__ import annotations

from collections.abc import Mapping

from actors.answering import answers_of, unseen
from actors.crew import Start, crew
from actors.session import Session
from actors.supervised import Summary, named, seconds
from actors.trainer import PPOTrainer
from actors.waiting import Moment
from rlhf.evaluation.comparison import write_answers
from rlhf.evaluation.progress import learned
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker

SHOWN = {
    "score": "objective/scores",
    "KL": "objective/kl",
    "entropy": "policy/entropy_avg",
    "length": "rollout/length_mean",
    "gap": "rollout/logprob_gap_mean",
}


def train_ppo(session: Session, run: RunFolder, tracker: Tracker) -> Summary:
    """Train the policy and leave it in ``run.model``; returns what is worth knowing at the end."""
    recipe = session.recipe
    data = session.prompts
    session.report_data(data, run)
    held_out = data.held_out[: recipe.evaluation.prompts]
    start = Start(
        policy=session.policy_start,
        critic=session.critic_start,
        reward_models=session.reward_models,
        max_length=session.longest,
        end_tokens=session.end_tokens(session.policy_start),
        prompts=[*data.train, *held_out],
        logs=run.logs,
    )
    asked = range(len(data.train), len(data.train) + len(held_out))
    with crew(recipe, start, session.device, session.gpus) as actors:
        trainer = PPOTrainer(actors, len(data.train))
        trainer.publish(version=0, step=0)
        before = answers_of(actors.engines, asked, start.policy, unseen)
        history: list[Mapping[str, float]] = []
        with session.console.stage("PPO", recipe.ppo.steps) as report:
            for step, result in trainer.run():
                tracker.log(step, result.metrics)
                tracker.samples(step, result.samples)
                history.append(result.metrics)
                report(step + 1, named(result.metrics, SHOWN))
        after = answers_of(actors.engines, asked, start.policy, unseen)
        with run.writing_model() as folder:
            actors.policy.ask("save", folder.resolve(), moment=Moment(phase="save"))
            session.tokenizer.save_pretrained(folder)
    texts = session.tokenizer.batch_decode([prompt.tokens for prompt in held_out], skip_special_tokens=True)
    write_answers(run.path, texts, before, after)
    return {**learned(history), **seconds(trainer.timer)}
