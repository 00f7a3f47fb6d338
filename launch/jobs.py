"""Jobs of a Ray cluster: submit one, follow its log, stop it, and report how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from rlhf.errors import MachineryError, Stopped, UserError

ENDED = "the command ended with exit code "
"""Beginning of a job's last line, because Ray keeps no exit code of a stopped job."""
STOPPED = str(Stopped("")).partition(" (")[0]
"""Part of the line in which a command reports that it stopped. It need not be the last line: Ray signals the processes
started by libraries too."""
AWAY_SECONDS = 60.0
"""Time without an answer of the cluster after which a job is no longer followed."""
REQUEST_SECONDS = 30.0
"""Timeout of the cluster's reply to a request."""
UPLOAD_SECONDS = 600.0
"""Timeout of an upload."""
QUIET_SECONDS = 30.0
"""Time without log output after which the job's status is queried."""
POLL_SECONDS = 0.2
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Ray's variable for the seconds between SIGTERM and SIGKILL, read where the job runs; 3 by default."""
STOP_SPARE_SECONDS = 10
"""Added to the grace period of a stopping job."""
"""Given to a job that stops, beyond its own grace period."""
KNOWN_CODES = (0, 2, 3, Stopped.exit_code)
TOKEN_FIX = (
    "set RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token, in the file that RAY_AUTH_TOKEN_PATH "
    "names, or in RAY_AUTH_TOKEN"
)


class _Client(JobSubmissionClient):
    """Ray's client with timeouts, without which it would wait for ever for a reply to an accepted request."""

    def _do_request(self, method: str, endpoint: str, **given: Any) -> requests.Response:
        sending = REQUEST_SECONDS if given.get("data") is None else UPLOAD_SECONDS  # for the whole body
        return super()._do_request(method, endpoint, **{"timeout": (sending, REQUEST_SECONDS), **given})


