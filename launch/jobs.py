"""Jobs of a Ray cluster: submit one, follow its log, stop it, and tell how it ended."""

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
"""Begins a job's last line. Of a job that was stopped Ray keeps no exit code."""
STOPPED = str(Stopped("")).partition(" (")[0]
"""Is in the line in which a command says that it stopped. Libraries may write more after it: Ray's signal reaches the
processes that they started too."""
AWAY_SECONDS = 60.0
"""How long the cluster may not answer before a job is followed no further."""
REQUEST_SECONDS = 30.0
"""How long the cluster may say nothing after a request."""
UPLOAD_SECONDS = 600.0
"""How long files may be on their way to the cluster."""
QUIET_SECONDS = 30.0
"""How long a job's log may say nothing before it is asked whether the job still runs."""
POLL_SECONDS = 0.2
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Ray's name for the seconds between SIGTERM and SIGKILL, read where the job runs; 3 without it."""
STOP_SPARE_SECONDS = 10
"""Given to a job that stops, beyond its own grace period."""
KNOWN_CODES = (0, 2, 3, Stopped.exit_code)
TOKEN_FIX = (
    "set RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token, in the file that RAY_AUTH_TOKEN_PATH "
    "names, or in RAY_AUTH_TOKEN"
)


class _Client(JobSubmissionClient):
    """Ray's own, which would wait for ever for a cluster that takes a request and says nothing."""

    def _do_request(self, method: str, endpoint: str, **given: Any) -> requests.Response:
        sending = REQUEST_SECONDS if given.get("data") is None else UPLOAD_SECONDS  # the whole of it
        return super()._do_request(method, endpoint, **{"timeout": (sending, REQUEST_SECONDS), **given})


