"""Processes of the benchmark: their output, their failures, and memory that counts once however many share it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import cpu_seconds, run_python, tree_pss

MIB = 2**20
SHARING = """
import os, sys
held = b"x" * (64 * 2**20)
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print("ready", flush=True)
sys.stdin.read()
os.waitpid(child, 0)
"""


def test_the_last_line_of_the_output_is_the_answer(tmp_path: Path) -> None:
    seen: list[float] = []
    script = "import os; print('noise'); print('{\"a\": [1, \"%s\"]}' % os.environ['EXTRA'])"
    finished = run_python(["-c", script], tmp_path / "a.log", {"EXTRA": "b"}, seen.append)
    assert finished.last_json() == {"a": [1, "b"]}
    assert seen  # at least one sample, however short the process


def test_a_failure_names_the_log(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with 3(.|\n)*partly(.|\n)*a\.log"):
        run_python(["-c", "print('partly'); raise SystemExit(3)"], tmp_path / "a.log")


def test_memory_that_two_processes_share_counts_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", SHARING], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    found = tree_pss(process.pid)
    process.communicate()
    assert 64 * MIB < found < 110 * MIB


def test_a_process_that_ended_has_no_memory_and_no_seconds() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert (tree_pss(process.pid), cpu_seconds(process.pid)) == (0, 0.0)
