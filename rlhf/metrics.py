"""Table of all metrics of a run, and the panels that show them. ``python -m rlhf.metrics`` writes docs/metrics.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LEARNING, STABLE, TIME, BROKE = "Is it learning?", "Is it stable?", "Where does the time go?", "What broke?"
QUESTIONS = (LEARNING, STABLE, TIME, BROKE)
INTERVAL = ("_ci_low", "_ci_high")
"""Endings of the names of the bounds of a 95% interval."""
PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


@dataclass(frozen=True)
class Metric:
    """A metric, or a family of metrics: ``<role>`` in a name stands for any text without a slash."""

    name: str
    unit: str
    meaning: str
    better: Literal["higher", "lower"] | None = None
    """Direction of an improvement, if there is one."""
    label: str = ""
    """Short name on screens."""
    has_interval: bool = False
    """Whether its 95% interval is recorded too, under names that end in ``INTERVAL``."""

    def matches(self, name: str) -> bool:
        """Whether it is recorded under ``name``."""
        pattern = "[^/]+".join(re.split(r"<\w+>", self.name))
        return re.fullmatch(pattern + (f"({'|'.join(INTERVAL)})?" if self.has_interval else ""), name) is not None


SECTIONS: Mapping[str, tuple[Metric, ...]] = {
    "Rewards and KL": (
        Metric("objective/scores", "reward", "mean score, after scaling, clipping and penalties", "higher", "score"),
        Metric("objective/scores_std", "reward", "standard deviation of these scores"),
        Metric("objective/raw_scores", "reward", "mean of the weighted sum of rewards, before scaling and penalties"),
        Metric("objective/scores/<part>", "reward", "mean of one reward, if there are several (`rewards.<name>`)"),
        Metric(
            "objective/kl",
            "nats per response",
            "log π_old − log π_ref, summed over tokens; may be negative",
            None,
            "KL",
        ),
        Metric("objective/kl_coef", "", "coefficient β of the KL penalty in this step"),
        Metric("objective/non_score_reward", "reward", "the KL penalty, −β · `objective/kl`"),
        Metric("objective/rlhf_reward", "reward", "score minus KL penalty, which PPO maximises", "higher", "reward"),
        Metric("objective/rlhf_reward_std", "reward", "its standard deviation; at the optimum, that of β log Z"),
        Metric("objective/entropy", "nats per response", "−log π_old, summed over a response's tokens"),
        Metric("objective/score_length_correlation", "", "correlation of scores with response lengths"),
        Metric(
            "objective/logratio_abs_mean",
            "nats per token",
            "mean |log π_old − log π_ref|; not 0 at step 0 stops the run",
        ),
    ),
    "Updates of policy and critic": (
        Metric("loss/policy_avg", "", "clipped surrogate, per response token"),
        Metric("loss/kl_avg", "nats", "KL term of the loss, ρ k3"),
        Metric("loss/value_avg", "", "loss of the critic"),
        Metric("policy/approxkl_avg", "½ (log ρ)²", "distance between the policies before and during the updates"),
        Metric("policy/clipfrac_avg", "fraction", "tokens whose clip binds, over all updates of the step"),
        Metric("policy/entropy_avg", "nats per token", "exact entropy of a token's distribution", None, "entropy"),
        Metric("policy/grad_norm", "", "gradient norm before clipping, mean over updates"),
        Metric("policy/updates", "", "optimizer steps; fewer than epochs · minibatches if `target_kl` ended them"),
        Metric("policy/tokens", "tokens", "response tokens trained on, counted once per epoch"),
        Metric("val/ratio", "", "mean of ρ = π/π_old"),
        Metric("val/ratio_var", "", "variance of ρ"),
        Metric("val/clipfrac_avg", "fraction", "values whose clip binds; near 1, `value_clip_range` is too small"),
        Metric(
            "critic/explained_variance", "", "1 − var(R − V)/var(R): 1 for a perfect critic, 0 for a constant", "higher"
        ),
        Metric("first_pass/ratio", "", "mean of ρ in the first update: 1, or the run stops", None, "first-pass ratio"),
        Metric("first_pass/approxkl", "½ (log ρ)²", "the same distance in the first update: 0, or the run stops"),
        Metric("first_pass/clipfrac", "fraction", "clipped tokens in the first update: 0, or the run stops"),
        Metric("lr", "", "learning rate of the last update"),
        Metric("lr_critic", "", "learning rate of the critic's last update"),
    ),
    "Generation": (
        Metric("rollout/length_mean", "tokens per response", "mean length of responses", None, "length"),
        Metric("rollout/tokens", "tokens", "tokens of all responses of the step"),
        Metric("rollout/truncated_fraction", "fraction", "responses that ended at the length limit", "lower"),
        Metric("rollout/dropped", "samples", "without score or response; excluded from other metrics", "lower"),
        Metric(
            "rollout/uniform_fraction",
            "fraction",
            "responses whose group has equal scores, which the update leaves out (`drop_uniform_groups`)",
        ),
        Metric(
            "rollout/filled_fraction", "fraction", "responses of the update whose group has unequal scores", "higher"
        ),
        Metric("rollout/sampling_rounds", "rounds", "of sampling in this step, at most `ppo.sampling_rounds`", "lower"),
        Metric("rollout/set_aside", "samples", "quarantined in this step, because their prompt kept failing", "lower"),
        Metric(
            "rollout/prefix_cache_hit_rate",
            "fraction",
            "prompt tokens that engines took from their prefix caches",
            "higher",
            "cache hits",
        ),
        Metric("rollout/logprob_gap_mean", "nats per token", "mean |Δ log p| of trainer and engine", "lower", "gap"),
        Metric("rollout/logprob_gap_max", "nats", "largest |Δ log p| of a token between trainer and engine", "lower"),
        Metric("rollout/importance_weight_mean", "", "mean truncated importance weight, which corrects for staleness"),
        Metric("rollout/importance_weight_max", "", "largest of these weights"),
        Metric(
            "rollout/staleness_mean",
            "versions",
            "age of the sampling weights; over `ppo.staleness` the run stops",
            "lower",
        ),
        Metric("episode", "responses", "sampled so far"),
        Metric("weights/version", "", "version of the published weights"),
        Metric("weights/sync_seconds", "s", "publishing of the weights to all engines", "lower"),
    ),
    "SFT, reward model and DPO": (
        Metric(
            "train/loss",
            "nats",
            "loss of the update, per token in SFT, else per pair or labelled answer",
            "lower",
            "loss",
        ),
        Metric(
            "train/accuracy",
            "fraction",
            "pairs, or labelled answers, of the update judged as people did",
            "higher",
            "accuracy",
        ),
        Metric("train/grad_norm", "", "gradient norm of the update before clipping"),
        Metric("train/tokens", "tokens", "trained tokens of the update"),
        Metric("eval/loss", "nats", "the same loss of held-out data", "lower", "held-out loss"),
        Metric(
            "eval/accuracy",
            "fraction",
            "held-out pairs, or labelled answers, judged as people did",
            "higher",
            "held-out accuracy",
            True,
        ),
        Metric(
            "rewards/chosen",
            "reward",
            "β log π/π_ref of chosen (in KTO: good) responses, mean over the update; in ORPO β log π per token",
        ),
        Metric("rewards/rejected", "reward", "the same of rejected (in KTO: bad) responses"),
        Metric("rewards/margins", "reward", "the difference of the two", "higher", "margin"),
        Metric("eval/rewards_margin", "reward", "the same of held-out pairs", "higher", "held-out margin"),
        Metric(
            "rewards/accuracies", "fraction", "pairs of the update with a positive margin; first only noise", "higher"
        ),
        Metric(
            "logps/chosen",
            "nats per response",
            "log π of chosen responses; depends on length, except in ORPO, per token",
        ),
        Metric("logps/rejected", "nats per response", "log π of rejected responses; depends on length"),
    ),
    "Held-out evaluation in PPO": (
        Metric(
            "holdout/score", "score", "mean over prompts, times `early_stop.scorer.weight`", "higher", "held out", True
        ),
        Metric(
            "holdout/start_score", "score", "the score before the first step, recorded with step 0", "higher", "", True
        ),
        Metric("holdout/best_step", "steps", "steps of training of the best policy so far; 0 is the initial one"),
    ),
    "Time and throughput": (
        Metric(
            "time/start",
            "s",
            "from the start of the stage to the first step of the command, with which it is recorded",
            "lower",
        ),
        Metric("time/step", "s", "the whole step, without saving and evaluation", "lower"),
        Metric("time/rollout", "s", "generation", "lower"),
        Metric("time/score", "s", "scoring after the end of the rollout, with which it overlaps", "lower"),
        Metric("time/advantages", "s", "advantages and assembly of the batch", "lower"),
        Metric("time/update", "s", "updates of policy and critic", "lower"),
        Metric("time/publish", "s", "publishing of the weights", "lower"),
        Metric("time/snapshot", "s", "wait for the snapshot from which a lost model is restored", "lower"),
        Metric("time/checkpoint", "s", "commit of a checkpoint", "lower"),
        Metric("time/judge", "s", "held-out evaluation in PPO", "lower"),
        Metric("time/evaluate", "s", "held-out evaluation in the other stages", "lower"),
        Metric("time/reference", "s", "log-probabilities of the reference, once, in DPO", "lower"),
        Metric(
            "perf/goodput",
            "fraction",
            "time spent on steps that are kept, of all since the first start",
            "higher",
            "goodput",
        ),
        Metric(
            "perf/rollout_tokens_per_second",
            "tokens/s",
            "response tokens by time of the rollout; absent with `ppo.staleness`",
            "higher",
            "tokens/s written",
        ),
        Metric(
            "perf/train_tokens_per_second",
            "tokens/s",
            "`policy/tokens` by time of updates",
            "higher",
            "tokens/s trained",
        ),
        Metric("perf/samples_per_second", "samples/s", "responses by time of the whole step", "higher", "samples/s"),
        Metric("perf/model_tflops", "TFLOP/s", "of each policy rank during updates, useful operations only", "higher"),
        Metric("perf/mfu", "fraction", "the same, of the peak rate of the GPU; absent if that is unknown", "higher"),
    ),
    "Memory": (
        Metric("memory/<role>_host_gib", "GiB", "resident host memory of all ranks of a role, one step late"),
        Metric("memory/<role>_gib", "GiB", "largest peak of one rank: GPU memory if it has a GPU, else host memory"),
    ),
    "Failures": (
        Metric("health/restarts", "restarts", "so far; actors that are lost together are one", "lower", "restarts"),
        Metric("health/redispatched", "samples", "re-dispatched so far", "lower", "samples re-dispatched"),
        Metric("health/set_aside", "samples", "quarantined so far", "lower", "samples set aside"),
        Metric(
            "health/seconds_lost",
            "s",
            "so far: waits for lost actors, steps that were repeated, and the time between two commands",
            "lower",
            "seconds lost",
        ),
    ),
}
"""All metrics, by section of the page."""
METRICS = {metric.name: metric for section in SECTIONS.values() for metric in section}


def unknown_metrics(rows: Iterable[Mapping[str, object]]) -> set[str]:
    """Names in the rows of a ``metrics.jsonl`` that are missing from the table."""
    names = {name for row in rows for name in row} - {"step"}
    return {name for name in names if not any(metric.matches(name) for metric in METRICS.values())}


def labelled(*names: str) -> dict[str, str]:
    """Name of each metric by its label, in the given order."""
    return {METRICS[name].label: name for name in names}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart."""

    question: str
    title: str
    unit: str
    lines: Mapping[str, str]
    """Metric → name of its line in the chart."""
    logarithmic: bool = False

    @property
    def better(self) -> str | None:
        """The direction of an improvement, if all lines have the same."""
        directions = {METRICS[name].better for name in self.lines if name in METRICS}
        return directions.pop() if len(directions) == 1 else None


