"""How long a vote takes while many raters label at the same time.

``python -m benchmarks.feedback_raters --raters 50 --votes 20 --pause 2`` starts the server as a process, lets each
rater vote after a pause, as a person would, and prints one line of JSON: seconds of a vote (the form is sent, the vote
is on the disk, the answer is back) and of the next page, and the number of votes that were lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from rlhf.feedback.access import AccessRole, issue_token
from rlhf.feedback.items import make_item
from rlhf.feedback.records import Answer, Item
from rlhf.feedback.settings import ProjectSettings
from rlhf.feedback.store import Store
from rlhf.ports import free_port

OVERLAP = 3
TEXT = (
    "Water boils at a lower temperature on a mountain.\n\n- At sea level: **100 °C**\n- At 3,000 m: about 90 °C\n\n" * 8
)
"""An answer of about 800 characters."""


@dataclass(kw_only=True)
class Times:
    """Seconds of each request, and the votes that the server confirmed."""

    votes: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)
    confirmed: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--votes", type=int, default=20, help="votes of each rater")
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between two votes")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder) / "votes.db", chosen.raters, chosen.votes, chosen.pause)))


def measure(path: Path, raters: int, votes: int, pause: float) -> dict[str, float]:
    """Label in a new project; returns the numbers of the line."""
    port, times = free_port(), Times()
    with _make_project(path, raters, votes) as store:
        tokens = [issue_token(store, f"r{n}", AccessRole.RATER, seconds=3600, now=time.time()) for n in range(raters)]
        server = _start(path, port)
        try:
            asyncio.run(_label(f"http://127.0.0.1:{port}", tokens, votes, pause, times))
        finally:
            server.terminate()
            server.wait()
        stored = len(store.votes())
    return {
        "raters": raters,
        "votes": stored,
        "lost": times.confirmed - stored,
        "vote_p50": _quantile(times.votes, 50),
        "vote_p95": _quantile(times.votes, 95),
        "vote_max": round(max(times.votes), 4),
        "page_p95": _quantile(times.pages, 95),
    }


def _make_project(path: Path, raters: int, votes: int) -> Store:
    store = Store.create(path, ProjectSettings(overlap=OVERLAP))
    store.add_items(_item(number) for number in range(raters * votes))
    for number in range(raters):
        store.add_rater(f"r{number}")
    return store


def _item(number: int) -> Item:
    answers = Answer(text=f"{number}. {TEXT}", policy="a"), Answer(text=f"{TEXT} {number}.", policy="b")
    return make_item(f"Question {number}?", answers)


def _start(path: Path, port: int) -> subprocess.Popen[bytes]:
    words = ["-m", "launch.cli", "feedback", "serve", str(path), "--port", str(port)]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    raise SystemExit("the server did not start")


async def _label(address: str, tokens: list[str], votes: int, pause: float, times: Times) -> None:
    await asyncio.gather(*(_rate(address, token, votes, pause, times) for token in tokens))


async def _rate(address: str, token: str, votes: int, pause: float, times: Times) -> None:
    """One rater: looks at a page, pauses, votes."""
    headers = {"origin": address, "accept": "application/json"}
    chance = random.Random(token)
    async with httpx.AsyncClient(
        base_url=address, headers=headers, cookies={"rlhf_feedback": token}, timeout=30
    ) as client:
        await asyncio.sleep(chance.uniform(0, pause))
        for _ in range(votes):
            begin = time.perf_counter()
            page = (await client.get("/")).raise_for_status().text
            times.pages.append(time.perf_counter() - begin)
            form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.partition('/vote"')[2]))
            await asyncio.sleep(chance.uniform(0.5 * pause, 1.5 * pause))
            begin = time.perf_counter()
            answer = await client.post("/vote", data={**form, "choice": chance.choice(["a_much", "tie", "b_slightly"])})
            times.votes.append(time.perf_counter() - begin)
            times.confirmed += answer.raise_for_status().json()["next"] == "/"


def _quantile(seconds: list[float], percent: int) -> float:
    return round(statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1], 4)


if __name__ == "__main__":
    main()
