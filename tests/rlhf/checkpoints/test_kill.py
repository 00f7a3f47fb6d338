"""Tests of processes that die during a commit, at random times and at every single file operation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rlhf.checkpoints.making import memory_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield Path(path)


CHANCE = """
import os, random, signal, sys, time
from itertools import count
from pathlib import Path
from rlhf.checkpoints.store import CheckpointStore, _versions
from tests.rlhf.checkpoints.making import assert_whole, commit
folder, size, rng, reported = Path(sys.argv[1]), 300_000, random.Random(0), (0, 0)  # 1.5 MB a checkpoint
_versions()

def commit_until_killed(out):
    store = CheckpointStore(folder, 2, 1)
    found = store.latest()
    for step in count(found.step + 1 if found else 1):
        for attempt in (0, 1):  # every step is done again
            commit(store, step, attempt=attempt, size=size, score=float(step % 5))
            os.write(out, f"{step} {attempt}\\n".encode())

def killed_after(commits, seconds):
    end, out = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            commit_until_killed(out)
        finally:
            os._exit(1)
    os.close(out)
    with open(end) as reports:
        lines = [reports.readline() for _ in range(commits)]
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        lines += reports.readlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    return tuple(int(word) for word in lines[-1].split()) if lines else (0, 0)

for _ in range(20):
    reported = max(reported, killed_after(rng.randrange(3), rng.uniform(0, 0.05)))
    seen = {path.name for path in folder.iterdir()}
    store = CheckpointStore(folder, 2, 1)
    found = store.latest()
    if found is not None:
        assert_whole(found, size)
    assert reported <= ((found.step, found.state()["attempt"]) if found else (0, 0)), (reported, found)
    left = {path.name for path in folder.iterdir()}
    assert not [name for name in left if "." in name], left
    print(reported[0], *(seen - left))
commit(store, 10**6)
assert_whole(store.latest())
"""


def run(script: str, folder: Path) -> str:
    result = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_killed_process_loses_nothing_that_it_reported(folder: Path) -> None:
    lines = [line.split() for line in run(CHANCE, folder).splitlines()]
    assert len(lines) == 20
    assert int(lines[-1][0]) >= 10  # commits went through between the deaths


EACH = """
import os, sys
from pathlib import Path
from rlhf.checkpoints.store import CheckpointStore, _versions
from tests.rlhf.checkpoints.making import assert_whole, commit
folder, moments = Path(sys.argv[1]), 0
_versions()

def die_at(moment):
    def hook(event, arguments):
        nonlocal moment
        if event.startswith(("os.", "open", "shutil.")):
            moment -= 1
            if moment < 0:
                os._exit(9)
    sys.addaudithook(hook)

def dies(moment):
    child = os.fork()
    if child == 0:
        store = CheckpointStore(folder, 1, 1)
        die_at(moment)
        commit(store, 4, attempt=1 + moment, size=50)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

for step in (2, 3, 4):
    commit(CheckpointStore(folder, 9, 1), step, size=50, score=-float(step))
before = 0
while dies(moments):
    found = CheckpointStore(folder, 9, 1).latest()
    assert_whole(found, 50)
    assert found.step == 4 and found.state()["attempt"] in (before, 1 + moments), (moments, before, found.state())
    assert not list(folder.glob("step_*.*")) and not list(folder.glob("*.partial"))
    before = found.state()["attempt"]
    moments += 1
print(moments, before, sorted(path.name for path in folder.iterdir()))
"""


def test_death_at_every_operation_leaves_the_old_one_or_the_new_one(folder: Path) -> None:
    moments, survivor, left = run(EACH, folder).split(maxsplit=2)
    assert int(moments) > 40 and int(survivor) > 0  # died after the new one was there, too
    assert left.strip() == "['best', 'latest', 'step_2', 'step_4']"
