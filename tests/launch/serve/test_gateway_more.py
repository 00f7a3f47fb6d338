"""The gateway with several servers of a version, with a collector of spans, and at the end of its grace period."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest

from launch.serve.services import STATE_SECONDS
from rlhf.feedback.store import Store
from rlhf.serving.artefact import ServingStage
from tests.launch.serve.live import CLIENT, MODEL, Site, bring, gateway, site, start_stub, wait_for
from tests.launch.serve.test_canary_faults import SCORER
from tests.rlhf.tracking.test_telemetry import Collector


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        made.stub("one")
        bring(made.registry, "one", ServingStage.PRODUCTION)
        yield made


def test_a_dead_server_of_several_is_noticed_by_nobody_and_the_others_share_the_load(here: Site) -> None:
    others = [start_stub("one") for _ in range(2)]
    urls = [here.stubs["one"].url, *(stub.url for stub in others)]
    try:
        with gateway(here, engines={"urls": {"one": urls}}) as live:
            others[0].kill()
            assert {live.chat(stream=bool(number % 2)).status_code for number in range(20)} == {200}
            answers: list[httpx.Response] = []
            others[1].behave("slow")
            here.stubs["one"].behave("slow")
            before = others[1].requests
            threads = [threading.Thread(target=lambda: answers.append(live.chat())) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert {answer.status_code for answer in answers} == {200}
            assert others[1].requests - before == 4
    finally:
        for stub in others:
            stub.kill()


def test_an_error_that_blames_the_request_counts_if_production_answers_it(here: Site) -> None:
    here.stub("two")
    bring(here.registry, "two", ServingStage.CANARY)
    with gateway(here, canary={"share": 1.0}, kpis=[]) as live:
        wait_for(lambda: live.serving()["canary"] == "two", "the canary", live)
        here.stubs["two"].behave("refuse")
        assert '"one' in live.chat().text
        counts = live.get("/kpis").json()["counts"]["errors"]
        assert counts == {"candidate": {"successes": 1, "n": 1}, "production": {"successes": 0, "n": 1}}
        assert live.metric("rlhf_gateway_fallbacks_total", reason="refused") == 1


def test_a_stream_that_was_too_long_to_hold_is_scored_after_it_was_sent(here: Site) -> None:
    (here.folder / "scorer.py").write_text(SCORER)
    here.stub("two")
    bring(here.registry, "two", ServingStage.CANARY)
    scorer = {"function": "scorer.py:score", "minimum": 0.5}
    with gateway(here, canary={"share": 1.0, "check": "before", "hold_bytes": 100}, scorer=scorer) as live:
        wait_for(lambda: live.serving()["canary"] == "two", "the canary", live)
        here.stubs["two"].behave("rubbish")
        assert "[DONE]" in live.chat(stream=True).text
        wait_for(lambda: live.metric("rlhf_gateway_scores_total", version="two", verdict="low") == 1, "a score", live)
        assert '"one' in live.chat().text  # a whole answer is scored before
        assert live.metric("rlhf_gateway_scores_total", version="two", verdict="low") == 2


def test_every_request_is_a_trace_without_content(here: Site) -> None:
    with Collector() as collector:
        with gateway(here, opentelemetry=collector.address) as live:
            live.chat("the purple heron")
        wait_for(lambda: "first byte" in collector.spans(), "the spans")
        spans = collector.spans()
        collector.shutdown()
    outer, inner = spans["POST /v1/chat/completions"], spans["first byte"]
    assert (inner.trace_id, inner.parent_span_id) == (outer.trace_id, outer.span_id)
    facts = {item.key: item.value for item in outer.attributes}
    assert facts["rlhf.version"].string_value == "one"
    assert facts["rlhf.status"].int_value == 200
    assert "heron" not in str(spans)


def test_an_answer_that_does_not_end_is_cut_off_at_the_end_of_the_grace_period(here: Site) -> None:
    with gateway(here, timeouts={"grace_seconds": 1.0}) as live:
        here.stubs["one"].behave("stall")
        failed: list[str] = []

        def ask() -> None:
            try:
                failed.append(str(live.chat().status_code))
            except httpx.TransportError as error:
                failed.append(type(error).__name__)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: here.stubs["one"].requests == 1, "the request", live)
        begin = time.monotonic()
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(20) == 0
        assert 0.9 < time.monotonic() - begin < 10
        thread.join()
        assert failed
        assert failed != ["200"]


def test_a_client_that_leaves_ends_the_generation(here: Site) -> None:
    with gateway(here, log="log.jsonl") as live:
        here.stubs["one"].behave("stall")

        async def leave() -> None:
            async with httpx.AsyncClient() as client:
                body = {"model": MODEL, "prompt": "Hi"}
                asked = client.post(f"{live.url}/v1/completions", json=body, headers=live.headers)
                task = asyncio.create_task(asked)
                await asyncio.sleep(0.5)
                task.cancel()

        asyncio.run(leave())
        wait_for(lambda: here.stubs["one"].control["cancelled"] == 1, "the server learns of it", live)
        assert '"outcome": "gone"' in (here.folder / "log.jsonl").read_text()
        assert live.metric("rlhf_gateway_running") == 0
        assert CLIENT.get(f"{live.url}/health", headers=live.headers).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_with_a_state_counts_and_answers_outlive_a_restart(number: signal.Signals, here: Site) -> None:
    here.stub("two")
    bring(here.registry, "two", ServingStage.CANARY)
    Store.create(here.folder / "votes.db").close()
    settings = {"canary": {"share": 0.5}, "thumbs": {"project": "votes.db"}, "state": "state.db"}
    ending = pytest.raises(AssertionError) if number == signal.SIGKILL else nullcontext()  # a kill is no orderly end
    with ending, gateway(here, **settings) as live:
        wait_for(lambda: live.serving()["canary"] == "two", "the canary is in service", live)
        answers = [live.chat(conversation=str(n)).json()["id"] for n in range(20)]
        time.sleep(0.2)  # until the last one is counted
        before = live.get("/kpis").json()
        time.sleep(2.0 * STATE_SECONDS if number == signal.SIGKILL else 0.0)
        live.process.send_signal(number)
        live.process.wait(30)
    with gateway(here, **settings) as live:
        wait_for(lambda: live.serving()["canary"] == "two", "the canary is in service", live)
        assert live.get("/kpis").json() == before and before["counts"]["errors"]["candidate"]["n"] > 0
        for id in answers:
            thumb = {"id": id, "thumb": "up"}
            assert CLIENT.post(f"{live.url}/feedback", headers=live.headers, json=thumb).status_code == 201
