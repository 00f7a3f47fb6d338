"""Summary of a PPO run's progress, from the metrics of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf.algorithms.rewards import LEAST_STD
from rlhf.metrics import METRICS

UNKNOWN_GAIN = "not known: the first step's scores are all equal"
UNTRAINED = "not known: the policy was not trained before the last step's rollout"


def summarise_progress(history: Sequence[Mapping[str, float]]) -> dict[str, float | str]:
    """Compare the first step with the last tenth, and report the worst canaries; steps without scores are left out."""
    history = [step for step in history if "objective/scores" in step]
    if not history:
        return {}
    first, tail = history[0], history[-max(1, len(history) // 10) :]
    late = sum(step["objective/scores"] for step in tail) / len(tail)
    spread = first["objective/scores_std"]
    # Without these metrics rollouts overlap other phases, so that their time is not measured.
    rates = [step["perf/rollout_tokens_per_second"] for step in history if "perf/rollout_tokens_per_second" in step]
    return {
        "score of the first step": first["objective/scores"],
        "its standard deviation": spread,
        "score of the last tenth of the steps": late,
        "gain in standard deviations": _gain(history, late),
        "sequence KL at the end, nats": history[-1]["objective/kl"],
        "log-probability gap, worst step": max(step["rollout/logprob_gap_mean"] for step in history),
        f"{METRICS['first_pass/ratio'].label}, farthest from 1": max(
            (step.get("first_pass/ratio", 1.0) for step in history), key=lambda r: abs(r - 1)
        ),
        **({"rollout tokens per second": sum(rates) / len(rates)} if rates else {}),
        "score's correlation with length": tail[-1]["objective/score_length_correlation"],
    }


def _gain(history: Sequence[Mapping[str, float]], late: float) -> float | str:
    first, spread = history[0]["objective/scores"], history[0]["objective/scores_std"]
    if not any("first_pass/ratio" in step for step in history[:-1]):  # such as the critic's warm-up
        return UNTRAINED
    return (late - first) / spread if spread > LEAST_STD else UNKNOWN_GAIN
