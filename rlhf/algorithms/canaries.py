"""Numbers that must hold on every run. Outside its limit a canary stops the run and says what usually causes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf.config.schema import CanaryConfig
from rlhf.errors import CanaryError

DEFAULTS = {
    "float32": {"ratio": 1e-4, "clipfrac": 0.0, "kl": 1e-4, "gap": 1e-4},
    "bfloat16": {"ratio": 2e-2, "clipfrac": 1e-2, "kl": 2e-2, "gap": 5e-2},
}
"""Limits where the recipe names none.

bfloat16 has 8 bits of mantissa, so kernels that sum in another order differ by this much.
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A recipe's limits with the defaults of its dtype filled in."""

    ratio: float
    clipfrac: float
    step0_kl: float
    gap: float
    min_kl: float
    max_kl: float | None
    staleness: int = 0

    @classmethod
    def of(cls, config: CanaryConfig, dtype: str, staleness: int = 0) -> Limits:
        """The limits in force."""
        default = DEFAULTS[dtype]
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
    "rollout/logprob_gap_mean": "the engine holds other weights than the trainer; a sampling transform (top-p, "
    "penalties) that the trainer does not apply; another temperature, chat template or dtype on one side",
    "first_pass/ratio": "dropout is on; positions or masks differ between scoring and training; weights changed in "
    "between",
    "first_pass/approxkl": "dropout is on; positions or masks differ between scoring and training; weights changed in "
    "between",
    "first_pass/clipfrac": "the first pass is not over fresh rollouts; dropout is on; scoring and training disagree",
    "objective/logratio_abs_mean": "policy and reference were not loaded from the same folder; their dtype or chat "
    "template differs",
    "rollout/staleness_mean": "an engine served weights that were not the last ones published",
    "objective/kl": "below: tokens are sampled from another distribution than the one whose log-probabilities are "
    "taken; above: the policy runs away from the reference (raise algorithm.kl_coef, lower ppo.optimizer.lr)",
}


def check(metrics: Mapping[str, float], step: int, limits: Limits) -> None:
    """Raise ``CanaryError`` for every number of the step that is outside its limit, NaN included."""
    problems = [
        f"canary {name} = {value:.6g} at step {step}, outside [{low:.6g}, {high:.6g}]\n  usual causes: {CAUSES[name]}"
        for name, value, low, high in _watched(metrics, step, limits)
        if not low <= value <= high
    ]
    if problems:
        raise CanaryError("\n".join(problems))


def _watched(metrics: Mapping[str, float], step: int, limits: Limits) -> Iterator[tuple[str, float, float, float]]:
    """(name, value, lowest, highest) of what the step measured."""
    infinity = float("inf")
    ranges = {
        "rollout/logprob_gap_mean": (0.0, limits.gap),
        "first_pass/ratio": (1 - limits.ratio, 1 + limits.ratio),
        "first_pass/approxkl": (0.0, limits.ratio),
        "first_pass/clipfrac": (0.0, limits.clipfrac),
        "rollout/staleness_mean": (0.0, limits.staleness),
        "objective/kl": (limits.min_kl, infinity if limits.max_kl is None else limits.max_kl),
    }
    if metrics.get("rollout/staleness_mean"):  # other weights sampled than score: the gap is what training moved them
        del ranges["rollout/logprob_gap_mean"]
    if step == 0:
        ranges["objective/logratio_abs_mean"] = (0.0, limits.step0_kl)
    for name, (low, high) in ranges.items():
        if name in metrics:
            yield name, metrics[name], low, high
