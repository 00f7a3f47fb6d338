"""A cluster that accepts requests and does not answer, like a dead head behind a forwarded port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiohttp import web

import launch.jobs
from launch.cli import main
from launch.jobs import ENDED, Jobs
from rlhf.errors import MachineryError

LOG = f"SFT 1/2\nSFT 2/2\n{ENDED}75\n"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUEST_SECONDS", "QUIET_SECONDS", "AWAY_SECONDS"):
        monkeypatch.setattr(launch.jobs, name, 1.0)


def test_a_silent_dashboard_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert main(["submit", "--list", "--address", f"http://127.0.0.1:{silent.getsockname()[1]}"]) == 3
    assert "accepted a request and sent no reply for 1 s" in capsys.readouterr().err


def test_a_log_that_is_silent_does_not_hide_that_the_job_has_ended() -> None:
    """The log's connection stays open without data, and is kept, because Ray allows only few."""
    dashboard, shown = Dashboard(ends_after=2), []
    with dashboard.serving() as address:
        assert Jobs(address).follow("job", shown.append) == 75
    assert "".join(shown) == LOG and dashboard.tails == 1


def test_following_a_job_ends_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with Dashboard(ends_after=0).serving() as address:
        assert main(["submit", "--follow", "job", "--address", address]) == 75
    assert capsys.readouterr().out == LOG


def test_a_dashboard_that_falls_silent_is_followed_no_further() -> None:
    dashboard = Dashboard(ends_after=10**6, answers=3)
    with dashboard.serving() as address, pytest.raises(MachineryError, match="sent no reply"):
        Jobs(address).follow("job", lambda text: None)


class Dashboard:
    """Answers like Ray: a job that ends after a number of requests, and a log that breaks off."""

    def __init__(self, ends_after: int, answers: int = 10**6) -> None:
        """Args: answers is the number of requests to answer before going silent."""
        self.ends_after, self.answers, self.asked, self.tails = ends_after, answers, 0, 0
        self.over = asyncio.Event()

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Run the block with this server; yields its address."""
        loop, place = asyncio.new_event_loop(), socket.create_server(("127.0.0.1", 0))
        runner = web.AppRunner(self._app(), shutdown_timeout=0.1)
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.SockSite(runner, place).start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(self.over.set)
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=20)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=20)
            loop.close()

    def _app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/jobs/job", self._info),
                web.get("/api/jobs/job/logs", self._log),
                web.get("/api/jobs/job/logs/tail", self._tail),
            ]
        )
        return app

    async def _silent_after_the_last(self) -> None:
        self.answers -= 1
        if self.answers < 0:
            await self.over.wait()

    async def _version(self, request: web.Request) -> web.Response:
        await self._silent_after_the_last()
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": ""})

    async def _info(self, request: web.Request) -> web.Response:
        await self._silent_after_the_last()
        self.asked += 1
        status = "STOPPED" if self.asked > self.ends_after else "RUNNING"
        return web.json_response({"type": "SUBMISSION", "submission_id": "job", "status": status, "entrypoint": "rlhf"})

    async def _log(self, request: web.Request) -> web.Response:
        await self._silent_after_the_last()
        return web.json_response({"logs": LOG})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        await self._silent_after_the_last()
        self.tails += 1
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        await answer.send_str(LOG[:10])
        await self.over.wait()
        return answer
