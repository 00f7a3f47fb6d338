"""Canaries: invariants checked on every step. A violation stops the run and names the usual causes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf.config.schema import CanaryConfig
from rlhf.errors import CanaryError

DEFAULTS = {
    "float32": {"ratio": 1e-4, "clipfrac": 0.0, "kl": 1e-4, "gap": 1e-4},
    "bfloat16": {"ratio": 2e-2, "clipfrac": 1e-2, "kl": 2e-2, "gap": 5e-2},
}
"""Limits where the recipe sets none.

bfloat16 has 8 significant bits, so kernels that sum in different orders differ by up to this much.
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A recipe's limits with the defaults of its dtype filled in."""

    ratio: float
    """Largest |mean ratio − 1|, and largest approximate KL in nats per token, in the first pass."""
    clipfrac: float
    """Largest fraction of clipped tokens in the first pass."""
    step0_kl: float
    """Largest mean |log π − log π_ref| at step 0, in nats per token."""
    gap: float
    """Largest mean |log π by the trainer − log π by the engine|, in nats per token."""
    min_kl: float
    """Smallest mean KL to the reference, in nats per response."""
    max_kl: float | None
    """Largest mean KL to the reference, in nats per response; None: no limit."""
    staleness: int = 0
    """Largest mean number of weight versions by which rollouts are older than the policy."""

    @classmethod
    def of(cls, config: CanaryConfig, dtype: str, staleness: int = 0, clip_range: float = 1.0) -> Limits:
        """The recipe's limits, with the defaults of ``dtype`` for those that are None; ``max_kl`` has no default.

        Args:
            clip_range: the smaller ε. If it is within the dtype's tolerance of the ratio, as GSPO's in bfloat16,
                rounding alone clips in the first pass, and by default any fraction is allowed.
        """
        default = dict(DEFAULTS[dtype])
        if clip_range <= default["ratio"]:
            default["clipfrac"] = 1.0
        return cls(
            ratio=default["ratio"] if config.ratio_tolerance is None else config.ratio_tolerance,
            clipfrac=default["clipfrac"] if config.clipfrac_limit is None else config.clipfrac_limit,
            step0_kl=default["kl"] if config.step0_kl_limit is None else config.step0_kl_limit,
            gap=default["gap"] if config.logprob_gap_limit is None else config.logprob_gap_limit,
            min_kl=config.min_kl,
            max_kl=config.max_kl,
            staleness=staleness,
        )


CAUSES = {
    "rollout/logprob_gap_mean": "engine and trainer hold different weights; a sampling transform (top-p, penalties) "
    "that the trainer does not apply; temperature, chat template or dtype differ between them",
    "first_pass/ratio": "dropout is on; positions or masks differ between scoring and training; the weights changed "
    "in between",
    "first_pass/approxkl": "dropout is on; positions or masks differ between scoring and training; the weights changed "
    "in between",
    "first_pass/clipfrac": "the first pass is not over fresh rollouts; dropout is on; scoring and training differ",
    "objective/logratio_abs_mean": "policy and reference were not loaded from the same folder; their dtype or chat "
    "template differs",
    "rollout/staleness_mean": "an engine served weights older than the last published ones",
    "objective/kl": "too low: the tokens were sampled from another distribution than the one that gives their "
    "log-probabilities; too high: the policy moves too far from the reference (raise algorithm.kl_coef, lower "
    "ppo.optimizer.lr)",
}


def check(metrics: Mapping[str, float], step: int, limits: Limits) -> None:
    """Raise one ``CanaryError`` that lists every metric outside its limits; NaN is outside."""
    problems = [
        f"canary {name} = {value:.6g} at step {step}, outside [{low:.6g}, {high:.6g}]\n  usual causes: {CAUSES[name]}"
        for name, value, low, high in _watched(metrics, step, limits)
        if not low <= value <= high
    ]
    if problems:
        raise CanaryError("\n".join(problems))


def _watched(metrics: Mapping[str, float], step: int, limits: Limits) -> Iterator[tuple[str, float, float, float]]:
    """(name, value, lowest, highest) of each canary that the step measured."""
    infinity = float("inf")
    ranges = {
        "rollout/logprob_gap_mean": (0.0, limits.gap),
        "first_pass/ratio": (1 - limits.ratio, 1 + limits.ratio),
        "first_pass/approxkl": (0.0, limits.ratio),
        "first_pass/clipfrac": (0.0, limits.clipfrac),
        "rollout/staleness_mean": (0.0, limits.staleness),
        "objective/kl": (limits.min_kl, infinity if limits.max_kl is None else limits.max_kl),
    }
    if metrics.get("rollout/staleness_mean"):  # sampled with older weights: the gap then measures the updates since
        del ranges["rollout/logprob_gap_mean"]
    if step == 0:
        ranges["objective/logratio_abs_mean"] = (0.0, limits.step0_kl)
    for name, (low, high) in ranges.items():
        if name in metrics:
            yield name, metrics[name], low, high
