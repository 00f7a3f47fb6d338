"""A thumb belongs to the key that got the answer, and to a choice that is there."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.serve.app import Gateway
from launch.serve.exchange import Exchange
from launch.serve.http import RefusedRequest
from launch.serve.thumbs import Thumbs
from rlhf.feedback.store import Store
from rlhf.serving.gateway_config import ThumbsConfig


@pytest.fixture
def thumbs(tmp_path: Path) -> Iterator[Thumbs]:
    Store.create(tmp_path / "votes.db").close()
    made = Thumbs(ThumbsConfig(project=str(tmp_path / "votes.db")))
    yield made
    made.close()


async def nowhere(message: Any) -> None:
    """A client that takes everything."""


def remember(thumbs: Thumbs, body: dict[str, Any], *texts: str, owner: str = "app") -> None:
    exchange = Exchange(
        id="x",
        path="/v1/completions",
        request=json.dumps(body).encode(),
        body=body,
        conversation="c",
        owner=owner,
        began=0.0,
        client=nowhere,
        keeps_answer=True,
        most_bytes=10_000,
        version="one",
    )
    exchange.keep(json.dumps({"id": "a-1", "choices": [{"index": n, "text": t} for n, t in enumerate(texts)]}).encode())
    thumbs.remember(exchange)


def send(thumbs: Thumbs, owner: str = "app", **fields: Any) -> int:
    """Status of a thumb."""
    try:
        return 201 if thumbs.store(json.dumps({"id": "a-1", "thumb": "up", **fields}).encode(), owner).is_new else 200
    except RefusedRequest as refusal:
        return refusal.status


def test_only_the_key_that_got_an_answer_judges_it(thumbs: Thumbs) -> None:
    remember(thumbs, {"prompt": "Hi"}, "Hello")
    assert [send(thumbs, owner="other"), send(thumbs), send(thumbs)] == [404, 201, 200]


def test_each_choice_is_judged_by_its_index(thumbs: Thumbs, tmp_path: Path) -> None:
    remember(thumbs, {"prompt": "Hi", "n": 2}, "first", "second")
    assert [send(thumbs, index=1, thumb="down"), send(thumbs, index=2), send(thumbs)] == [201, 422, 201]
    with Store.open(tmp_path / "votes.db") as store:
        assert [(thumb.answer.text, thumb.is_good) for thumb in store.thumbs()] == [("second", False), ("first", True)]


@pytest.mark.parametrize(
    "fields", [{"thumb": "sideways"}, {"comment": 3}, {"index": -1}, {"more": 1}, {"comment": "\ud800"}]
)
def test_malformed_thumbs_are_refused(thumbs: Thumbs, fields: dict[str, Any]) -> None:
    remember(thumbs, {"prompt": "Hi"}, "Hello")
    assert send(thumbs, **fields) == 422


def test_what_is_no_text_cannot_be_judged(thumbs: Thumbs) -> None:
    image = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    remember(thumbs, {"messages": [{"role": "user", "content": image}]}, "A picture.")
    assert send(thumbs) == 422


def test_an_answer_can_be_judged_in_the_step_after_its_last_byte() -> None:
    """uvloop may run a new request before what follows the request that was just answered."""
    happened: list[str] = []

    async def answer(exchange: Exchange) -> None:
        await asyncio.sleep(0)
        await exchange.send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> dict[str, Any]:
        if not happened:
            happened.append("received")
            return {"type": "http.request", "body": b'{"model": "travel"}', "more_body": False}
        return await asyncio.Future()

    async def client(message: Any) -> None:
        asyncio.get_running_loop().call_soon(happened.append, "the next step")

    services: Any = SimpleNamespace(
        config=SimpleNamespace(model="travel", limits=SimpleNamespace(body_bytes=1000, body_seconds=5.0)),
        keeps_answers=True,
        admission=SimpleNamespace(turn=nullcontext),
        relay=SimpleNamespace(answer=answer),
        remember=lambda exchange: happened.append("remembered"),
        finish=lambda exchange: happened.append("finished"),
    )
    scope = {"path": "/v1/completions", "headers": []}
    asyncio.run(Gateway(services).complete(scope, receive, client, "app"))
    assert happened == ["received", "remembered", "the next step", "finished"]


def test_a_project_that_cannot_be_written_asks_for_another_try(thumbs: Thumbs, tmp_path: Path) -> None:
    remember(thumbs, {"prompt": "Hi"}, "Hello")
    with sqlite3.connect(tmp_path / "votes.db") as db:
        db.execute("ALTER TABLE thumbs RENAME TO moved")
    assert send(thumbs) == 503