class Jobs:
    """The jobs of the cluster whose dashboard is at ``address``.

    Raises:
        UserError: the cluster does not take this user's token, or knows no such job.
        MachineryError: nobody answers.
    """

    def __init__(self, address: str) -> None:
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.ERROR)
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # Ray would take these for the address that is meant
            os.environ.pop(name, None)
        self.address = address
        self._heard = time.monotonic()
        """When the cluster last said something of a job."""
        with self._asking():
            self._client = _Client(address)

    @contextmanager
    def _asking(self, job: str = "") -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            why = "it wants a token" if "required" in str(error) else "the token is not the cluster's"
            raise UserError(f"the cluster at {self.address} refused: {why}", fix=TOKEN_FIX) from None
        except requests.exceptions.ReadTimeout as error:
            raise MachineryError(
                f"the cluster at {self.address} took a request and said nothing for {REQUEST_SECONDS:.0f} s: is it "
                "Ray's dashboard, and is the head alive? (`ray status` there) What was asked may have been done: "
                "`rlhf submit --list`"
            ) from error
        except (ConnectionError, requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise MachineryError(
                f"no Ray cluster answers at {self.address}: start one (launch/head.sh), or forward port 8265 of a "
                "head to this machine (ssh -L 8265:127.0.0.1:8265 HEAD), or name another with --address"
            ) from error
        except ValueError as error:
            raise UserError(f"--address {self.address} is no address", str(error), "http://HOST:8265") from None
        except RuntimeError as error:
            if job and "404" in str(error):
                raise UserError(f"the cluster at {self.address} knows no job {job}", fix="rlhf submit --list") from None
            raise MachineryError(f"the cluster at {self.address} could not do that: {error}") from error

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
        """Upload ``files`` and start a job in them. Everything but the files can be read by whoever lists jobs.

        Args:
            grace_seconds: how long the job may take to end when it is asked to.
        """
        wait = {STOP_WAIT: str(int(grace_seconds) + STOP_SPARE_SECONDS)}
        with self._asking():
            self._client.submit_job(
                submission_id=job,
                entrypoint=entrypoint,
                runtime_env={"working_dir": str(files), "env_vars": {**environment, **wait}},
                metadata=dict(metadata),
            )

    def all(self) -> list[JobDetails]:
        """Submitted jobs, the newest first."""
        with self._asking():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: -(job.start_time or 0))

    def info(self, job: str) -> JobDetails:
        """What Ray knows of a job."""
        with self._asking(job):
            found = self._client.get_job_info(job)
        self._heard = time.monotonic()
        return found

    def follow(self, job: str, show: Callable[[str], None]) -> int:
        """Show a job's log from its beginning, as it grows; returns how the job ended, see ``outcome``.

        A connection that breaks is made anew, and what was shown is not shown again.
        """
        shown, self._heard = 0, time.monotonic()
        while not self._has_ended(job):
            shown = asyncio.run(self._tail(job, shown, show))
            time.sleep(POLL_SECONDS)
        with self._asking(job):
            show(self._client.get_job_logs(job)[shown:])
        return self.outcome(job)

    def _has_ended(self, job: str) -> bool:
        try:
            return self.info(job).status.is_terminal()
        except MachineryError:
            if time.monotonic() - self._heard > AWAY_SECONDS:
                raise
            return False

    async def _tail(self, job: str, shown: int, show: Callable[[str], None]) -> int:
        """Show what follows the first ``shown`` characters, until the connection or the job ends; returns how many
        there are.

        A connection that is quiet is kept: Ray would not notice that it was left, and it has room for few.
        """
        place, texts = 0, aiter(self._client.tail_job_logs(job))
        try:
            while (text := await self._next(job, texts)) is not None:
                show(text[max(0, shown - place) :])
                place += len(text)
                self._heard = time.monotonic()
        except (RuntimeError, OSError, aiohttp.ClientError):
            pass  # asked again as long as the job lives
        return max(shown, place)

    async def _next(self, job: str, texts: AsyncIterator[str]) -> str | None:
        """The next piece of a log; None where there will be none."""
        coming = asyncio.ensure_future(anext(texts, None))
        while not coming.done():
            await asyncio.wait({coming}, timeout=QUIET_SECONDS)
            if not coming.done() and await asyncio.to_thread(self._is_over, job):
                coming.cancel()
                return None
        return coming.result()

    def _is_over(self, job: str) -> bool:
        """Whether a job has ended, or nobody says whether it has."""
        try:
            return self.info(job).status.is_terminal()
        except MachineryError:
            return True

    def stop(self, job: str, seconds: float) -> int:
        """Ask a job to stop, and wait for that; returns how it ended."""
        with self._asking(job):
            self._client.stop_job(job)
        end = time.monotonic() + seconds
        while not self.info(job).status.is_terminal():
            if time.monotonic() > end:
                raise MachineryError(f"{job} was asked to stop {seconds:.0f} s ago and has not ended")
            time.sleep(POLL_SECONDS)
        return self.outcome(job)

    def last_word(self, job: str) -> str:
        """What a job said of having stopped; its last line where it said nothing of it."""
        with self._asking(job):
            lines = [line for line in self._client.get_job_logs(job).splitlines() if line.strip()]
        said = [line for line in lines if STOPPED in line] or lines
        return said[-1] if said else ""

    def outcome(self, job: str) -> int:
        """The exit code of a job that has ended: 0, 2, 3 or 75.

        Raises:
            MachineryError: it was killed, or never started.
        """
        info = self.info(job)
        with self._asking(job):
            code = exit_code(self._client.get_job_logs(job))
        code = info.driver_exit_code if code is None else code
        if code in KNOWN_CODES:
            return int(code)
        if code is None and info.status == JobStatus.STOPPED:
            raise MachineryError(
                f"{job} was killed before it had stopped by itself: it goes on from its last checkpoint"
            )
        raise MachineryError(f"{job} {info.status.value.lower()}: {info.message}")


def exit_code(logs: str) -> int | None:
    """The exit code that a job's log ends with; None where it was killed before it could say so."""
    found = re.findall(rf"^{ENDED}(\d+)$", logs, flags=re.MULTILINE)
    return int(found[-1]) if found else None
