"""Does it pay to ask raters about the pairs on which reward models disagree? Measured on a project of this example.

    python -m examples.travel.selection runs/quickstart/sft/model feedback.db --seeds 5

For each seed: reward models of an ensemble learn from a first set of random labels; then as many labels again are asked
for, once at random and once where the ensemble disagrees most; a new model learns from all labels of either kind. The
score is the expected agreement with a rater on held-out pairs, whose probabilities are known here.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from examples.travel.raters import RATERS, Comparison, label_probability
from rlhf.config.schema import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    Recipe,
    RewardConfig,
    RoleConfig,
)
from rlhf.data.split import canonical_prompt
from rlhf.data.stages import comparison_batches
from rlhf.data.tokenise import tokenise_preferences
from rlhf.evaluation.intervals import mean_interval
from rlhf.feedback.records import Purpose
from rlhf.feedback.selection import Candidate, disagreement, select
from rlhf.feedback.store import Store
from rlhf.models.folder import load_chat, read_facts
from rlhf.records import Preference, RowLocation
from rlhf.roles.block_result import join_samples
from rlhf.roles.preference import RewardTrainingRole
from rlhf.roles.supervised_data import PairData
from rlhf.types import Pair
from rlhf.zero.process_group import Rank

HELD_OUT = 500
MODELS = 3
"""Reward models of the ensemble."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Pairs (K,) as tokens, ``chosen`` the first answer, and what raters say of them."""

    pairs: tuple[Pair, ...]
    probability: np.ndarray
    """(K,) that a rater prefers the first answer."""


def read_pool(project: Path, model: Path) -> Pool:
    """The label items of a project of the travel example."""
    with Store.open(project) as store:
        items = store.items(Purpose.LABEL)
    rows = [
        Preference(item.prompt, item.answers[0].text, item.answers[1].text, 0.0, RowLocation(str(project), i))
        for i, item in enumerate(items)
    ]
    settings = ModelConfig(path=str(model))
    chat = load_chat(str(model), settings)
    facts = read_facts(model, settings, chat.tokenizer)
    data = DataConfig(max_prompt_length=48, max_response_length=64)
    tokenised = tokenise_preferences(rows, chat, data, facts)
    kept = [items[i] for i in tokenised.row_of_item]
    seen = [Comparison(canonical_prompt(item.prompt), item.answers[0].text, item.answers[1].text) for item in kept]
    return Pool(pairs=tokenised.items, probability=np.array([label_probability(each) for each in seen]))


def labelled(pool: Pool, indices: Sequence[int], seed: int) -> list[Pair]:
    """Those pairs as one rater's vote orders them."""
    found = []
    for i in indices:
        pair = pool.pairs[i]
        first = random.Random(f"vote {seed} {i}").random() < pool.probability[i]
        found.append(pair if first else replace(pair, chosen=pair.rejected, rejected=pair.chosen))
    return found


def train(model: Path, pairs: Sequence[Pair], seed: int, epochs: int, rank: Rank) -> RewardTrainingRole:
    """A reward model that learned from labelled pairs."""
    config = RewardConfig(epochs=epochs, batch_size=16, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=10))
    role = RoleConfig(micro_batch_tokens=2048)
    recipe = Recipe(
        name="selection",
        seed=seed,
        model=ModelConfig(path=str(model)),
        reward=config,
        placement=PlacementConfig(reward=role, threads_per_rank=rank.threads),
    )
    batches = comparison_batches(pairs, config.batch_size, epochs, seed)
    trained = RewardTrainingRole(recipe, str(model), len(batches), rank)
    trained.set_data(PairData.pack(pairs))
    for batch in batches:
        trained.update(batch)
    return trained


def scores(role: RewardTrainingRole, pool: Pool) -> np.ndarray:
    """(2K,) rewards of first and second answers, alternating."""
    data = PairData.pack(pool.pairs)
    return join_samples([role.rewards(data.sequences)], len(data.sequences))


def expected_accuracy(rewards: np.ndarray, pool: Pool, held_out: Sequence[int]) -> float:
    """Probability that a rater agrees with the rewards, over held-out pairs."""
    difference = (rewards[0::2] - rewards[1::2])[held_out]
    p = pool.probability[held_out]
    return float(np.where(difference > 0, p, np.where(difference < 0, 1 - p, 0.5)).mean())


def compare(pool: Pool, model: Path, seed: int, labels: int, epochs: int, rank: Rank) -> tuple[float, float]:
    """Accuracy after ``labels`` random labels and as many again: at random, and where an ensemble disagrees."""
    order = np.random.default_rng(seed).permutation(len(pool.pairs))
    prompts = {pool.pairs[i].prompt_id for i in order[:HELD_OUT]}
    held_out = [i for i in order if pool.pairs[i].prompt_id in prompts]
    rest = [int(i) for i in order if pool.pairs[i].prompt_id not in prompts]
    first, candidates = rest[:labels], rest[labels:]
    ensemble = [
        scores(train(model, labelled(pool, first, seed), 100 * seed + i, epochs, rank), pool) for i in range(MODELS)
    ]
    pairs = [Candidate(prompt=pool.pairs[i].prompt_id, first=2 * i, second=2 * i + 1) for i in candidates]
    chosen = select(pairs, disagreement(pairs, np.stack(ensemble)), labels)
    results = []
    for more in (candidates[:labels], [pair.first // 2 for pair in chosen]):
        trained = train(model, labelled(pool, [*first, *more], seed), 100 * seed + MODELS, epochs, rank)
        results.append(expected_accuracy(scores(trained, pool), pool, held_out))
    return results[0], results[1]


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare random pairs with uncertain ones at equal labels.")
    parser.add_argument("model", type=Path, help="folder of the SFT model")
    parser.add_argument("project", type=Path, help="project with items of the travel example")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=300, help="labels of the first set, and of the second")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    pool = read_pool(arguments.project, arguments.model)
    ceiling = float(np.maximum(pool.probability, 1 - pool.probability).mean())
    print(f"{len(pool.pairs):,} pairs of {len(RATERS)} raters; ceiling {ceiling:.4f}", flush=True)
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = (Path(folder) / "rendezvous").as_uri()
        rank = Rank(rank=0, world=1, rendezvous=rendezvous, device="cpu", threads=2, timeout_seconds=600.0)
        for seed in range(arguments.seeds):
            at_random, uncertain = compare(pool, arguments.model, seed, arguments.labels, arguments.epochs, rank)
            differences.append(uncertain - at_random)
            print(f"seed {seed}: random {at_random:.4f}, uncertain {uncertain:.4f}", flush=True)
    low, high = mean_interval(differences)
    print(f"uncertain - random: {statistics.fmean(differences):+.4f} [{low:+.4f}, {high:+.4f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
