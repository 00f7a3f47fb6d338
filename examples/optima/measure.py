"""Compares a finished run, its policy on disk and its logged metrics, with the known optimum."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from examples.optima import closed_form
from examples.optima.closed_form import ANSWERS, LONGEST, PROMPTS
from examples.optima.problems import GAIN, Problem

SPREAD = "std(score − β Σ k), times smaller"
Metrics = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A measured number and the range that it must be in."""

    name: str
    measured: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def holds(self) -> bool:
        """Whether it is; NaN never is."""
        return self.low <= self.measured <= self.high


def near(name: str, measured: float, right: float, tolerance: float) -> Check:
    """A check that a number is within the tolerance of the right one."""
    return Check(name=name, measured=measured, low=right - tolerance, high=right + tolerance)


def read_metrics(stage: Path) -> list[dict[str, float]]:
    """The lines of a stage's ``metrics.jsonl``."""
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


def checks(problem: Problem, folder: Path) -> list[Check]:
    """All checks of a problem whose run is in ``folder``."""
    run = folder / "runs" / problem.name
    metrics = read_metrics(run / "ppo")
    specific = {"A": _bandit, "B": _token_class, "C": _length, "D": _chain}[problem.letter]
    return [*specific(problem, run, metrics), *_canaries(metrics)]


def _canaries(metrics: Metrics) -> Iterator[Check]:
    yield Check(name="KL at step 0", measured=abs(metrics[0]["objective/kl"]), high=1e-4)
    ratio = max(abs(step["first_pass/ratio"] - 1) for step in metrics)
    yield Check(name="first-pass ratio, distance from 1", measured=ratio, high=1e-4)
    gap = max(step["rollout/logprob_gap_mean"] for step in metrics)
    yield Check(name="log-probability gap", measured=gap, high=1e-4)


def _never_above(problem: Problem, metrics: Metrics, samples: int, window: int = 10) -> Check:
    """Standard errors by which the logged objective is above J*, in the worst window of ten steps.

    A policy cannot be better than the best: more than three mean that a logged quantity is wrong.
    """
    worst = -math.inf
    for begin in range(0, len(metrics) - window + 1, window):
        part = metrics[begin : begin + window]
        mean = np.mean([step["objective/rlhf_reward"] for step in part])
        variance = np.mean([step["objective/rlhf_reward_std"] ** 2 for step in part])
        worst = max(worst, float((mean - problem.best.objective) / math.sqrt(variance / (samples * window) + 1e-12)))
    return Check(name="J above J*, standard errors, worst ten steps", measured=worst, high=3.0)


def _spread(metrics: Metrics) -> Check:
    """How many times smaller std(score − β Σ k) became over the responses to the one prompt; at the optimum it is 0."""
    late = float(np.mean([step["objective/rlhf_reward_std"] for step in _last_tenth(metrics)]))
    return Check(name=SPREAD, measured=metrics[0]["objective/rlhf_reward_std"] / max(late, 1e-12), low=5.0)


