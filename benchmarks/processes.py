"""Runs a Python process of the benchmark, and watches the memory of its tree and its own CPU seconds meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

INTERVAL = 2.0
"""Seconds between two samples: one reads the page tables of the whole tree, which takes CPU time from the run."""
QUIET = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that ended with exit code 0."""

    output: str
    """Its standard output."""
    peak_pss: int
    """Largest sampled sum, in bytes, of the proportional set sizes of the process and its descendants: memory that n
    processes share counts 1/n in each, so it counts once in the sum."""

    def last_json(self) -> Any:
        """The last line of the output, parsed."""
        return json.loads(self.output.strip().splitlines()[-1])


def run_python(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    observe: Callable[[float], None] = lambda cpu_seconds: None,
) -> Finished:
    """Run ``python ARGUMENTS``.

    Args:
        log: file for its standard error.
        environment: variables to add to this process's.
        observe: called with every sample; receives the CPU seconds of the process itself so far.

    Raises:
        SystemExit: it failed; with the end of its output and the log's path.
    """
    output, peak = log.with_suffix(".out"), 0
    with log.open("w", encoding="utf-8") as errors, output.open("w", encoding="utf-8") as lines:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=lines,
            stderr=errors,
            env={**os.environ, **QUIET, **(environment or {})},
        )
        while process.poll() is None:
            peak = max(peak, tree_pss(process.pid))
            observe(cpu_seconds(process.pid))
            _wait(process)
    text = output.read_text(encoding="utf-8")
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}: {text[-2000:]}\nSee {log}.")
    return Finished(output=text, peak_pss=peak)


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the next sample or the process's end."""
    deadline = time.monotonic() + INTERVAL
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def tree_pss(pid: int) -> int:
    """Sum of the proportional set sizes, in bytes, of a process and its descendants; those that end meanwhile are left
    out."""
    try:
        root = psutil.Process(pid)
        return sum(map(_pss, [root, *root.children(recursive=True)]))
    except psutil.NoSuchProcess:
        return 0


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far, of all its threads and without its children; 0 if it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
