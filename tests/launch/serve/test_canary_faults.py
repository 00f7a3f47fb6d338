"""Whatever a canary does, users get production's answers; and a canary that breaks a KPI returns by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from benchmarks.stub_engine import RUBBISH
from rlhf.feedback.store import Store
from rlhf.serving.artefact import ServingStage
from tests.launch.serve.live import CLIENT, MODEL, LiveGateway, Site, bring, gateway, site, wait_for

REQUESTS = 1000
FAULTS = ("stall", "slow", "rubbish", "malformed", "empty", "break", "error", "killed")
"""The last one cannot be undone."""
SCORER = f"""
def score(prompts, responses):
    return [0.0 if response.startswith({RUBBISH!r}) else 1.0 for response in responses]
"""
WHOLE = "one w0 w1 w2 w3 w4 w5 w6"
QUICK = {"first_token_seconds": 0.4, "hold_seconds": 0.6}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        made.stub("one")
        made.stub("two")
        bring(made.registry, "one", ServingStage.PRODUCTION)
        bring(made.registry, "two", ServingStage.CANARY)
        (tmp_path / "scorer.py").write_text(SCORER)
        yield made


def canary_is_there(live: LiveGateway) -> None:
    wait_for(lambda: live.serving()["canary"] == "two", "the canary is in service", live)


async def ask_all(live: LiveGateway, first: int, count: int) -> list[tuple[int, str]]:
    """Status and body of many requests, every other one a stream, 20 at a time."""
    slots = asyncio.Semaphore(20)

    async def ask(client: aiohttp.ClientSession, number: int) -> tuple[int, str]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": bool(number % 2)}
        headers = {**live.headers, "X-Conversation-Id": str(number)}
        async with slots, client.post(f"{live.url}/v1/chat/completions", json=body, headers=headers) as answer:
            return answer.status, await answer.text()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
        return list(await asyncio.gather(*(ask(client, number) for number in range(first, first + count))))


def test_a_thousand_requests_to_a_broken_canary_all_get_productions_answer(here: Site) -> None:
    scorer = {"function": "scorer.py:score", "minimum": 0.5}
    settings = {"canary": {"share": 0.5, "check": "before", **QUICK}, "scorer": scorer, "kpis": []}
    each, two = REQUESTS // len(FAULTS), here.stubs["two"]
    with gateway(here, **settings) as live:
        canary_is_there(live)
        assert {status for status, _ in asyncio.run(ask_all(live, 0, 10))} == {200}  # a sound canary answers
        assert live.metric("rlhf_gateway_requests_total", stage="canary", outcome="answered") > 0
        before = live.metric("rlhf_gateway_requests_total", stage="canary")
        for number, fault in enumerate(FAULTS):
            two.kill() if fault == "killed" else two.behave(fault)
            answers = asyncio.run(ask_all(live, 1000 * number, each))
            assert {status for status, _ in answers} == {200}, fault
            assert [body for _, body in answers[::2] if WHOLE not in body] == [], fault
            assert [body for _, body in answers[1::2] if not is_whole_stream(body)] == [], fault
        assert live.metric("rlhf_gateway_requests_total", stage="canary") == before
        fallbacks = live.metric("rlhf_gateway_fallbacks_total")
    assert 0.4 * REQUESTS < fallbacks < 0.6 * REQUESTS


def is_whole_stream(body: str) -> bool:
    return '"one"' in body and all(f'" w{number}"' in body for number in range(7)) and body.endswith("[DONE]\n\n")


def test_a_stream_too_long_to_hold_is_sent_as_it_comes_and_its_break_is_an_error(here: Site) -> None:
    with gateway(here, canary={"share": 1.0, "hold_bytes": 300, **QUICK}, kpis=[]) as live:
        canary_is_there(live)
        whole = live.chat(stream=True).text
        assert '"two"' in whole
        assert whole.endswith("[DONE]\n\n")
        here.stubs["two"].behave("break")
        broken = live.chat(stream=True).text
        assert '"two"' in broken
        assert "the answer broke off" in broken
        assert "[DONE]" not in broken


@pytest.mark.parametrize(
    "kpi", ["errors", "thumbs_down", *(pytest.param(kpi, marks=pytest.mark.slow) for kpi in ("slow", "low_scores"))]
)
def test_a_broken_kpi_withdraws_the_canary_for_good(here: Site, kpi: str) -> None:
    Store.create(here.folder / "votes.db").close()
    rule = {"kpi": kpi, "limit": 0.5, "window_seconds": 60, "minimum": 5, "slow_seconds": 0.2}
    settings = {
        "canary": {"share": 1.0, "first_token_seconds": 5.0},
        "scorer": {"function": "scorer.py:score", "minimum": 0.5},
        "thumbs": {"project": "votes.db"},
        "kpis": [rule],
    }
    two, mode = (
        here.stubs["two"],
        {"errors": "error", "slow": "slow", "low_scores": "rubbish", "thumbs_down": "ok"}[kpi],
    )
    with gateway(here, **settings) as live:
        canary_is_there(live)
        two.behave(mode)
        for number in range(5):
            assert here.registry.serving().canary is not None
            answer = live.chat(conversation=str(number))
            assert answer.status_code == 200
            if kpi == "thumbs_down":
                post = {"id": answer.json()["id"], "thumb": "down"}
                assert CLIENT.post(f"{live.url}/feedback", headers=live.headers, json=post).status_code == 201
        wait_for(lambda: here.registry.serving().canary is None, "the canary is withdrawn", live)
        asked = two.requests
        assert '"one' in live.chat().text
        assert live.metric("rlhf_gateway_returns_total", kpi=kpi) == 1
    entry = here.registry.audit()[-1]
    assert (entry.who, entry.version, entry.action) == ("gateway", "two", "withdraw")
    assert entry.why == f"{kpi}: 5 of 5 in 60 s (100.0%), limit 50.0%"
    if kpi != "errors":
        return
    two.behave("ok")
    with gateway(here, **settings) as live:  # a restart changes nothing
        time.sleep(0.5)
        assert live.serving()["canary"] is None
        assert '"one' in live.chat().text
    assert two.requests == asked
