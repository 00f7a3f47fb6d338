"""A gateway over real sockets: stub engines and the gateway as processes, a registry of small artefacts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from rlhf.ports import free_port
from rlhf.serving.api_keys import add_key
from rlhf.serving.artefact import STEPS, ServingStage
from rlhf.serving.gate_result import GateOutcome, GateResult
from rlhf.serving.registry import Registry

ROOT = Path(__file__).parents[3]
SECONDS = 30.0
MODEL = "travel"
CLIENT = httpx.Client(verify=False, limits=httpx.Limits(max_keepalive_connections=0), timeout=SECONDS)
"""Of all requests: a new client costs more time than a request."""
BY = {"who": "a test", "why": "a test"}


@dataclass(kw_only=True)
class Stub:
    """A running stub engine."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def behave(self, mode: str) -> None:
        CLIENT.post(f"{self.url}/control", json={"mode": mode}).raise_for_status()

    @property
    def control(self) -> dict[str, Any]:
        found: dict[str, Any] = CLIENT.get(f"{self.url}/control").json()
        return found

    @property
    def requests(self) -> int:
        return int(self.control["requests"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(kw_only=True)
class Site:
    """A folder with a registry and the stubs of its versions."""

    folder: Path
    registry: Registry
    stubs: dict[str, Stub] = field(default_factory=dict)
    key: str = ""

    def stub(self, name: str, *options: str) -> Stub:
        """Start a stub and register a version that it serves."""
        self.stubs[name] = start_stub(name, *options)
        register(self.registry, self.folder, name)
        return self.stubs[name]

    def config(self, **changes: Any) -> Path:
        """Write the gateway's file."""
        urls = {name: [stub.url] for name, stub in self.stubs.items()}
        settings: dict[str, Any] = {
            "registry": "registry.db",
            "model": MODEL,
            "keys": "keys.jsonl",
            "poll_seconds": 0.1,
            "listen": {"port": free_port()},
            "engines": {"urls": urls},
            "timeouts": {"grace_seconds": 5, "drain_seconds": 5},
            **changes,
        }
        file = self.folder / "gateway.yaml"
        file.write_text(yaml.safe_dump(settings))
        return file


def start_stub(name: str, *options: str) -> Stub:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.stub_engine", "--port", str(port), "--name", name, *options]
    stub = Stub(name=name, port=port, process=subprocess.Popen(command, cwd=ROOT))
    wait_for(lambda: get(f"{stub.url}/health") == 200, f"{name} starts")
    return stub


def get(url: str, **options: Any) -> int:
    """Status of a page; 0 if nobody answers."""
    try:
        return CLIENT.get(url, **options).status_code
    except httpx.TransportError:
        return 0


def register(registry: Registry, folder: Path, name: str) -> None:
    place = folder / name
    place.mkdir()
    (place / "model.safetensors").write_text(name)
    registry.register(name, place, **BY)


def bring(registry: Registry, version: str, to: ServingStage) -> None:
    """Promote a version through every step up to a stage."""
    artefact = registry.artefact(version)
    for stage in STEPS[STEPS.index(artefact.stage) + 1 : STEPS.index(to) + 1]:
        gate = GateResult(
            outcome=GateOutcome.PASS,
            for_stage=str(stage),
            artefact=artefact.digest,
            digest=f"{time.monotonic_ns():064x}",
        )
        registry.promote(version, stage, gate, **BY)


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    with Registry.create(folder / "registry.db") as registry:
        made = Site(folder=folder, registry=registry, key=add_key(folder / "keys.jsonl", "app"))
        try:
            yield made
        finally:
            for stub in made.stubs.values():
                stub.kill()


@dataclass(kw_only=True)
class LiveGateway:
    """A running gateway."""

    url: str
    key: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def get(self, path: str) -> httpx.Response:
        return CLIENT.get(f"{self.url}{path}", headers=self.headers, timeout=SECONDS)

    def chat(self, text: str = "Hi", *, conversation: str = "", **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
        named = {"X-Conversation-Id": conversation} if conversation else {}
        return CLIENT.post(
            f"{self.url}/v1/chat/completions", json=body, headers={**self.headers, **named}, timeout=SECONDS
        )

    def serving(self) -> Mapping[str, str | None]:
        found: dict[str, str | None] = self.get("/ready").json()
        return found

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line[len(name)] in " {" and all(each in line for each in wanted)
        )

    def output(self) -> str:
        return self.log.read_text()


@contextmanager
def gateway(site: Site, waits: bool = True, **changes: Any) -> Iterator[LiveGateway]:
    """Run ``rlhf serve`` in a process; stopped by SIGTERM, which it must obey with exit code 0."""
    file = site.config(**changes)
    port = yaml.safe_load(file.read_text())["listen"]["port"]
    log = site.folder / "gateway.out"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "serve", str(file)], cwd=ROOT, stdout=output, stderr=output, text=True
        )
    live = LiveGateway(url=f"http://127.0.0.1:{port}", key=site.key, process=process, log=log)
    try:
        wait_for(lambda: get(f"{live.url}/health", headers=live.headers) == 200, "the gateway starts", live)
        if waits:
            wait_for(lambda: get(f"{live.url}/ready", headers=live.headers) == 200, "production is in service", live)
        yield live
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0, live.output()
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(
    is_true: Callable[[], object], what: str, live: LiveGateway | None = None, seconds: float = SECONDS
) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert live is None or live.process.poll() is None, live.output()
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{live.output() if live else ''}"
        time.sleep(0.05)
