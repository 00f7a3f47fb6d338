"""The reconciler and the servers that it starts: checks before a switch, drains, restarts, and what is not served."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

import launch.serve.reconciler
from launch.serve.engine_process import EngineProcess
from launch.serve.metrics import GatewayMetrics
from launch.serve.reconciler import Reconciler
from launch.serve.roles import Roles
from launch.serve.upstream import Upstream
from rlhf.ports import free_port
from rlhf.serving.artefact import ServingStage
from rlhf.serving.gateway_config import GatewayConfig, ServedEnginesConfig, UpstreamTimeouts
from rlhf.serving.registry import Registry
from tests.launch.serve.live import MODEL, bring, register

PRODUCTION, CANARY = ServingStage.PRODUCTION, ServingStage.CANARY
DELAY = 0.6
"""Seconds until a started server listens."""


class Started:
    """Reconciles with stub engines in place of vLLM, which begin to listen after a while."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder, self.started = folder, list[tuple[str, tuple[int, ...]]]()
        self.registry = Registry.create(folder / "registry.db")
        engines = ServedEnginesConfig(**{"logs": str(folder), "start_seconds": 20.0, "stop_seconds": 2.0, **changes})  # type: ignore[arg-type]
        timeouts = UpstreamTimeouts(drain_seconds=5.0)
        self.config = GatewayConfig(registry="", model=MODEL, engines=engines, timeouts=timeouts)
        self.metrics = GatewayMetrics(lambda: 0.0, lambda: 0.0)
        self.roles = Roles(self.config, self.metrics, time.monotonic)
        self.model = MODEL

    def start(
        self, config: ServedEnginesConfig, model: str, version: str, folder: Path, gpus: Sequence[int]
    ) -> EngineProcess:
        """As ``start_engine``."""
        self.started.append((version, tuple(gpus)))
        port = free_port()
        stub = ["-m", "benchmarks.stub_engine", "--port", str(port), "--name", version, "--model", self.model]
        words = f"import time, runpy, sys; time.sleep({DELAY}); sys.argv[1:] = {stub[2:]!r}; "
        code = f"{words}runpy.run_module('benchmarks.stub_engine', run_name='__main__')"
        return EngineProcess([sys.executable, "-c", code], port, folder.parent / f"{version}.log", 2.0, gpus)

    def run(self, work: Callable[[Reconciler, Upstream], Awaitable[None]]) -> None:
        async def whole() -> None:
            upstream = Upstream(1.0)
            upstream.open()
            reconciler = Reconciler(self.config, self.registry, self.roles, self.metrics, upstream)
            try:
                await work(reconciler, upstream)
            finally:
                await reconciler.close()
                await upstream.close()

        asyncio.run(whole())

    async def until(self, reconciler: Reconciler, is_true: Callable[[], bool]) -> None:
        """Tick until something is true."""
        end = time.monotonic() + 20
        while not is_true():
            assert time.monotonic() < end
            await reconciler.tick()
            await asyncio.sleep(0.05)

    def serves(self, stage: str, version: str | None) -> Callable[[], bool]:
        def is_so() -> bool:
            arm = getattr(self.roles, stage)
            return (arm.version if arm else None) == version

        return is_so


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    made = Started(tmp_path)
    monkeypatch.setattr(launch.serve.reconciler, "start_engine", lambda *given: made.start(*given))
    yield made
    made.registry.close()


def test_a_version_is_served_when_its_server_answers_and_the_former_one_is_drained(here: Started) -> None:
    for name in ("one", "two"):
        register(here.registry, here.folder, name)
    bring(here.registry, "one", PRODUCTION)

    async def work(reconciler: Reconciler, upstream: Upstream) -> None:
        await here.until(reconciler, here.serves("production", "one"))
        former = here.roles.production
        assert former is not None and former.process is not None
        status, _ = await upstream.get(f"{former.urls[0]}/health", 1.0)
        assert status == 200  # it answered before it was put into service
        former.in_flight["x"] = 1  # an answer in progress
        bring(here.registry, "two", PRODUCTION)
        await here.until(reconciler, here.serves("production", "two"))
        present = here.roles.production
        assert present is not None
        assert (await upstream.get(f"{present.urls[0]}/health", 1.0))[0] == 200
        await reconciler.tick()
        await asyncio.sleep(0.5)
        assert former.is_running
        former.in_flight["x"] = 0
        await here.until(reconciler, lambda: not former.is_running)

    here.run(work)


def test_a_server_that_ends_is_started_again_and_a_promoted_canary_keeps_its_own(here: Started) -> None:
    for name in ("one", "two"):
        register(here.registry, here.folder, name)
    bring(here.registry, "one", PRODUCTION)
    bring(here.registry, "two", CANARY)

    async def work(reconciler: Reconciler, _: Upstream) -> None:
        await here.until(reconciler, lambda: here.roles.production is not None and here.roles.canary is not None)
        canary = here.roles.canary
        first = here.roles.production
        assert first is not None and first.process is not None
        os.killpg(first.process._process.pid, signal.SIGKILL)
        await here.until(reconciler, lambda: here.roles.production is None)
        await here.until(reconciler, here.serves("production", "one"))
        assert sorted(version for version, _ in here.started) == ["one", "one", "two"]
        bring(here.registry, "two", PRODUCTION)
        await here.until(reconciler, here.serves("production", "two"))
        assert here.roles.production is canary
        assert here.roles.canary is None
        assert len(here.started) == 3

    here.run(work)


def test_changed_files_and_another_public_name_are_not_served(
    here: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    register(here.registry, here.folder, "one")
    bring(here.registry, "one", PRODUCTION)
    (here.folder / "one" / "model.safetensors").write_text("other weights")

    async def work(reconciler: Reconciler, _: Upstream) -> None:
        failures = here.metrics.failures.labels("start")
        await here.until(reconciler, lambda: failures._value.get() == 1)
        assert here.started == []

    here.run(work)
    assert "is not what was registered" in capsys.readouterr().err
    (here.folder / "one" / "model.safetensors").write_text("one")
    here.model = "another"
    here.config = GatewayConfig(
        registry="", model=MODEL, engines=ServedEnginesConfig(logs=str(here.folder), start_seconds=3.0)
    )
    here.run(work_until_failure(here))
    assert "serves another, not travel" in capsys.readouterr().err
    assert here.roles.production is None


def work_until_failure(here: Started) -> Callable[[Reconciler, Upstream], Awaitable[None]]:
    async def work(reconciler: Reconciler, _: Upstream) -> None:
        failures = here.metrics.failures.labels("start")
        await here.until(reconciler, lambda: failures._value.get() == 2)

    return work


def test_each_server_gets_gpus_of_its_own_and_waits_for_free_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Started(tmp_path, gpus=((0, 1),))
    monkeypatch.setattr(launch.serve.reconciler, "start_engine", lambda *given: here.start(*given))
    for name in ("one", "two"):
        register(here.registry, here.folder, name)
    bring(here.registry, "one", PRODUCTION)

    async def work(reconciler: Reconciler, _: Upstream) -> None:
        await here.until(reconciler, here.serves("production", "one"))
        bring(here.registry, "two", CANARY)
        failures = here.metrics.failures.labels("start")
        await here.until(reconciler, lambda: failures._value.get() == 1)
        assert here.started == [("one", (0, 1))]

    here.run(work)
    assert "all 1 entries of engines.gpus are in use" in capsys.readouterr().err
