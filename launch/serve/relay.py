"""Answers a request: by the canary if the conversation is in its share and all goes well, else by production.

Nothing that the canary does before its answer is handed on reaches the user: production answers instead.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from launch.serve.exchange import Exchange
from launch.serve.http import EVENTS, JSON, ClientGone, RefusedRequest, start_response
from launch.serve.roles import Roles
from launch.serve.scoring import AnswerScoring
from launch.serve.upstream import Arm, OpenAnswer, Upstream, UpstreamFailure
from rlhf.serving.completions import CompletionAnswer, check_beginning, is_complete, parse_answer, prompt_text
from rlhf.serving.gateway_config import GatewayConfig
from rlhf.serving.live_kpi import Kpi

TAIL_BYTES = 64
STATUS_OF = {"first_byte": 504, "timeout": 504}
"""Status for the user of a failure of production; 502 for all others."""
USERS_FAULT = (400, 413, 422)
"""Statuses of a server that say that the request is wrong: an error of the canary only if production answers it."""
NO_ERRORS = ("withdrawn", "low_score", "refused")
"""Reasons that are not counted as errors of the canary, or not at once."""


class Relay:
    """Hands requests on, and answers back."""

    def __init__(
        self,
        config: GatewayConfig,
        roles: Roles,
        upstream: Upstream,
        scoring: AnswerScoring | None,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._roles, self._upstream, self._clock = config, roles, upstream, clock
        self._scoring = scoring

    async def answer(self, exchange: Exchange) -> None:
        """Answer a request; what became of it is written into it.

        Raises:
            RefusedRequest: no version could answer, and nothing was sent.
            ClientGone: the client closed the connection.
        """
        canary = self._roles.canary_for(exchange.conversation)
        if canary is not None and await self._is_answered_by_canary(exchange, canary):
            return
        if self._roles.production is None:
            raise RefusedRequest(503, "not_ready", "no model is in service yet", {"retry-after": "5"})
        await self._by_production(exchange, self._roles.production)
        if canary is not None and exchange.fallback == "refused" and exchange.status == 200:
            self._roles.record(canary.digest, Kpi.ERRORS, True)

    async def _is_answered_by_canary(self, exchange: Exchange, arm: Arm) -> bool:
        """Let the canary answer; False if it could not, and nothing was sent."""
        _attribute(exchange, "canary", arm)
        limits = self._config.canary
        begin = self._clock()
        try:
            async with self._upstream.post(
                arm,
                arm.order()[0],
                exchange.path,
                exchange.request,
                exchange.id,
                first_seconds=limits.first_token_seconds if exchange.is_stream else limits.hold_seconds,
                total_seconds=limits.hold_seconds,
            ) as answer:
                if exchange.is_stream:
                    exchange.first_seconds = self._clock() - begin
                if answer.status != 200:
                    raise UpstreamFailure("refused" if answer.status in USERS_FAULT else "status", str(answer.status))
                await (self._held_stream if exchange.is_stream else self._held_object)(exchange, answer, arm)
                exchange.first_seconds = exchange.first_seconds or self._clock() - begin
        except UpstreamFailure as failure:
            return await self._handle_canary_failure(exchange, arm, failure)
        exchange.outcome = "answered"
        self._roles.record(arm.digest, Kpi.ERRORS, False)
        self._roles.record_first_byte(arm.digest, exchange.first_seconds)
        return True

    async def _handle_canary_failure(self, exchange: Exchange, arm: Arm, failure: UpstreamFailure) -> bool:
        """Count a failure; returns True if a part of the answer was sent, which nothing can take back."""
        if failure.reason not in NO_ERRORS:
            self._roles.record(arm.digest, Kpi.ERRORS, True)
        if failure.reason in STATUS_OF:
            self._roles.record_first_byte(arm.digest, exchange.first_seconds)
        if exchange.has_begun:
            exchange.outcome = failure.reason
            await _break_off(exchange)
            return True
        exchange.fallback, exchange.first_seconds = failure.reason, None
        return False

    async def _held_object(self, exchange: Exchange, answer: OpenAnswer, arm: Arm) -> None:
        body = await answer.read(self._config.limits.answer_bytes)
        await self._require_good(exchange, body, arm)
        await self._begin(exchange, 200, JSON, len(body))
        await _send_piece(exchange, body, is_last=True)

    async def _held_stream(self, exchange: Exchange, answer: OpenAnswer, arm: Arm) -> None:
        """Hold a stream back until it is complete or too long to hold, check it, and send it."""
        held, pieces, most = bytearray(), answer.pieces(), self._config.canary.hold_bytes
        is_whole = True
        async for piece in pieces:
            held += piece
            if len(held) > most:
                is_whole = False
                break
        await self._require_good(exchange, bytes(held), arm, is_whole=is_whole)
        await self._begin(exchange, 200, EVENTS)
        await _send_piece(exchange, bytes(held), is_last=is_whole)
        if is_whole:
            return
        answer.deadline.reschedule(asyncio.get_running_loop().time() + self._config.timeouts.total_seconds)
        tail = bytes(held[-TAIL_BYTES:])
        async for piece in pieces:
            await _send_piece(exchange, piece)
            tail = (tail + piece)[-TAIL_BYTES:]
        await _end_stream(exchange, tail)

    async def _require_good(self, exchange: Exchange, raw: bytes, arm: Arm, is_whole: bool = True) -> None:
        """Check an answer of the canary before it is sent.

        Raises:
            UpstreamFailure: it is malformed or empty, its score is too low, or the canary was withdrawn meanwhile.
        """
        try:
            if not is_whole:
                return check_beginning(raw)
            found = parse_answer(raw, exchange.is_stream)
        except ValueError as error:
            raise UpstreamFailure("malformed", str(error)) from None
        if not any(found.texts):
            raise UpstreamFailure("malformed", "an empty answer")
        if self._scoring is not None and self._config.canary.check == "before":
            await self._require_score(self._scoring, exchange, found, arm)
        if self._roles.canary is not arm:
            raise UpstreamFailure("withdrawn")
        return None

    async def _require_score(
        self, scoring: AnswerScoring, exchange: Exchange, found: CompletionAnswer, arm: Arm
    ) -> None:
        prompt = prompt_text(exchange.body)
        if prompt is None:
            return  # nothing that a scorer could read
        score = await scoring.score(prompt, found.texts)
        exchange.is_scored = True
        if score is not None:
            scoring.record(arm.version, arm.digest, score)
        if score is None or score < scoring.minimum:  # a scorer that fails lets nothing pass
            raise UpstreamFailure("low_score")

    async def _by_production(self, exchange: Exchange, arm: Arm) -> None:
        """Let production answer, by another server if the first one cannot be reached or fails."""
        _attribute(exchange, "production", arm)
        order = arm.order()
        tries = order if len(order) > 1 else order * 2  # a server may close an idle connection at this moment
        for number, url in enumerate(tries, start=1):
            try:
                await self._relay(exchange, arm, url)
                break
            except UpstreamFailure as failure:
                exchange.outcome = failure.reason
                may_repeat = failure.reason in ("connection", "status") and not exchange.has_begun
                if may_repeat and number < len(tries):
                    continue
                self._count_production(exchange, arm, is_bad=True)
                if exchange.has_begun:
                    await _break_off(exchange)
                    return
                status, why = STATUS_OF.get(failure.reason, 502), f"the model gave no answer: {failure.reason}"
                raise RefusedRequest(status, "model_unavailable", why) from None
        exchange.outcome = "answered"
        if exchange.status == 200:
            self._count_production(exchange, arm, is_bad=False)

    def _count_production(self, exchange: Exchange, arm: Arm, is_bad: bool) -> None:
        self._roles.record(arm.digest, Kpi.ERRORS, is_bad)
        self._roles.record_first_byte(arm.digest, exchange.first_seconds)

    async def _relay(self, exchange: Exchange, arm: Arm, url: str) -> None:
        """Hand an answer on as it comes."""
        limits, begin = self._config.timeouts, self._clock()
        first = limits.first_token_seconds if exchange.is_stream else limits.total_seconds
        async with self._upstream.post(
            arm,
            url,
            exchange.path,
            exchange.request,
            exchange.id,
            first_seconds=first,
            total_seconds=limits.total_seconds,
        ) as answer:
            exchange.first_seconds = self._clock() - begin
            if answer.status >= 500:
                raise UpstreamFailure("status", str(answer.status))
            if answer.status != 200 or not exchange.is_stream:
                body = await answer.read(self._config.limits.answer_bytes)
                await self._begin(exchange, answer.status, JSON, len(body))
                await _send_piece(exchange, body, is_last=True)
                return
            await self._begin(exchange, 200, EVENTS)
            tail, send, keep = b"", exchange.client, exchange.keep
            async for piece in answer.pieces():  # once for each token of each stream: nothing else happens here
                if exchange.is_gone:
                    raise ClientGone
                keep(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                tail = piece if len(piece) >= TAIL_BYTES else (tail + piece)[-TAIL_BYTES:]
            await _end_stream(exchange, tail)

    async def _begin(self, exchange: Exchange, status: int, content_type: str, length: int | None = None) -> None:
        exchange.status = status
        headers = {} if length is None else {"content-length": str(length)}
        if self._config.version_header:
            headers["x-model-version"] = exchange.version
        await start_response(exchange.send, status, content_type, headers)


def _attribute(exchange: Exchange, stage: str, arm: Arm) -> None:
    exchange.stage, exchange.version, exchange.digest = stage, arm.version, arm.digest


async def _send_piece(exchange: Exchange, piece: bytes, is_last: bool = False) -> None:
    exchange.keep(piece)
    await exchange.send({"type": "http.response.body", "body": piece, "more_body": not is_last})


async def _end_stream(exchange: Exchange, tail: bytes) -> None:
    """End a stream that is complete.

    Raises:
        UpstreamFailure: its last event is missing.
    """
    if not is_complete(tail):
        raise UpstreamFailure("broken", "the stream has no end")
    await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})


async def _break_off(exchange: Exchange) -> None:
    """End an answer that has begun and cannot be completed: a stream by an event that clients report as an error."""
    event = b""
    if exchange.is_stream:
        error = {"message": "the answer broke off", "type": "server_error", "param": None, "code": exchange.outcome}
        event = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    exchange.has_all = False
    await exchange.send({"type": "http.response.body", "body": event, "more_body": False})
