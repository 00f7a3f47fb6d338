"""What the gateway costs: streams through it beside streams from the engine itself, and requests with a shadow.

``python -m benchmarks.gateway --streams 200`` starts a stub engine and the gateway as processes and prints one line of
JSON. Every round asks the engine directly and then through the gateway, so that the ratio of a round has the same
machine on both sides; shadow's latency is the median difference of pairs of requests to two gateways, one of which has
a shadow. ``--clients`` compares the CPU time of aiohttp and httpx for each piece of a stream instead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import yaml

from rlhf.ports import free_port
from rlhf.serving.api_keys import add_key
from rlhf.serving.artefact import STEPS, ServingStage
from rlhf.serving.gate_result import GateOutcome, GateResult
from rlhf.serving.registry import Registry

MODEL = "travel"
START_SECONDS = 60.0
CHAT = "/v1/chat/completions"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="concurrent streams")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each stream")
    parser.add_argument("--interval", type=float, default=0.05, help="seconds between two tokens of the engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=500, help="pairs of requests, with and without a shadow")
    parser.add_argument("--clients", action="store_true", help="compare aiohttp with httpx")
    chosen = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if chosen.clients:
            print(json.dumps(compare_clients(stack, chosen.streams, chosen.tokens)))
        else:
            print(json.dumps(measure(stack, folder, chosen)))


def measure(stack: ExitStack, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """The numbers of the line: seconds, their ratios, and the gateway's CPU time for each token."""
    engine = stack.enter_context(_engine(chosen.tokens, chosen.interval))
    quick = [stack.enter_context(_engine(8, 0.0)) for _ in range(2)]
    key = add_key(folder / "keys.jsonl", "benchmark")
    plain = stack.enter_context(_gateway(folder, "plain", [engine], key))
    without = stack.enter_context(_gateway(folder, "without", [quick[0]], key))
    with_shadow = stack.enter_context(_gateway(folder, "with", quick, key))
    asyncio.run(_stream_all(engine, "", chosen.streams))  # every process has opened its connections
    asyncio.run(_stream_all(plain.url, key, chosen.streams))
    rounds, before = [], plain.cpu_seconds()
    for _ in range(chosen.rounds):
        direct = asyncio.run(_stream_all(engine, "", chosen.streams))
        through = asyncio.run(_stream_all(plain.url, key, chosen.streams))
        rounds.append((direct, through))
    cpu = plain.cpu_seconds() - before
    ratios = [through / direct for direct, through in rounds]
    differences = asyncio.run(_pairs(without.url, with_shadow.url, key, chosen.pairs))
    return {
        "streams": chosen.streams,
        "tokens": chosen.tokens,
        "interval": chosen.interval,
        "direct_seconds": round(statistics.median(direct for direct, _ in rounds), 4),
        "gateway_seconds": round(statistics.median(through for _, through in rounds), 4),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "cpu_us_per_token": round(1e6 * cpu / (chosen.rounds * chosen.streams * chosen.tokens), 1),
        "shadow_added_ms_median": round(1e3 * statistics.median(differences), 3),
        "shadow_added_ms_p95": round(1e3 * statistics.quantiles(differences, n=20)[18], 3),
        "pairs": chosen.pairs,
    }


def compare_clients(stack: ExitStack, streams: int, tokens: int) -> dict[str, float]:
    """CPU time of this process for each piece, in µs, by client."""
    engine = stack.enter_context(_engine(tokens, 0.02))
    found = {}
    for name, ask in (("aiohttp", _stream_all), ("httpx", _stream_by_httpx)):
        asyncio.run(ask(engine, "", streams))
        begin = time.process_time()
        asyncio.run(ask(engine, "", streams))
        found[f"{name}_us_per_piece"] = round(1e6 * (time.process_time() - begin) / (streams * tokens), 1)
    return found


class _Gateway:
    """A running gateway."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url, self._process = url, process

    def cpu_seconds(self) -> float:
        """CPU time so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)


