"""Chart panels: the metrics that each chart shows, grouped by the operator's question that it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LEARNING, STABLE, TIME, BROKE = "Is it learning?", "Is it stable?", "Where does the time go?", "What broke?"
QUESTIONS = (LEARNING, STABLE, TIME, BROKE)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart."""

    question: str
    title: str
    unit: str
    lines: Mapping[str, str]
    """Metric → name of its line in the chart."""
    logarithmic: bool = False


def _panel(question: str, title: str, unit: str, logarithmic: bool = False, **lines: str) -> Panel:
    metrics = {metric: name.replace("_", " ") for name, metric in lines.items()}
    return Panel(question=question, title=title, unit=unit, lines=metrics, logarithmic=logarithmic)


PANELS = (
    _panel(LEARNING, "Loss", "nats", update="train/loss", held_out="eval/loss"),
    _panel(
        LEARNING, "Accuracy", "share of pairs ranked as people did", update="train/accuracy", held_out="eval/accuracy"
    ),
    _panel(LEARNING, "Score", "reward, mean of the batch", score="objective/scores"),
    _panel(LEARNING, "Held-out score", "mean, by the held-out scorer", score="holdout/score"),
    _panel(LEARNING, "Score minus KL penalty", "the maximised objective", reward="objective/rlhf_reward"),
    _panel(
        LEARNING, "Rewards of DPO", "\u03b2 log \u03c0/\u03c0_ref", chosen="rewards/chosen", rejected="rewards/rejected"
    ),
    _panel(
        LEARNING, "Margin of DPO", "chosen minus rejected", update="rewards/margins", held_out="eval/rewards_margin"
    ),
    _panel(STABLE, "KL to the reference", "nats per response", kl="objective/kl"),
    _panel(STABLE, "Entropy", "nats per token", entropy="policy/entropy_avg"),
    _panel(STABLE, "Length of responses", "tokens, mean", length="rollout/length_mean"),
    _panel(STABLE, "Truncated responses", "share", truncated="rollout/truncated_fraction"),
    _panel(
        STABLE, "Trainer against engine", "mean |\u0394 log p|, nats per token", True, gap="rollout/logprob_gap_mean"
    ),
    _panel(STABLE, "Size of the update", "\u00bd (log \u03c1)\u00b2", approxkl="policy/approxkl_avg"),
    _panel(STABLE, "Clipped tokens", "share", policy="policy/clipfrac_avg", critic="val/clipfrac_avg"),
    _panel(STABLE, "Critic", "explained variance", critic="critic/explained_variance"),
    _panel(STABLE, "Gradient's norm", "before clipping", policy="policy/grad_norm", update="train/grad_norm"),
    _panel(STABLE, "Staleness", "versions", versions="rollout/staleness_mean"),
    _panel(TIME, "Goodput", "share of the time spent on steps that are kept", goodput="perf/goodput"),
    _panel(
        TIME, "Tokens", "per second", rollout="perf/rollout_tokens_per_second", training="perf/train_tokens_per_second"
    ),
    _panel(BROKE, "Restarts", "actors, so far", restarts="health/restarts"),
    _panel(BROKE, "Re-dispatched", "samples, so far", redispatched="health/redispatched", set_aside="health/set_aside"),
    _panel(BROKE, "Seconds lost", "so far", lost="health/seconds_lost"),
)
