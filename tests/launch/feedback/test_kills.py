"""Votes survive a server that is killed: each item gets its votes once, whatever is in progress."""

from __future__ import annotations

import random
import re
import threading
import time
from pathlib import Path

import httpx
import pytest

from rlhf.feedback.store import Store
from rlhf.ports import free_port
from tests.launch.feedback.live import start_server
from tests.launch.feedback.project import comparison, make_project, token_of

RATERS, OVERLAP, KILLS = 5, 3, 5
BUTTONS = ("a_much", "a_slightly", "tie", "b_slightly", "b_much", "both_bad")


class ScriptedRater(threading.Thread):
    """Votes until nothing is left. As the page's script does, it sends a form again if the server does not answer."""

    def __init__(self, address: str, token: str, seed: int) -> None:
        super().__init__()
        headers = {"origin": address, "accept-language": "en", "accept": "application/json"}
        self._client = httpx.Client(base_url=address, cookies={"rlhf_feedback": token}, headers=headers)
        self._random = random.Random(seed)
        self.acknowledged: list[str] = []
        """Ids of votes that the server confirmed."""
        self.is_done = False

    def run(self) -> None:
        while form := self._form():
            answer = self._request("POST", "/vote", data={**form, "choice": self._random.choice(BUTTONS)})
            if answer.json()["next"] == "/":  # else the vote came too late: the item was complete
                self.acknowledged.append(form["vote"])
        self.is_done = True

    def _form(self) -> dict[str, str]:
        page = self._request("GET", "/").text
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.partition('/vote"')[2]))

    def _request(self, method: str, path: str, **content: object) -> httpx.Response:
        while True:
            try:
                answer = self._client.request(method, path, **content)  # type: ignore[arg-type]
                if answer.status_code == 200:
                    return answer
                assert answer.status_code == 429, answer.text
            except httpx.TransportError:
                pass
            time.sleep(0.05)


@pytest.mark.parametrize("items", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_five_kills_among_five_raters_lose_and_repeat_nothing(tmp_path: Path, items: int) -> None:
    path, port = tmp_path / "votes.db", free_port()
    store = make_project(
        path,
        [comparison(number) for number in range(items)],
        raters=RATERS,
        overlap=OVERLAP,
        gold_fraction=0.0,
        repeat_fraction=0.0,
    )
    tokens = [token_of(store, f"r{number + 1}") for number in range(RATERS)]
    raters = [ScriptedRater(f"http://127.0.0.1:{port}", token, seed) for seed, token in enumerate(tokens)]
    server = start_server(path, port)
    try:
        for rater in raters:
            rater.start()
        for kill in range(KILLS):
            wait_for_votes(store, (kill + 1) * items * OVERLAP // (KILLS + 2))
            server.kill()
            server.wait()
            server = start_server(path, port)
        for rater in raters:
            rater.join(120)
        assert all(rater.is_done for rater in raters)
    finally:
        server.kill()
        server.wait()
    check_votes(store, [id for rater in raters for id in rater.acknowledged])
    store.close()


def check_votes(store: Store, acknowledged: list[str]) -> None:
    votes = store.votes()
    assert len({(vote.item, vote.rater) for vote in votes}) == len(votes)
    assert {sum(vote.item == item.id for vote in votes) for item in store.items()} == {OVERLAP}
    assert set(acknowledged) <= {vote.id for vote in votes}
    assert len(acknowledged) > 0.9 * len(votes)
    assert store.check() == []


def wait_for_votes(store: Store, number: int) -> None:
    end = time.monotonic() + 60
    while store.counts().votes < number:
        assert time.monotonic() < end, "the raters are stuck"
        time.sleep(0.02)
