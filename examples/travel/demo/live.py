"""The running gateway and its simulated users, who know the OpenAI API and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from examples.travel.demo.place import Result
from examples.travel.demo.training import MAX_TOKENS, TEMPERATURE
from examples.travel.demo.users import UserQuestion, gives_thumb, is_content
from launch.serve.engine_process import free_port
from rlhf.errors import MachineryError
from rlhf.serving.api_keys import add_key
from rlhf.serving.registry import Registry
from rlhf.storage.durable import write_atomically

CONFIG = Path(__file__).with_name("gateway.yaml")
MODEL = "travel"
AT_ONCE = 8
"""Users who wait for an answer at the same time."""
READING_SECONDS = 0.2
"""Between an answer and its user's thumb."""
START_SECONDS = 900.0
"""Longest start of a vLLM server on a busy machine."""
COUNT_SECONDS = 180.0
"""Longest wait until the counts that a gate needs are there: copies follow the requests at their own pace."""
END_SECONDS = 60.0
"""In which the gateway must end: it stops its servers."""
REQUEST_SECONDS = 60.0
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Environment of the servers, several of which share two cores."""


@dataclass(frozen=True, kw_only=True)
class LiveService:
    """A gateway that runs."""

    url: str
    key: str
    state: Path
    process: subprocess.Popen[bytes]
    demand: float

    def wait_for(self, stage: str, version: str) -> None:
        """Wait until a version is in service.

        Raises:
            MachineryError: it is not in time, or the gateway ended.
        """
        print(f"{version} starts as {stage}: ", end="", flush=True)
        begin = time.monotonic()
        sign = f'rlhf_gateway_serving{{stage="{stage}",version="{version}"}} 1.0'
        self._until(lambda: sign in self._get("/metrics"), f"{version} is in service as {stage}", START_SECONDS)
        print(f"{time.monotonic() - begin:.0f} s", flush=True)

    def has_counted(self, kpi: str, least: int) -> bool:
        """Whether the candidate has at least so many events of a KPI."""
        found = json.loads(self._get("/kpis") or "{}").get("counts", {})
        return kpi in found and int(found[kpi]["candidate"]["n"]) >= least

    def write_counts(self, label: str, kpi: str, least: int) -> Path:
        """Save the live counts of candidate and production when the candidate's have ``least`` events of a KPI.

        Raises:
            MachineryError: it has not so many in time.
        """
        self._until(lambda: self.has_counted(kpi, least), f"{least} events of {kpi}", COUNT_SECONDS)
        file = self.state / "results" / f"{label}.json"
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, self._get("/kpis"))
        return file

    def serve_users(self, questions: Sequence[UserQuestion], is_over: Callable[[], bool] = lambda: False) -> int:
        """Let users ask, a few at a time, and judge; stops when ``is_over``. Returns how many came.

        Raises:
            MachineryError: a user got no answer.
        """
        if is_over():
            return 0
        print("users: ", end="", flush=True)
        begin, came = time.monotonic(), 0
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, timeout=REQUEST_SECONDS, max_retries=0)
        thumbs, pool = httpx.Client(headers=self._headers, timeout=REQUEST_SECONDS), ThreadPoolExecutor(AT_ONCE)
        with client, thumbs, pool:
            while came < len(questions) and not is_over():
                group = questions[came : came + 2 * AT_ONCE]
                for problem in pool.map(lambda question: self._serve(client, thumbs, question), group):
                    if problem:
                        raise MachineryError(f"a user got no answer: {problem}")
                came += len(group)
        print(f"{came} in {time.monotonic() - begin:.0f} s", flush=True)
        return came

    def _serve(self, client: openai.OpenAI, thumbs: httpx.Client, question: UserQuestion) -> str:
        """One user; returns what went wrong."""
        try:
            answer = client.completions.create(
                model=MODEL,
                prompt=question.prompt,
                max_tokens=MAX_TOKENS,
                temperature=TEMPERATURE,
                user=question.user,
            )
        except openai.OpenAIError as error:
            return f"{type(error).__name__}: {error}"
        if not gives_thumb(question.user):
            return ""
        time.sleep(READING_SECONDS)
        is_good = is_content(question.prompt, answer.choices[0].text, self.demand, question.user)
        given = thumbs.post(f"{self.url}/feedback", json={"id": answer.id, "thumb": "up" if is_good else "down"})
        return "" if given.status_code == 201 else f"POST /feedback gives {given.status_code}"

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def _get(self, path: str) -> str:
        """A page; empty if there is none."""
        try:
            found = httpx.get(f"{self.url}{path}", headers=self._headers, timeout=5.0)
        except httpx.HTTPError:
            return ""
        return found.text if found.status_code == 200 else ""

    def _until(self, is_true: Callable[[], bool], what: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not is_true():
            if self.process.poll() is not None:
                raise MachineryError(f"the gateway ended; see {self.state / 'gateway.txt'}")
            if time.monotonic() > end:
                raise MachineryError(f"not within {seconds:.0f} s: {what}; see {self.state / 'gateway.txt'}")
            time.sleep(0.25)


@contextmanager
def gateway(state: Path, name: str, demand: float) -> Iterator[LiveService]:
    """``rlhf serve`` on the files of ``state``; stopped at the end, and its servers with it.

    Args:
        name: of a new API key.
    """
    key, port = add_key(state / "keys.jsonl", name), free_port()
    places = {"registry": "registry.db", "keys": "keys.jsonl", "thumbs.project": "votes.db", "log": "requests.jsonl"}
    places["engines.logs"] = "engine-logs"
    settings = [f"{setting}={(state / file).resolve()}" for setting, file in places.items()]
    command = [sys.executable, "-m", "launch.cli", "serve", str(CONFIG), *settings, f"listen.port={port}"]
    guarded = [sys.executable, "-m", "launch.serve.guardian", str(END_SECONDS), *command]
    with (state / "gateway.txt").open("ab") as out:
        process = subprocess.Popen(
            guarded,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,
        )
    assert process.stdin is not None
    try:
        yield LiveService(url=f"http://127.0.0.1:{port}", key=key, state=state, process=process, demand=demand)
    finally:
        process.stdin.close()  # the guardian ends the gateway, also if this process is killed
        try:
            process.wait(2 * END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def stage_of(state: Path, version: str) -> str:
    """A version's stage, by the registry."""
    with Registry(state / "registry.db") as registry:
        return str(registry.artefact(version).stage)


def audit_of(state: Path) -> list[Result]:
    """The registry's entries, for the page."""
    with Registry(state / "registry.db") as registry:
        return [
            {"time": e.time, "who": e.who, "action": e.action, "version": e.version, "stage": e.stage, "why": e.why}
            for e in registry.audit()
        ]