def _panel(question: str, title: str, unit: str, logarithmic: bool = False, **lines: str) -> Panel:
    metrics = {metric: name.replace("_", " ") for name, metric in lines.items()}
    return Panel(question=question, title=title, unit=unit, lines=metrics, logarithmic=logarithmic)


PANELS = (
    _panel(LEARNING, "Loss", "nats", update="train/loss", held_out="eval/loss"),
    _panel(
        LEARNING,
        "Accuracy",
        "fraction of pairs ranked as people did",
        update="train/accuracy",
        held_out="eval/accuracy",
    ),
    _panel(LEARNING, "Score", "reward, mean of the batch", score="objective/scores"),
    _panel(LEARNING, "Held-out score", "mean, by the held-out scorer", score="holdout/score"),
    _panel(LEARNING, "Score minus KL penalty", "the maximised objective", reward="objective/rlhf_reward"),
    _panel(LEARNING, "Rewards of DPO", "β log π/π_ref", chosen="rewards/chosen", rejected="rewards/rejected"),
    _panel(
        LEARNING, "Margin of DPO", "chosen minus rejected", update="rewards/margins", held_out="eval/rewards_margin"
    ),
    _panel(STABLE, "KL to the reference", "nats per response", kl="objective/kl"),
    _panel(STABLE, "Entropy", "nats per token", entropy="policy/entropy_avg"),
    _panel(STABLE, "Length of responses", "tokens, mean", length="rollout/length_mean"),
    _panel(STABLE, "Truncated responses", "fraction", truncated="rollout/truncated_fraction"),
    _panel(STABLE, "Trainer against engine", "mean |Δ log p|, nats per token", True, gap="rollout/logprob_gap_mean"),
    _panel(STABLE, "Size of the update", "½ (log ρ)²", approxkl="policy/approxkl_avg"),
    _panel(STABLE, "Clipped tokens", "fraction", policy="policy/clipfrac_avg", critic="val/clipfrac_avg"),
    _panel(STABLE, "Critic", "explained variance", critic="critic/explained_variance"),
    _panel(STABLE, "Gradient's norm", "before clipping", policy="policy/grad_norm", update="train/grad_norm"),
    _panel(STABLE, "Staleness", "versions", versions="rollout/staleness_mean"),
    Panel(
        question=TIME,
        title="Phases",
        unit="seconds in each step",
        lines={f"time/{phase}": phase for phase in ("rollout", "score", "advantages", "update", "publish", "snapshot")},
    ),
    _panel(TIME, "Goodput", "fraction of the time spent on steps that are kept", goodput="perf/goodput"),
    _panel(
        TIME, "Tokens", "per second", rollout="perf/rollout_tokens_per_second", training="perf/train_tokens_per_second"
    ),
    _panel(TIME, "Samples", "per second", samples="perf/samples_per_second"),
    _panel(TIME, "Prefix cache", "fraction of prompt tokens found", hits="rollout/prefix_cache_hit_rate"),
    _panel(
        TIME,
        "Host memory",
        "GiB, all ranks of a role",
        rollout="memory/rollout_host_gib",
        policy="memory/policy_host_gib",
        critic="memory/critic_host_gib",
        reference="memory/reference_host_gib",
        reward_model="memory/reward_model_host_gib",
    ),
    _panel(BROKE, "Restarts", "so far; actors lost together are one", restarts="health/restarts"),
    _panel(BROKE, "Re-dispatched", "samples, so far", redispatched="health/redispatched", set_aside="health/set_aside"),
    _panel(BROKE, "Samples without a score", "in each step", dropped="rollout/dropped", set_aside="rollout/set_aside"),
    _panel(BROKE, "Seconds lost", "so far", lost="health/seconds_lost"),
)
PANEL = {panel.title: panel for panel in PANELS}

