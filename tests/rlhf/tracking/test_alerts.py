from __future__ import annotations

import pytest

from rlhf.config.schema import AlertConfig
from rlhf.tracking.alerts import Alerts

KL, LENGTH, ENTROPY, RESTARTS = "objective/kl", "rollout/length_mean", "policy/entropy_avg", "health/restarts"


def raised(alerts: Alerts, name: str, values: list[float | None], first: int = 0) -> list[tuple[int, str]]:
    """(step, kind) of the warnings over steps that have one metric."""
    return [(s, a.kind) for s, value in enumerate(values, first) for a in alerts.observe(s, {name: value})]


@pytest.mark.parametrize(
    ("config", "max_kl", "limit"),
    [(AlertConfig(max_kl=3.0), 10.0, 3.0), (AlertConfig(), 10.0, 8.0), (AlertConfig(), None, None)],
)
def test_the_limit_of_the_kl_is_the_recipes_or_below_that_of_the_canary(
    config: AlertConfig, max_kl: float | None, limit: float | None
) -> None:
    alerts = Alerts(config, max_kl)
    assert alerts.kl_limit == limit
    assert raised(alerts, KL, [limit or 1e9, None]) == []
    assert raised(alerts, KL, [(limit or 0.0) + 0.01], first=2) == ([(2, "kl")] if limit else [])


def test_a_warning_of_one_kind_is_not_repeated_for_a_while_and_does_not_hold_back_another() -> None:
    alerts = Alerts(AlertConfig(max_kl=1.0, repeat_steps=10), None)
    assert raised(alerts, KL, [2.0] * 25) == [(0, "kl"), (10, "kl"), (20, "kl")]
    assert raised(alerts, RESTARTS, [1.0], first=25) == [(25, "restarts")]


@pytest.mark.parametrize(("name", "kind"), [(LENGTH, "length"), (ENTROPY, "entropy")])
def test_a_collapse_is_measured_against_the_mean_of_the_first_five_steps(name: str, kind: str) -> None:
    alerts = Alerts(AlertConfig(length_share=0.5, entropy_share=0.5), None)
    assert raised(alerts, name, [8.0, None, 12.0, 8.0, 12.0, 10.0, 5.0, 4.9]) == [(7, kind)]


def test_a_step_that_is_done_again_counts_once_in_the_baseline() -> None:
    alerts = Alerts(AlertConfig(length_share=0.5), None)
    raised(alerts, LENGTH, [100.0])
    assert raised(alerts, LENGTH, [10.0] * 5 + [5.1, 4.9]) == [(6, "length")]


def test_restarts_are_counted_from_the_last_warning() -> None:
    alerts = Alerts(AlertConfig(restarts=2, repeat_steps=1), None)
    assert raised(alerts, RESTARTS, [0.0, 1.0, 2.0, 3.0, 3.0, 4.0]) == [(2, "restarts"), (5, "restarts")]


def test_a_disabled_alert_is_not_raised() -> None:
    alerts = Alerts(AlertConfig(length_share=0.0, entropy_share=0.0, restarts=0), None)
    assert raised(alerts, LENGTH, [10.0] * 5 + [0.0]) == []
    assert raised(alerts, ENTROPY, [1.0] * 5 + [0.0]) == []
    assert raised(alerts, RESTARTS, [9.0]) == []


def test_the_text_names_the_metric_and_its_value() -> None:
    (alert,) = Alerts(AlertConfig(max_kl=5.0), None).observe(3, {KL: 6.25})
    assert alert.text == "step 3: objective/kl is 6.25 nats per response, above 5"
