"""Brings the arms in service to what the registry says: starts, checks, switches, drains, and reports a broken KPI.

Every second the present is compared with what is wanted, so that nothing depends on having seen each change. A new
version gets requests only when its server answers; until then the former one keeps them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress

from launch.serve.engine_process import start_engine
from launch.serve.metrics import GatewayMetrics
from launch.serve.roles import STAGES, Roles
from launch.serve.upstream import Arm, Upstream, UpstreamFailure
from rlhf.errors import MachineryError, RLHFError
from rlhf.serving.artefact import Artefact, ServingState
from rlhf.serving.gateway_config import GatewayConfig
from rlhf.serving.registry import Registry

WHO = "gateway"
"""Who withdraws a canary, in the registry's audit."""
HEALTH_SECONDS, PROBE_SECONDS = 5.0, 60.0
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds after a failed start, doubled after each further one."""


class Reconciler:
    """The arms of all versions that are wanted or still answer."""

    def __init__(
        self, config: GatewayConfig, registry: Registry, roles: Roles, metrics: GatewayMetrics, upstream: Upstream
    ) -> None:
        self._config, self._registry, self._roles = config, registry, roles
        self._metrics, self._upstream = metrics, upstream
        self._state: ServingState | None = None
        self._arms: dict[str, Arm] = {}
        """Healthy arms by digest."""
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self._retry: dict[str, tuple[float, float]] = {}
        """Digest → time of the next start after a failed one, and the wait after the next failure."""
        self._all: list[Arm] = []
        """Every arm whose server may run, to stop it at the end."""
        self._wake = asyncio.Event()
        roles.on_return = lambda arm, breach: self._wake.set()

    async def run(self) -> None:
        """Compare and change, every ``poll_seconds`` and after a broken KPI, until cancelled.

        A failure that lasts is counted every time and printed once.
        """
        printed = ""
        while True:
            try:
                await self.tick()
                printed = ""
            except Exception as error:  # users keep what is in service
                message = f"{type(error).__name__}: {error}"
                self._report("registry", "" if message == printed else message)
                printed = message
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._config.poll_seconds)
            self._wake.clear()

    async def tick(self) -> None:
        """One comparison.

        Raises:
            RLHFError: the registry cannot be read or written.
        """
        state = await asyncio.to_thread(self._read)
        if await self._withdraw_returned(state):
            state = await asyncio.to_thread(self._read)
        self._metrics.revision.set(state.revision)
        wanted = self._wanted(state)
        self._end_service(wanted)
        for artefact in {each.digest: each for each in wanted.values()}.values():
            if artefact.digest not in self._arms:
                self._start(artefact)
        for stage, artefact in wanted.items():
            if artefact.digest in self._arms:
                self._put_in_service(stage, self._arms[artefact.digest])
        self._drain_unwanted({artefact.digest for artefact in wanted.values()})

    async def close(self) -> None:
        """Stop all servers that the gateway started."""
        for task in (*self._starting.values(), *self._draining):
            task.cancel()
        await asyncio.gather(*self._starting.values(), *self._draining, return_exceptions=True)
        await asyncio.gather(*(arm.process.stop() for arm in self._all if arm.process))

    def _read(self) -> ServingState:
        """What is served; the audit is read only if it has grown."""
        if self._state is None or self._registry.revision() != self._state.revision:
            self._state = self._registry.serving()
        return self._state

    async def _withdraw_returned(self, state: ServingState) -> bool:
        """Tell the registry of canaries that broke a KPI; returns whether it was told anything."""
        told = False
        for digest, breach in list(self._roles.returned.items()):
            if state.canary is not None and state.canary.digest == digest:
                version, why = state.canary.version, str(breach)
                await asyncio.to_thread(self._registry.withdraw, version, who=WHO, why=why)
                print(f"{version} is withdrawn: {why}", file=sys.stderr, flush=True)
                told = True
            del self._roles.returned[digest]
        return told

    def _wanted(self, state: ServingState) -> dict[str, Artefact]:
        found = {stage: getattr(state, stage) for stage in STAGES}
        return {
            stage: artefact
            for stage, artefact in found.items()
            if artefact is not None and not (stage == "canary" and artefact.digest in self._roles.returned)
        }

    def _end_service(self, wanted: dict[str, Artefact]) -> None:
        """End at once what is not wanted or has ended, but not production: it stays until the next one is there."""
        self._arms = {digest: arm for digest, arm in self._arms.items() if arm.is_running}
        for stage in STAGES:
            arm: Arm | None = getattr(self._roles, stage)
            if arm is None:
                continue
            is_wanted = stage in wanted and wanted[stage].digest == arm.digest
            if not arm.is_running or not (is_wanted or stage == "production"):
                self._roles.set(stage, None)

    def _put_in_service(self, stage: str, arm: Arm) -> None:
        if getattr(self._roles, stage) is not arm:
            self._roles.set(stage, arm)
            print(f"{arm.version} is in service as {stage}", flush=True)

    def _start(self, artefact: Artefact) -> None:
        at, _ = self._retry.get(artefact.digest, (0.0, 0.0))
        if artefact.digest not in self._starting and time.monotonic() >= at:
            self._starting[artefact.digest] = asyncio.create_task(self._bring_up(artefact))

    async def _bring_up(self, artefact: Artefact) -> None:
        """Start a version's server, or connect to it, and wait until it answers."""
        arm: Arm | None = None
        try:
            arm = await self._make(artefact)
            await self._until_healthy(arm)
            self._arms[artefact.digest] = arm
            self._retry.pop(artefact.digest, None)
        except BaseException as error:
            if arm is not None:
                await self._stop(arm)
            if not isinstance(error, RLHFError | OSError):
                raise
            _, wait = self._retry.get(artefact.digest, (0.0, FIRST_WAIT))
            self._retry[artefact.digest] = (time.monotonic() + wait, min(2 * wait, LONGEST_WAIT))
            self._report("start", f"{artefact.version} is not in service: {error}")
        finally:
            del self._starting[artefact.digest]
            self._wake.set()

    async def _make(self, artefact: Artefact) -> Arm:
        engines, version = self._config.engines, artefact.version
        if version in engines.urls:
            urls = tuple(url.rstrip("/") for url in engines.urls[version])
            return Arm(version=version, digest=artefact.digest, urls=urls)
        verified = await asyncio.to_thread(self._registry.verify, version)
        process = start_engine(engines, self._config.model, version, verified.folder, self._free_gpus())
        arm = Arm(version=version, digest=artefact.digest, urls=(process.url,), process=process)
        self._all.append(arm)
        return arm

    def _free_gpus(self) -> tuple[int, ...]:
        slots = self._config.engines.gpus
        used = [arm.process.gpus for arm in self._all if arm.process]
        free = [slot for slot in slots if slot not in used]
        if slots and not free:
            raise MachineryError(f"all {len(slots)} entries of engines.gpus are in use; add one, or wait for a drain")
        return free[0] if free else ()

    async def _until_healthy(self, arm: Arm) -> None:
        """Wait until all servers of an arm answer.

        Raises:
            MachineryError: they do not in time, or one ended.
        """
        end, why = time.monotonic() + self._config.engines.start_seconds, "no answer"
        while time.monotonic() < end:
            whys = [found for url in arm.urls if (found := await self._fault(arm, url))]
            if not whys:
                return
            why = whys[0]
            if not arm.is_running:
                log = arm.process.log if arm.process else ""
                raise MachineryError(f"its server ended while it started; see {log}")
            await asyncio.sleep(0.25)
        raise MachineryError(f"not healthy within {self._config.engines.start_seconds:g} s: {why}")

    async def _fault(self, arm: Arm, url: str) -> str:
        """What a server lacks; empty if it generates under the public name."""
        status, _ = await self._upstream.get(f"{url}/health", HEALTH_SECONDS)
        if status != 200:
            return f"{url}/health gives {status or 'no answer'}"
        _, body = await self._upstream.get(f"{url}/v1/models", HEALTH_SECONDS)
        try:
            names = [each["id"] for each in json.loads(body)["data"]]
        except (ValueError, LookupError, TypeError):
            return f"{url}/v1/models lists no models"
        if self._config.model not in names:
            return f"{url} serves {', '.join(map(str, names))}, not {self._config.model}: see --served-model-name"
        probe = json.dumps({"model": self._config.model, "prompt": "Hello", "max_tokens": 1}).encode()
        try:
            async with self._upstream.post(
                arm, url, "/v1/completions", probe, "probe", first_seconds=PROBE_SECONDS, total_seconds=PROBE_SECONDS
            ) as answer:
                return "" if answer.status == 200 else f"{url} answers a probe with {answer.status}"
        except UpstreamFailure as failure:
            return f"{url} does not answer a probe: {failure.reason}"

    def _drain_unwanted(self, wanted: set[str]) -> None:
        serving = {arm.digest for arm in self._roles.in_service()}
        for digest in self._arms.keys() - wanted - serving:
            task = asyncio.create_task(self._drain(self._arms.pop(digest)))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)
        for arm in [each for each in self._all if not each.is_running]:
            self._all.remove(arm)

    async def _drain(self, arm: Arm) -> None:
        """Let a version finish its answers, for a while, and stop its server."""
        end = time.monotonic() + self._config.timeouts.drain_seconds
        while arm.requests and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await self._stop(arm)

    async def _stop(self, arm: Arm) -> None:
        if arm.process is not None:
            await arm.process.stop()

    def _report(self, work: str, message: str) -> None:
        self._metrics.failures.labels(work).inc()
        if message:
            print(f"gateway: {message}", file=sys.stderr, flush=True)
