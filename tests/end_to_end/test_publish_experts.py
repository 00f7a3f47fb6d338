"""A mixture of experts is published to a real engine, which stores experts and router in another form."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from rlhf.config.schema import RolloutConfig
from rlhf.device import engine_environment
from rlhf.zero.process_group import Rank
from tests.models_page import publish


def test_the_engine_computes_with_the_experts_that_it_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log-probabilities show it: the fingerprint does not depend on the order of a layer's numbers."""
    for name, value in engine_environment("cpu", RolloutConfig(enforce_eager=True), None).items():
        monkeypatch.setenv(name, value)
    meeting = (tmp_path / "meeting").as_uri()
    rank = Rank(rank=0, world=1, rendezvous=meeting, device="cpu", threads=1, timeout_seconds=60.0)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as trainer:
        published = publish("Qwen 3 MoE", tmp_path / "model", trainer, rank)
    assert not published.why
    assert not published.differences
    assert published.gap < 1e-5  # with the experts of another layout 0.2
