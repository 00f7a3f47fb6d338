"""Calls in threads: results, errors, calls that are given up, and a function that hangs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from launch.serve.daemon_pool import DaemonPool
from tests.launch.serve.live import ROOT

HANGS = """
import asyncio, time
from launch.serve.daemon_pool import DaemonPool

async def main():
    async with asyncio.timeout(0.1):
        await DaemonPool(1).run(time.sleep, 1000)

try:
    asyncio.run(main())
except TimeoutError:
    print("gave up")
"""


def test_results_and_errors_come_back() -> None:
    async def main() -> int:
        pool = DaemonPool(2)
        with pytest.raises(ZeroDivisionError):
            await pool.run(divmod, 1, 0)
        return sum(await asyncio.gather(*(pool.run(pow, number, 2) for number in range(5))))

    assert asyncio.run(main()) == 30


def test_a_call_that_was_given_up_before_it_began_is_left_out() -> None:
    free, called = threading.Event(), []

    async def main() -> None:
        pool = DaemonPool(1)
        first = asyncio.create_task(pool.run(free.wait, 10))
        await asyncio.sleep(0)  # it is the first in the queue
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pool.run(called.append, "given up")
        free.set()
        await pool.run(called.append, "wanted")
        assert await first

    asyncio.run(main())
    assert called == ["wanted"]


def test_a_function_that_hangs_does_not_keep_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "gave up\n")