class Jobs:
    """The jobs of the cluster whose dashboard is at ``address``.

    Raises:
        UserError: the cluster rejects this user's token, or the job is unknown.
        MachineryError: the cluster does not answer.
    """

    def __init__(self, address: str) -> None:
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.ERROR)
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # Ray would prefer these to the given address
            os.environ.pop(name, None)
        self.address = address
        self._last_answer = time.monotonic()
        """Time of the cluster's last answer about a job."""
        with self._convert_errors():
            self._client = _Client(address)

    @contextmanager
    def _convert_errors(self, job: str = "") -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            why = "it requires a token" if "required" in str(error) else "the token is not the cluster's"
            raise UserError(f"the cluster at {self.address} refused: {why}", fix=TOKEN_FIX) from None
        except requests.exceptions.ReadTimeout as error:
            raise MachineryError(
                f"the cluster at {self.address} accepted a request and sent no reply for {REQUEST_SECONDS:.0f} s: is "
                "it Ray's dashboard, and is the head alive? (`ray status` there) The request may have been executed: "
                "`rlhf submit --list`"
            ) from error
        except (ConnectionError, requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise MachineryError(
                f"no Ray cluster answers at {self.address}: start one (launch/head.sh), or forward port 8265 of a "
                "head to this machine (ssh -L 8265:127.0.0.1:8265 HEAD), or name another with --address"
            ) from error
        except ValueError as error:
            raise UserError(f"--address {self.address} is invalid", str(error), "http://HOST:8265") from None
        except RuntimeError as error:
            if job and "404" in str(error):
                raise UserError(f"the cluster at {self.address} has no job {job}", fix="rlhf submit --list") from None
            raise MachineryError(f"the cluster at {self.address} failed to do that: {error}") from error

    def submit(
        self,
        *,
        job: str,
        entrypoint: str,
        files: Path,
        environment: Mapping[str, str],
        metadata: Mapping[str, str],
        grace_seconds: float,
    ) -> None:
        """Upload ``files`` and start a job in them. Everything but the files is visible to everyone who can list jobs.

        Args:
            grace_seconds: time that the job may take to end after SIGTERM.
        """
        wait = {STOP_WAIT: str(int(grace_seconds) + STOP_SPARE_SECONDS)}
        with self._convert_errors():
            self._client.submit_job(
                submission_id=job,
                entrypoint=entrypoint,
                runtime_env={"working_dir": str(files), "env_vars": {**environment, **wait}},
                metadata=dict(metadata),
            )

    def all(self) -> list[JobDetails]:
        """Submitted jobs, newest first."""
        with self._convert_errors():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: -(job.start_time or 0))

    def info(self, job: str) -> JobDetails:
        """Ray's details of a job."""
        with self._convert_errors(job):
            found = self._client.get_job_info(job)
        self._last_answer = time.monotonic()
        return found

    def follow(self, job: str, show: Callable[[str], None]) -> int:
        """Show a job's log from its beginning, as it grows; returns the exit code, see ``outcome``.

        A broken connection is restored, and nothing is shown twice.
        """
        shown, self._last_answer = 0, time.monotonic()
        while not self._has_ended(job):
            shown = asyncio.run(self._tail(job, shown, show))
            time.sleep(POLL_SECONDS)
        with self._convert_errors(job):
            show(self._client.get_job_logs(job)[shown:])
        return self.outcome(job)

    def _has_ended(self, job: str) -> bool:
        try:
            return self.info(job).status.is_terminal()
        except MachineryError:
            if time.monotonic() - self._last_answer > AWAY_SECONDS:
                raise
            return False

    async def _tail(self, job: str, shown: int, show: Callable[[str], None]) -> int:
        """Show the log after its first ``shown`` characters, until the connection or the job ends; returns its length.

        A quiet connection is kept: Ray would not notice that it was closed, and allows only few.
        """
        place, texts = 0, aiter(self._client.tail_job_logs(job))
        try:
            while (text := await self._next(job, texts)) is not None:
                show(text[max(0, shown - place) :])
                place += len(text)
                self._last_answer = time.monotonic()
        except (RuntimeError, OSError, aiohttp.ClientError):
            pass  # retried while the job runs
        return max(shown, place)

    async def _next(self, job: str, texts: AsyncIterator[str]) -> str | None:
        """The next piece of a log; None at its end."""
        coming = asyncio.ensure_future(anext(texts, None))
        while not coming.done():
            await asyncio.wait({coming}, timeout=QUIET_SECONDS)
            if not coming.done() and await asyncio.to_thread(self._has_ended_or_unknown, job):
                coming.cancel()
                return None
        return coming.result()

    def _has_ended_or_unknown(self, job: str) -> bool:
        """Whether a job has ended, or its state is unknown."""
        try:
            return self.info(job).status.is_terminal()
        except MachineryError:
            return True

    def stop(self, job: str, seconds: float) -> int:
        """Ask a job to stop, and wait for its end; returns the exit code."""
        with self._convert_errors(job):
            self._client.stop_job(job)
        end = time.monotonic() + seconds
        while not self.info(job).status.is_terminal():
            if time.monotonic() > end:
                raise MachineryError(f"{job} was asked to stop {seconds:.0f} s ago and has not ended")
            time.sleep(POLL_SECONDS)
        return self.outcome(job)

    def last_word(self, job: str) -> str:
        """The line in which a job reports that it stopped, else its last line."""
        with self._convert_errors(job):
            lines = [line for line in self._client.get_job_logs(job).splitlines() if line.strip()]
        found = [line for line in lines if STOPPED in line] or lines
        return found[-1] if found else ""

    def outcome(self, job: str) -> int:
        """The exit code of a job that has ended: 0, 2, 3 or 75.

        Raises:
            MachineryError: it was killed, or never started.
        """
        info = self.info(job)
        with self._convert_errors(job):
            code = exit_code(self._client.get_job_logs(job))
        code = info.driver_exit_code if code is None else code
        if code in KNOWN_CODES:
            return int(code)
        if code is None and info.status == JobStatus.STOPPED:
            raise MachineryError(
                f"{job} was killed before it stopped by itself: restart it, and it resumes from its last checkpoint"
            )
        raise MachineryError(f"{job} {info.status.value.lower()}: {info.message}")


def exit_code(logs: str) -> int | None:
    """The exit code in the last line of a job's log; None if the job was killed before it wrote it."""
    found = re.findall(rf"^{ENDED}(\d+)$", logs, flags=re.MULTILINE)
    return int(found[-1]) if found else None
