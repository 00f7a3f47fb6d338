"""The gateway as an ASGI application: keys, routes, limits, and what follows a request.

Plain ASGI and no framework: the path of a stream's piece from the server to the client is a loop of three lines.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from launch.serve.exchange import Exchange
from launch.serve.http import (
    ClientGone,
    Receive,
    RefusedRequest,
    Scope,
    Send,
    describe_without_content,
    header,
    read_body,
    respond,
)
from launch.serve.services import Services
from rlhf.serving.conversation import conversation_key
from rlhf.serving.live_kpi import Kpi

Handler = Callable[["Gateway", Scope, Receive, Send, str], Awaitable[None]]
LONGEST_CONVERSATION_ID = 512


class Gateway:
    """Answers requests with the help of its services, which it starts and ends."""

    def __init__(self, services: Services) -> None:
        self.services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's start and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self.services.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.services.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics = self.services.metrics
        try:
            owner = self._authorise(scope)
            await self._handler(scope)(self, scope, receive, send, owner)
        except RefusedRequest as refusal:
            metrics.refused.labels(refusal.code).inc()
            await respond(send, refusal.status, refusal.body(), headers=refusal.headers)
        except ClientGone:
            metrics.refused.labels("client_gone").inc()
        except Exception as error:  # uvicorn answers 500, or closes; its own report would quote a message
            metrics.failures.labels("request").inc()
            print(f"gateway: a request failed: {describe_without_content(error)}", file=sys.stderr, flush=True)

    def _authorise(self, scope: Scope) -> str:
        """Name of the request's key.

        Raises:
            RefusedRequest: it has none, or an unknown one.
        """
        scheme, _, key = header(scope, b"authorization").partition(" ")
        owner = self.services.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            raise RefusedRequest(401, "invalid_api_key", "no valid API key", {"www-authenticate": "Bearer"})
        return owner

    def _handler(self, scope: Scope) -> Handler:
        methods = ROUTES.get(scope["path"])
        if methods is None:
            raise RefusedRequest(404, "not_found", "there is no such page")
        if scope["method"] not in methods:
            raise RefusedRequest(405, "method_not_allowed", "another method", {"allow": ", ".join(methods)})
        return methods[scope["method"]]

    async def complete(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """Answer a prompt or a chat."""
        services, limits = self.services, self.services.config.limits
        raw = await read_body(scope, receive, limits.body_bytes, limits.body_seconds)
        body = self._parse(raw)
        named = header(scope, b"x-conversation-id")[:LONGEST_CONVERSATION_ID]
        exchange = Exchange(
            id=uuid.uuid4().hex,
            path=scope["path"],
            request=raw,
            body=body,
            conversation=conversation_key(named, body),
            owner=owner,
            began=time.monotonic(),
            client=send,
            keeps_answer=services.keeps_answers,
            most_bytes=limits.body_bytes,
        )
        work, gone = asyncio.create_task(self._answer(exchange)), asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                exchange.is_gone = True  # nothing more is sent, also where the answer is not interrupted at once
                raise ClientGone
            work.result()
        except ClientGone:
            exchange.is_gone = True
            raise
        finally:
            work.cancel()
            gone.cancel()
            if exchange.is_gone:
                exchange.outcome = "gone"
            services.finish(exchange)

    async def _answer(self, exchange: Exchange) -> None:
        async with self.services.admission.turn():
            await self.services.relay.answer(exchange)
            self.services.remember(exchange)

    def _parse(self, raw: bytes) -> Mapping[str, Any]:
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise RefusedRequest(400, "invalid_json", "the body is no JSON object")
        if body.get("model") != self.services.config.model:
            why = f"there is no such model; this gateway serves {self.services.config.model}"
            raise RefusedRequest(404, "model_not_found", why)
        if not isinstance(body.get("stream", False), bool | None):
            raise RefusedRequest(400, "invalid_stream", "stream is true or false")
        return body

    async def feedback(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """Store a thumb: 201 if it is new, 200 if it was stored before."""
        services = self.services
        if services.thumbs is None:
            raise RefusedRequest(404, "no_feedback", "this gateway has no feedback project")
        limits = services.config.limits
        raw = await read_body(scope, receive, limits.body_bytes, limits.body_seconds)
        stored = await asyncio.to_thread(services.thumbs.store, raw, owner)
        if stored.is_new:
            services.metrics.thumbs.labels(stored.version, "down" if stored.is_down else "up").inc()
            arms = services.roles.in_service()
            for digest in {arm.digest for arm in arms if arm.version == stored.version}:
                services.roles.record(digest, Kpi.THUMBS_DOWN, stored.is_down)
        await respond(send, 201 if stored.is_new else 200, b'{"stored": true}')

    async def models(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """List the one model."""
        listed = [{"id": self.services.config.model, "object": "model", "created": 0, "owned_by": "rlhf"}]
        await respond(send, 200, json.dumps({"object": "list", "data": listed}).encode())

    async def health(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """The gateway itself lives."""
        await respond(send, 200, b'{"status": "ok"}')

    async def ready(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """A model is in service."""
        roles = self.services.roles
        versions = {
            stage: arm.version if (arm := getattr(roles, stage)) else None for stage in ("production", "canary")
        }
        await respond(send, 200 if roles.production else 503, json.dumps(versions).encode())

    async def show_metrics(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """Metrics for Prometheus."""
        await respond(send, 200, self.services.metrics.render(), "text/plain; version=0.0.4; charset=utf-8")

    async def kpis(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """Counts of the canary, or else of the shadow, beside production's, as ``rlhf gate`` reads them."""
        roles = self.services.roles
        candidate = roles.canary or roles.shadow
        if candidate is None or roles.production is None:
            missing = "canary and no shadow" if candidate is None else "production"
            raise RefusedRequest(404, "no_candidate", f"no {missing} is in service: there is nothing to compare")
        counts = roles.counts.compared(candidate.digest, roles.production.digest)
        await respond(send, 200, json.dumps(counts).encode())


async def _until_gone(receive: Receive) -> None:
    """Wait until the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "/v1/chat/completions": {"POST": Gateway.complete},
    "/v1/completions": {"POST": Gateway.complete},
    "/v1/models": {"GET": Gateway.models},
    "/feedback": {"POST": Gateway.feedback},
    "/health": {"GET": Gateway.health},
    "/ready": {"GET": Gateway.ready},
    "/metrics": {"GET": Gateway.show_metrics},
    "/kpis": {"GET": Gateway.kpis},
}
"""Handler of each path and method. All need a key, as unknown paths do."""
