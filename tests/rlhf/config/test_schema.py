"""Rules of one section alone, as ``load_recipe`` reports them. Constructed in Python such a section is a
``ValidationError``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rlhf.config.fields import defaults_of
from rlhf.config.load import load_recipe
from rlhf.config.schema import (
    TRAINED,
    AlgorithmConfig,
    DataConfig,
    EarlyStopConfig,
    EndpointConfig,
    RewardSourceConfig,
    TrackingConfig,
)
from rlhf.errors import UserError

URL = "http://127.0.0.1:8000/score"
NO_ADDRESS = ["", "somewhere", "ftp://host/x", "file:///etc/passwd", "http://", "http:///score", "http://host:port/"]
NO_ADDRESS += ["//host/x", "http://host:70000/", "http://host:0/", "http://a host/", "http://[::1/score"]
NO_ADDRESS += ["javascript:alert(1)", "http://[v1.x]/score", "http://256.1.1.1/score", "http://a/\x7f", "grpc://a:4317"]


def said(tmp_path: Path, *overrides: str, **settings: Any) -> str:
    """What a user is told; nothing where the recipe loads."""
    (tmp_path / "run.yaml").write_text(yaml.dump({"name": "a", **settings}))
    try:
        load_recipe(tmp_path / "run.yaml", overrides)
    except UserError as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"function": "judge.py:f", "label": 1}, "rewards.a.label = 1 and no model folder"),
        ({"function": "judge.py:f", "max_length": 9}, "rewards.a.max_length = 9 and no model folder"),
        ({"model": TRAINED, "label": "good"}, "rewards.a.label = 'good' and rewards.a.model = 'trained'"),
        ({"model": "model", "label": 0, "max_length": 9}, ""),
        ({"model": TRAINED, "max_length": 9}, ""),
    ],
)
def test_label_and_length_are_about_a_model_folder(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    found = said(tmp_path, rewards={"a": source})
    assert message in found and bool(message) == bool(found)


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ({}, "none of model, function, endpoint"),
        ({"weight": 2}, "none of model, function, endpoint"),
        ({"model": TRAINED, "function": "judge.py:f"}, "model and function of"),
        ({"function": "judge.py:f", "endpoint": {"url": URL}}, "function and endpoint of"),
        ({"model": "m", "function": "judge.py:f", "endpoint": {"url": URL}}, "model and function and endpoint of"),
    ],
)
def test_a_part_is_exactly_one_thing(tmp_path: Path, source: dict[str, Any], has: str) -> None:
    message = said(tmp_path, rewards={"x": source}, early_stop={"scorer": source})
    assert f"rewards.x has {has}" in message and f"early_stop.scorer has {has}" in message
    with pytest.raises(ValidationError, match="this has"):
        RewardSourceConfig(**source)


def test_an_early_stop_has_a_scorer_and_an_endpoint_an_address(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        EarlyStopConfig()
    message = said(tmp_path, "rewards.x.endpoint.retries=1", early_stop={"every": 3})
    assert f"{tmp_path}/run.yaml:1: early_stop.scorer is missing" in message
    assert "command line: rewards.x.endpoint.url is missing" in message


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a.b", "ä", "x" * 61, "a\n"])
def test_names_that_no_metric_can_have(tmp_path: Path, name: str) -> None:
    source = {"function": "judge.py:f"}
    message = said(tmp_path, rewards={name: source, "fine": source, "not fine": source})
    assert f"rewards has a part named {name!r}" in message and "rewards has a part named 'not fine'" in message


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_addresses_that_no_service_has(tmp_path: Path, url: str) -> None:
    message = said(
        tmp_path,
        rewards={"x": {"endpoint": {"url": url}}},
        early_stop={"scorer": {"endpoint": {"url": url}}},
        tracking={"opentelemetry": url},
    )
    assert f"rewards.x.endpoint.url = {url!r} is no address of a service" in message
    assert f"early_stop.scorer.endpoint.url = {url!r} is no address of a service" in message
    assert f"tracking.opentelemetry = {url!r} is no address of a collector" in message
    assert "tracking.opentelemetry=http://127.0.0.1:4318" in message
    assert "rewards.x.endpoint.url=http://127.0.0.1:8000/score, or https://..." in message


@pytest.mark.parametrize("url", ["http://127.0.0.1:4318", "https://collector.example/otlp", "http://[::1]:4318/"])
def test_addresses_that_are_taken(url: str) -> None:
    assert TrackingConfig(opentelemetry=url).opentelemetry == EndpointConfig(url=url).url == url
    assert EndpointConfig(url=f"{url}?model=small").url


def test_spans_have_no_query_in_their_address(tmp_path: Path) -> None:
    message = said(tmp_path, tracking={"opentelemetry": "ftp://a:hunter22@b?c=d"})
    assert "is no address of a collector" in message and "hunter22" not in message
    assert "is no address of a collector" in said(tmp_path, tracking={"opentelemetry": "http://a?b=c"})


def test_a_broken_rule_is_placed_at_its_key_and_reported_with_all_others(tmp_path: Path) -> None:
    message = said(
        tmp_path,
        "algorithm.missing_eos=subtract",
        algorithm={"missing_eos_penalty": None, "target_kl": 0.1, "epochs": 1},
        ppo={"steps": 0},
    )
    assert "command line: algorithm.missing_eos = subtract with" in message
    assert f"{tmp_path}/run.yaml:4: algorithm.target_kl = 0.1 with a single update" in message
    assert "ppo.steps = 0 is out of range" in message and "3 problems" in message


@pytest.mark.parametrize(
    ("name", "fix"),
    [("objective/rlhf_rewards", "checkpoint.best_metric=objective/rlhf_reward"), ("x", "docs/metrics.md")],
)
def test_the_metric_that_ranks_checkpoints_is_one_of_the_table(tmp_path: Path, name: str, fix: str) -> None:
    message = said(tmp_path, f"checkpoint.best_metric={name}")
    assert f"checkpoint.best_metric = '{name}' is no metric" in message and fix in message


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"loss": "kto", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "orpo", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "orpo", "undesirable_weight": 0.5}, "undesirable_weight"),
        ({"loss": "dpo", "desirable_weight": 2.0}, "desirable_weight"),
        ({"undesirable_weight": 0.5}, "undesirable_weight"),
    ],
)
def test_settings_of_the_other_loss_are_refused(tmp_path: Path, settings: dict[str, Any], key: str) -> None:
    assert f"dpo.{key}" in said(tmp_path, dpo=settings)
    assert "has no effect with dpo.loss" in said(tmp_path, dpo=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dense"}, "retrieval.method = 'dense' and no retrieval.encoder"),
        ({"encoder": "e"}, "retrieval.encoder = 'e' has no effect"),
        ({"method": "dense", "encoder": "e"}, ""),
        ({}, ""),
    ],
)
def test_an_encoder_belongs_to_dense_retrieval(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    found = said(tmp_path, retrieval=settings)
    assert message in found and bool(message) == bool(found)


def test_a_fix_restores_the_default_of_a_key_that_a_file_may_have() -> None:
    assert defaults_of(DataConfig, "data", ["columns", "ignore", "format", "max_rows"]) == (
        "data.columns={} data.ignore=[] data.format=auto data.max_rows=null"
    )
    with pytest.raises(ValidationError) as refused:
        AlgorithmConfig(name="dr_grpo", whiten_advantages=True)
    assert "fix: algorithm.whiten_advantages=null, or use grpo" in str(refused.value)
