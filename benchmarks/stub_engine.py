"""A server that speaks the OpenAI API and computes nothing: for the gateway's tests and its benchmark.

``python -m benchmarks.stub_engine --port 8001 --name one --model travel`` answers with its name. Its behaviour is
changed while it runs: ``POST /control {"mode": "stall"}``; ``GET /control`` gives the number of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import uvicorn

MODES = ("ok", "error", "stall", "slow", "rubbish", "malformed", "empty", "break", "refuse")
RUBBISH = "xqzt"
"""What the answer of ``rubbish`` begins with."""
SLOW_SECONDS = 1.0
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class StubEngine:
    """An ASGI application."""

    def __init__(self, name: str, model: str, tokens: int, interval: float) -> None:
        """Args: an answer has so many tokens, one every ``interval`` seconds."""
        self.name, self.model, self.tokens, self.interval = name, model, tokens, interval
        self.mode, self.requests, self.cancelled = "ok", 0, 0

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["path"]
        if path == "/control":
            self.mode = json.loads(body)["mode"] if body else self.mode
            await _send(send, 200, {"requests": self.requests, "mode": self.mode, "cancelled": self.cancelled})
        elif path == "/health":
            await _send(send, 200, {})
        elif path == "/v1/models":
            await _send(send, 200, {"data": [{"id": self.model}]})
        else:
            await self._complete(path, json.loads(body), _id(scope), receive, send)

    async def _complete(self, path: str, asked: Any, id: str, receive: Any, send: Send) -> None:
        is_probe = asked.get("max_tokens") == 1
        self.requests += not is_probe
        mode = "ok" if is_probe else self.mode
        if mode == "stall":
            await receive()  # until the client leaves
            self.cancelled += 1
            return None
        if mode == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        if mode in ("error", "refuse"):
            return await _send(send, 500 if mode == "error" else 400, {"error": {"message": "told to", "code": mode}})
        if mode == "malformed":
            return await _send(send, 200, {"no": "choices"})
        first = {"rubbish": RUBBISH, "empty": ""}.get(mode, self.name)
        words = [first, *["" if mode == "empty" else f" w{number}" for number in range(self.tokens - 1)]]
        is_chat = path.endswith("chat/completions")
        if asked.get("stream"):
            return await self._stream(words, is_chat, id, send, is_broken=mode == "break")
        if mode == "break":
            raise RuntimeError("told to break off")
        text = "".join(words)
        choice = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        kind = "chat.completion" if is_chat else "text_completion"
        usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
        choices = [{"index": 0, "finish_reason": "stop", **choice}]
        return await _send(
            send, 200, {"id": id, "object": kind, "created": 1, "model": self.model, "choices": choices, "usage": usage}
        )

    async def _stream(self, words: Sequence[str], is_chat: bool, id: str, send: Send, is_broken: bool) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number, word in enumerate(words):
            if self.interval:
                await asyncio.sleep(self.interval)
            if is_broken and number == len(words) // 2:
                raise RuntimeError("told to break off")
            choice = {"delta": {"content": word}} if is_chat else {"text": word}
            event = {"id": id, "object": "chat.completion.chunk", "created": 1, "model": self.model}
            event |= {"choices": [{"index": 0, **choice, "finish_reason": None}]}
            data = b"data: " + json.dumps(event).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def _id(scope: Any) -> str:
    given = next((value.decode() for name, value in scope["headers"] if name == b"x-request-id"), "none")
    return f"chatcmpl-{given}"


async def _send(send: Send, status: int, content: object) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="stub")
    parser.add_argument("--model", default="travel")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--interval", type=float, default=0.0, help="seconds between two tokens")
    chosen = parser.parse_args(arguments)
    engine = StubEngine(chosen.name, chosen.model, chosen.tokens, chosen.interval)
    uvicorn.run(engine, host="127.0.0.1", port=chosen.port, log_level="critical", lifespan="off")


if __name__ == "__main__":
    main()
