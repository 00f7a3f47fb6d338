"""Turns of requests: bounded, first come first served, and none is lost when a waiting client leaves."""

from __future__ import annotations

import asyncio

import pytest

from launch.serve.admission import Admission, retry_after
from launch.serve.http import RefusedRequest
from rlhf.serving.gateway_config import AdmissionConfig


def test_turns_are_given_in_the_order_of_arrival_and_no_more_than_allowed() -> None:
    async def run() -> None:
        admission = Admission(AdmissionConfig(concurrent=2, waiting=10), lambda: 0.0)
        order: list[int] = []
        most = [0]

        async def ask(number: int) -> None:
            async with admission.turn():
                most[0] = max(most[0], admission.running)
                order.append(number)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(ask(number) for number in range(8)))
        assert order == list(range(8))
        assert (most[0], admission.running, admission.waiting) == (2, 0, 0)

    asyncio.run(run())


def test_a_full_queue_and_a_long_wait_are_refused_with_a_time_to_return() -> None:
    async def run() -> None:
        admission = Admission(AdmissionConfig(concurrent=1, waiting=1, wait_seconds=0.05), lambda: 0.0)
        async with admission.turn():
            late = asyncio.create_task(admission.turn().__aenter__())
            await asyncio.sleep(0)
            with pytest.raises(RefusedRequest) as refused:
                await admission.turn().__aenter__()
            assert (refused.value.status, refused.value.headers) == (429, {"retry-after": "2"})
            with pytest.raises(RefusedRequest):
                await late
            assert admission.waiting == 0
        async with admission.turn():
            assert admission.running == 1
        assert admission.running == 0

    asyncio.run(run())


def test_a_client_that_leaves_while_it_waits_gives_its_turn_to_the_next() -> None:
    async def run() -> None:
        admission = Admission(AdmissionConfig(concurrent=1, waiting=5), lambda: 0.0)

        async def hold() -> None:
            async with admission.turn():
                await asyncio.sleep(0.01)

        async with admission.turn():
            waiting = [asyncio.create_task(hold()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        waiting[1].cancel()  # it got the turn in this moment, and never learns of it
        await waiting[2]
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError, asyncio.CancelledError, type(None)]
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(run())


def test_the_time_to_return_grows_with_the_queue_within_limits() -> None:
    assert [retry_after(1, 100, 0.1), retry_after(50, 10, 2.0), retry_after(1000, 1, 60.0)] == [1, 10, 60]
