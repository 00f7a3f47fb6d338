"""The actors of a small PPO run, held by the test itself, with a reward that any text has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from actors.cluster import cluster
from actors.run_actors import POLICY, Start, start_actors
from actors.session import Session
from actors.supervisor import Supervisor
from actors.trainer import PPOTrainer
from actors.worker import Builder
from rlhf.config.load import load_recipe
from rlhf.tracking.console import Console
from rlhf.weights.fingerprint import Fingerprint
from tests.end_to_end.small import RECIPE, make_small_data, overrides


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """The share of vowels."""
    return [sum(letter in "aeiou" for letter in response) / max(1, len(response)) for response in responses]


ADAPTED_RANKS = (
    "placement.policy={ranks: 2, zero_stage: 3}",
    "ppo.optimizer={lr: 0.01, schedule: constant}",
    "ppo.steps=2",
    "rollout.temperature=0.7",
)
"""Two ZeRO-3 ranks whose adapters soon change; ``model.lora`` is to be added."""


def held_fingerprint(trainer: PPOTrainer) -> Fingerprint:
    """Fingerprint of what the run's engine computes with."""
    [engine] = trainer.actors.engines.all
    found: Fingerprint = ray.get(engine.actor.held_fingerprint.remote())
    return found


@contextmanager
def small_trainer(folder: Path, settings: list[str], policy: Builder = POLICY) -> Iterator[PPOTrainer]:
    """A trainer of a randomly initialised model, started but not stepped."""
    make_small_data(folder)
    rewards = f"rewards={{vowels: {{function: '{__file__}:{vowels.__name__}'}}}}"
    recipe = load_recipe(RECIPE, [*overrides(folder, "small"), rewards, "algorithm.critic_warmup_steps=0", *settings])
    session = Session(recipe=recipe, console=Console(sys.stdout), device="cpu", gpus=0)
    start = Start(
        policy=session.base,
        critic=session.base,
        reward_models={},
        max_length=session.longest,
        end_tokens=session.end_tokens(session.base),
        prompts=session.prompts.train,
        logs=folder / "logs",
    )
    supervisor = Supervisor(recipe, lambda kind, **details: None)
    with cluster(None), start_actors(recipe, start, "cpu", 0, supervisor, policy) as actors:
        yield PPOTrainer(actors, len(start.prompts))
