"""The small run of the end-to-end tests: the quickstart's recipe and data, less of everything."""

from __future__ import annotations

from pathlib import Path

from examples.travel.make_data import make_data

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
        "evaluation.prompts=8",
        "evaluation.show=1",
    ]
