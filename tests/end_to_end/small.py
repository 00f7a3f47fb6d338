"""The small run of the end-to-end tests: the quickstart's recipe and data, less of everything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.travel.make_data import make_data
from rlhf.storage.jsonl import read_lines

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
DATA_SEED = 3
REWARD = """
import time

def score(prompts, responses):
    time.sleep({seconds})
    return [response.count("e") / max(1, len(response)) for response in responses]
"""


def make_small_data(folder: Path) -> None:
    """A few hundred rows of each kind."""
    make_data(folder, seed=DATA_SEED, demonstrations=320, preferences=200, prompts=120)


def make_data_and_reward(folder: Path, seconds: float = 0.0) -> None:
    """The same and ``reward.py:score``, a reward that any text has: the share of an e. A call takes so many seconds."""
    make_small_data(folder)
    (folder / "reward.py").write_text(REWARD.format(seconds=seconds))


def overrides(folder: Path, name: str) -> list[str]:
    """Settings that make the quickstart small. Data is read from, and runs are written to, ``folder``."""
    return [
        f"name={name}",
        f"runs_dir={folder / 'runs'}",
        *(f"data.{kind}={folder / kind}.jsonl" for kind in ("demonstrations", "preferences", "prompts")),
        f"reward.ceiling={folder / 'meta.json'}",
        "model.scratch={hidden_size: 64, layers: 2, heads: 2, intermediate_size: 128, vocab_size: 600, "
        "max_length: 128}",
        "data.max_response_length=80",
        "sft.epochs=1",
        "reward.batch_size=8",
        "sft.optimizer.warmup_steps=4",
        "reward.optimizer.warmup_steps=4",
        "ppo.steps=3",
        "ppo.batch_size=16",
        "algorithm.critic_warmup_steps=1",
        "rollout.max_response_length=40",
        "rollout.block_size=8",
        "rollout.memory_gib=0.1",
        "evaluation.prompts=8",
        "evaluation.show=1",
    ]


STEPS = 4
"""Of PPO in the pipeline."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline in ``folder``, its data beside it; PPO is deterministic, and keeps a checkpoint of each step."""

    folder: Path

    def settings(self, name: str) -> list[str]:
        return [
            *overrides(self.folder, name),
            "model.scratch.tie_embeddings=false",  # other end-to-end tests publish a tied head
            "deterministic=true",
            "placement.reward.ranks=1",
            f"ppo.steps={STEPS}",
            "checkpoint.every=1",
            f"checkpoint.keep_last={STEPS}",
            "algorithm.adaptive_kl={target: 1.0, horizon: 100}",
            "algorithm.reward_scale=running_std",
        ]

    def command(self, stage: str = "pipeline", *more: str) -> subprocess.CompletedProcess[str]:
        """Give a command that belongs to it."""
        return rlhf(stage, str(RECIPE), *self.settings("small"), *more)

    def stage(self, stage: str) -> Path:
        return self.folder / "runs" / "small" / stage

    def copy_models(self, name: str) -> None:
        """Give another run of ``settings`` the models that its PPO starts from."""
        for stage in ("sft", "reward"):
            shutil.copytree(self.stage(stage), self.folder / "runs" / name / stage)

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        return read_lines(self.stage(stage) / "metrics.jsonl")

    @property
    def screen(self) -> str:
        """What it printed."""
        return (self.folder / "screen").read_text()


def rlhf(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "launch.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
