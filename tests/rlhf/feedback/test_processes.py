"""Several processes and threads on one file: every item gets its votes, whoever is killed in between."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlhf.feedback.assign import next_item
from rlhf.feedback.records import Purpose
from rlhf.feedback.store import Store
from tests.rlhf.feedback.projects import golds, labels, project, vote_on

RATERS = ("a", "b", "c", "d", "e")
ITEMS = 100

KILLED = """
import os, random, signal, sys, time
from contextlib import suppress
from rlhf.errors import UserError
from rlhf.feedback.assign import next_item
from rlhf.feedback.store import Store
from tests.rlhf.feedback.projects import vote_on
path, reports, raters, items, rng = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), random.Random(0)

def label(rater, out):
    with Store.open(path) as store:
        while store.counts().complete < items:
            given = next_item(store, rater, time.time())
            if given is None:
                time.sleep(0.002)
                continue
            time.sleep(rng.uniform(0, 0.01))
            vote = vote_on(given, rater, now=time.time())
            with suppress(UserError):  # the lease expired while this process had no CPU
                store.add_vote(vote)
                os.write(out, f"{vote.id}\\n".encode())

def start(rater):
    child = os.fork()
    if child == 0:
        try:
            label(rater, os.open(reports, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
            os._exit(0)
        finally:
            os._exit(1)
    return child

running = {rater: start(rater) for rater in raters}
killed = 0
while killed < 20:
    time.sleep(rng.uniform(0.005, 0.03))
    rater = rng.choice(sorted(running))
    os.kill(running[rater], signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(running.pop(rater), 0)[1])
    if code == 0:  # this rater had finished before
        break
    assert code == -9, code
    killed += 1
    if killed < 20:  # the last one never returns: others take over its item when the lease expires
        running[rater] = start(rater)
assert killed >= 10, killed
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in running.values()]
assert set(codes) == {0}, codes
"""


def test_killed_writers_lose_no_acknowledged_vote_and_repeat_none(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    checks = {"gold_fraction": 0.1, "repeat_fraction": 0.1, "lease_seconds": 0.5}
    project(tmp_path, [*labels(ITEMS), *golds(20)], *RATERS, overlap=3, **checks).close()
    arguments = [str(tmp_path / "project.db"), str(reports), "".join(RATERS), str(ITEMS)]
    subprocess.run([sys.executable, "-c", KILLED, *arguments], check=True, timeout=60)
    with Store.open(tmp_path / "project.db") as store:
        votes = store.votes()
        acknowledged = reports.read_text().split()
        assert set(acknowledged) <= {vote.id for vote in votes}
        assert len(votes) - len(acknowledged) <= 20  # at most one for each kill, stored and not yet reported
        of_labels = {found.id for found in store.items(purpose=Purpose.LABEL)}
        first = [vote for vote in votes if not vote.is_repeat]
        assert Counter(vote.item for vote in first if vote.item in of_labels) == dict.fromkeys(of_labels, 3)
        assert max(Counter((vote.item, vote.rater) for vote in first).values()) == 1
        assert max(Counter((vote.item, vote.rater) for vote in votes).values()) <= 2
        assert store.check() == []


def test_threads_share_a_store(tmp_path: Path) -> None:
    raters = [f"r{number}" for number in range(12)]

    def work(rater: str) -> int:
        number = 0
        while (given := next_item(store, rater, 1_000.0)) is not None:
            assert store.add_vote(vote_on(given, rater))
            assert not store.add_vote(store.votes(item=given.item.id, rater=rater)[0])
            number += 1
        return number

    with project(tmp_path, labels(30), *raters, overlap=4) as store, ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(work, raters)) == 120
        assert set(Counter(vote.item for vote in store.votes()).values()) == {4}
        assert store.check() == []


def test_a_reader_sees_one_state_while_others_write(tmp_path: Path) -> None:
    with project(tmp_path, labels(2), "a") as store:
        with store.reading() as db:
            assert db.execute("SELECT count(*) FROM votes").fetchone()[0] == 0
            store.add_vote(vote_on(next_item(store, "a", 1_000.0), "a"))
            assert db.execute("SELECT count(*) FROM votes").fetchone()[0] == 0
        assert len(store.votes()) == 1