@contextmanager
def _engine(tokens: int, interval: float) -> Iterator[str]:
    port = free_port()
    options = ["--port", str(port), "--model", MODEL, "--tokens", str(tokens), "--interval", str(interval)]
    with _running([sys.executable, "-m", "benchmarks.stub_engine", *options], f"http://127.0.0.1:{port}/health", {}):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _gateway(folder: Path, name: str, engines: Sequence[str], key: str) -> Iterator[_Gateway]:
    """A gateway with a production model, and a shadow if there is a second engine."""
    port, urls = free_port(), {}
    with Registry.create(folder / f"{name}.db") as registry:
        for version, url, stage in zip(("one", "two"), engines, (ServingStage.PRODUCTION, ServingStage.SHADOW)):
            _register(registry, folder / name / version, version, stage)
            urls[version] = [url]
    file = folder / f"{name}.yaml"
    settings = {"registry": f"{name}.db", "model": MODEL, "keys": "keys.jsonl"}
    more = {"listen": {"port": port}, "engines": {"urls": urls}, "shadow": {"waiting": 1000}}
    file.write_text(yaml.safe_dump({**settings, **more}))
    command = [sys.executable, "-m", "launch.cli", "serve", str(file)]
    headers = {"Authorization": f"Bearer {key}"}
    with _running(command, f"http://127.0.0.1:{port}/ready", headers) as process:
        yield _Gateway(f"http://127.0.0.1:{port}", process)


def _register(registry: Registry, folder: Path, version: str, to: ServingStage) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(version)
    artefact = registry.register(version, folder, who="benchmark", why="benchmark")
    for number, stage in enumerate(STEPS[1 : STEPS.index(to) + 1]):
        digest = f"{version}-{number}"
        gate = GateResult(outcome=GateOutcome.PASS, for_stage=str(stage), artefact=artefact.digest, digest=digest)
        registry.promote(version, stage, gate, who="benchmark", why="benchmark")


@contextmanager
def _running(command: Sequence[str], url: str, headers: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers at ``url``."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    end = time.monotonic() + START_SECONDS
    try:
        while not _is_up(url, headers):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command)} did not start")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait()


def _is_up(url: str, headers: dict[str, str]) -> bool:
    try:
        return httpx.get(url, headers=headers).status_code == 200
    except httpx.TransportError:
        return False


def _body(is_stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": is_stream}


async def _stream_all(url: str, key: str, streams: int) -> float:
    """Seconds until all of the concurrent streams are complete."""
    headers = {"Authorization": f"Bearer {key}"}

    async def read(client: aiohttp.ClientSession) -> None:
        last = b""
        async with client.post(url + CHAT, json=_body(True), headers=headers) as answer:
            async for piece in answer.content.iter_any():
                last = piece
        if not last.endswith(b"data: [DONE]\n\n"):
            raise SystemExit("a stream broke off")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        begin = time.perf_counter()
        await asyncio.gather(*(read(client) for _ in range(streams)))
        return time.perf_counter() - begin


async def _stream_by_httpx(url: str, key: str, streams: int) -> float:
    """As ``_stream_all``, by the other client."""
    limits = httpx.Limits(max_connections=streams)

    async def read(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", url + CHAT, json=_body(True)) as answer:
            async for _ in answer.aiter_raw():
                pass

    async with httpx.AsyncClient(limits=limits, timeout=None) as client:
        begin = time.perf_counter()
        await asyncio.gather(*(read(client) for _ in range(streams)))
        return time.perf_counter() - begin


async def _pairs(without: str, with_shadow: str, key: str, pairs: int) -> list[float]:
    """Seconds that a request takes longer with a shadow; which one comes first changes from pair to pair."""
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as client:

        async def seconds(url: str) -> float:
            begin = time.perf_counter()
            async with client.post(url + CHAT, json=_body(False), headers=headers) as answer:
                await answer.read()
            return time.perf_counter() - begin

        found = []
        for number in range(pairs + 20):
            order = (without, with_shadow) if number % 2 else (with_shadow, without)
            taken = {url: await seconds(url) for url in order}
            if number >= 20:
                found.append(taken[with_shadow] - taken[without])
        return found


if __name__ == "__main__":
    main()
