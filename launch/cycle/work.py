"""The parts of a round that need models: sampling, training, answering. Each is what its own command does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal


def sample_pairs(recipe: str, settings: Sequence[str], round: str) -> None:
    """Sample pairs as ``rlhf feedback sample`` does."""
    import launch.feedback.sample

    launch.feedback.sample.run(recipe, [*settings], round)


def train_stage(recipe: str, settings: Sequence[str], stage: Literal["sft", "reward", "ppo"]) -> None:
    """Train as the stage's command does: a finished stage is skipped, a killed one resumes."""
    from launch.run import run_stages

    run_stages(stage, recipe, [*settings])


def answer_items(recipe: str, settings: Sequence[str], model: Path, items: str, out: Path) -> None:
    """Answer as ``rlhf generate`` does."""
    from launch.run import run_generate

    run_generate(recipe, [*settings], model=str(model), prompts=items, out=str(out), n=1, best_of=None)