def _last_tenth(metrics: Metrics) -> Metrics:
    return metrics[-max(1, len(metrics) // 10) :]


def _late(metrics: Metrics, name: str) -> float:
    return float(np.mean([step[name] for step in _last_tenth(metrics)]))


def _load(run: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(run / "ppo" / "model", dtype=torch.float32).eval()


def _bandit(problem: Problem, run: Path, metrics: Metrics) -> Iterator[Check]:
    """The saved policy's objective, computed over all answers."""
    with torch.no_grad():
        logits = _load(run)(torch.arange(PROMPTS)[:, None] + ANSWERS).logits[:, 0].double()
    policy = logits.softmax(dim=-1)[:, :ANSWERS].numpy()
    found = closed_form.bandit_value(policy, problem.beta)
    yield near("J", found.objective, problem.best.objective, 0.01)
    yield near("E[r]", found.reward, problem.best.reward, 0.04)
    yield near("KL, nats", found.kl, problem.best.kl, 0.2)
    yield _never_above(problem, metrics, samples=256)
    reference = torch.from_numpy(closed_form.bandit_logits()).softmax(dim=-1).numpy()
    before, after = (closed_form.bandit_spread(each, problem.beta) for each in (reference, policy))
    yield Check(name=SPREAD, measured=before / after, low=5.0)  # of one prompt: β log Z differs from prompt to prompt


def _token_class(problem: Problem, run: Path, metrics: Metrics) -> Iterator[Check]:
    """The share of the class is the mean score of the last steps."""
    yield near("q", _late(metrics, "objective/scores"), closed_form.class_share(problem.beta), 0.02)
    yield near("KL, nats", _late(metrics, "objective/kl"), problem.best.kl, 0.5 if problem.beta < 0.1 else 0.2)
    yield near("J", _late(metrics, "objective/rlhf_reward"), problem.best.objective, 0.01)
    yield _never_above(problem, metrics, samples=256)
    yield _spread(metrics)


def _length(problem: Problem, run: Path, metrics: Metrics) -> Iterator[Check]:
    """Hazards of the saved policy, averaged over responses sampled from it."""
    hazards, visited = sampled_hazards(_load(run), responses=4096)
    right = closed_form.length_hazards(problem.beta)
    error = np.abs(hazards - right)[visited > 0.01]
    yield Check(name="hazards, largest error where visited", measured=float(error.max()), high=0.05)
    yield Check(name="P(no end)", measured=float(visited[-1] * (1 - hazards[-1])), high=0.005)
    yield near("J", _late(metrics, "objective/rlhf_reward"), problem.best.objective, 0.03)
    yield _never_above(problem, metrics, samples=256)
    yield _spread(metrics)


@torch.no_grad()
def sampled_hazards(model: PreTrainedModel, responses: int) -> tuple[np.ndarray, np.ndarray]:
    """(12,) probability of an end at each token, and (12,) the share of responses that get there."""
    random = torch.Generator().manual_seed(0)
    end = model.config.eos_token_id
    tokens = torch.full((responses, 1), end + 1)  # the prompt comes after the end token in the vocabulary
    alive = torch.ones(responses, dtype=torch.double)
    hazards, visited = np.zeros(LONGEST), np.zeros(LONGEST)
    for position in range(LONGEST):
        likely = _next(model, tokens)
        visited[position] = float(alive.mean())
        hazards[position] = float((alive * likely[:, end]).sum() / alive.sum())
        alive *= 1 - likely[:, end]
        likely[:, end] = 0.0  # continue as if it had not ended, weighted by the probability of that
        tokens = torch.cat([tokens, torch.multinomial(likely, 1, generator=random)], dim=1)
    return hazards, visited


def _next(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return model(tokens).logits[:, -1].double().softmax(dim=-1)


def _chain(problem: Problem, run: Path, metrics: Metrics) -> Iterator[Check]:
    """The reward model against the labels' ceiling, and the gold that PPO with it reaches.

    The policy goes to counts that are rare in the comparisons, where the reward model's slope per token is smaller than
    the labels': so the best policy by the reward model has a smaller q.
    """
    accuracy = read_metrics(run / "reward")[-1]
    ceiling = closed_form.accuracy_ceiling(GAIN)
    margin = accuracy["eval/accuracy_ci_high"] - accuracy["eval/accuracy"]
    yield Check(
        name="reward model's accuracy", measured=accuracy["eval/accuracy"], low=ceiling - 0.02, high=ceiling + margin
    )
    yield near("gold q before", metrics[0]["objective/scores/gold"], closed_form.CLASS_SHARE, 0.02)
    first, gold = metrics[0], _late(metrics, "objective/scores/gold")
    gained = closed_form.TOKENS * (gold - first["objective/scores/gold"])
    slope = (_late(metrics, "objective/scores") - first["objective/scores"]) / gained
    yield near("gold q, as the reward model's slope predicts", gold, closed_form.class_share(problem.beta, slope), 0.03)
    yield near(
        "gold q, as a perfect reward model would lead to", gold, closed_form.class_share(problem.beta, GAIN), 0.1
    )
