from __future__ import annotations

import pytest

from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.config.tracking_rules import check_tracking


def problems(endpoint: str | None) -> list[str]:
    recipe = Recipe(name="x", tracking=TrackingConfig(opentelemetry=endpoint))
    return [str(problem) for problem in check_tracking(recipe)]


@pytest.mark.parametrize(
    "endpoint", [None, "http://127.0.0.1:4318", "https://collector.example/otlp", "http://[::1]:4318/"]
)
def test_addresses_of_collectors_are_taken(endpoint: str | None) -> None:
    assert problems(endpoint) == []


@pytest.mark.parametrize(
    "endpoint", ["", "127.0.0.1:4318", "grpc://a:4317", "http://", "http://a:99999", "http://a b", "http://a?b=c"]
)
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    (problem,) = problems(endpoint)
    assert "is no address of a collector" in problem
    assert "tracking.opentelemetry=http://127.0.0.1:4318" in problem


def test_a_password_is_refused_and_not_repeated() -> None:
    (problem,) = problems("https://me:open-sesame@collector.example")
    assert "OTEL_EXPORTER_OTLP_HEADERS" in problem
    assert "open-sesame" not in problem