INTRODUCTION = """\
# Metrics

<!-- Generated from rlhf/metrics.py by `python -m rlhf.metrics`; change the entries there. -->

Each step adds one line to `metrics.jsonl`, with these names; W&B and TensorBoard show the same ones. Names are TRL's
where TRL has the metric. π is the policy, π_old the policy at the start of the step, π_ref the reference, and
ρ = π/π_old; all are probabilities of a sampled token. A metric that a step does not measure is absent. Names that end
in `_ci_low` and `_ci_high` are the bounds of a 95% interval.
"""


def render() -> str:
    """The page in Markdown."""
    return "\n".join([INTRODUCTION, *(_render_section(title, metrics) for title, metrics in SECTIONS.items())])


def _render_section(title: str, metrics: Iterable[Metric]) -> str:
    rows = [" | ".join([_names(m), m.unit, m.better or "", m.meaning.replace("|", "\\|")]) for m in metrics]
    return (
        "\n".join([f"## {title}", "", "| name | unit | better | meaning |", "|---|---|---|---|"])
        + "".join(f"\n| {row} |" for row in rows)
        + "\n"
    )


def _names(metric: Metric) -> str:
    return ", ".join(f"`{metric.name}{end}`" for end in (("", *INTERVAL) if metric.has_interval else ("",)))


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
