"""Small bugs that the tests must notice: each is put into a copy of the project, and the tests of its area are run.

    python -m tests.mutants.run [--only ID ...] [--jobs N] [--file OTHER.json]

``mutants.json`` lists them: the file, the text to replace (which stands there ``count`` times, once where that is not
given), why it would matter, and the tests that should fail. Exit code 0 when all of them are killed; 1 when one
survives, or has moved: its text is no longer there, and it is to be rewritten for the new code.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = Path(__file__).with_name("mutants.json")
TIMEOUT_SECONDS = 900
"""A mutant whose tests take longer hangs, which is noticed too."""
TESTS_FAILED = 1
"""pytest's exit code. Others say that no test was run: the mutant is no program, or names a test that is not there."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A bug: ``find`` is replaced by ``replace`` in ``file``."""

    id: str
    file: str
    find: str
    replace: str
    why: str
    tests: tuple[str, ...]
    count: int = 1

    def applied(self, root: Path) -> str | None:
        """The file's text with the bug in it; None where the text has moved."""
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return text.replace(self.find, self.replace) if text.count(self.find) == self.count else None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a mutant: ``killed``, ``SURVIVED``, ``moved`` or ``no test ran``, with pytest's last line."""

    mutant: Mutant
    verdict: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<11} {self.mutant.id}: {self.mutant.why} ({self.detail})"


def read_mutants(file: Path = MUTANTS) -> list[Mutant]:
    """All mutants of a file, in its order."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [Mutant(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def copy_project(target: Path) -> None:
    """Copy what git knows or would add, as it is in the working tree."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def try_mutant(mutant: Mutant, project: Path) -> Outcome:
    """Run the mutant's tests in a copy of the project that is healthy before and afterwards."""
    broken, path = mutant.applied(project), project / mutant.file
    if broken is None:
        return Outcome(mutant=mutant, verdict="moved", detail=f"{mutant.file} does not have its text {mutant.count}×")
    healthy = path.read_text(encoding="utf-8")
    path.write_text(broken, encoding="utf-8")
    try:
        code, output = _pytest(mutant.tests, project)
    except subprocess.TimeoutExpired:
        return Outcome(mutant=mutant, verdict="killed", detail=f"no end after {TIMEOUT_SECONDS} s")
    finally:
        path.write_text(healthy, encoding="utf-8")
    verdict = {0: "SURVIVED", TESTS_FAILED: "killed"}.get(code, "no test ran")
    return Outcome(mutant=mutant, verdict=verdict, detail=(output.strip().splitlines() or ["no output"])[-1])


def _pytest(tests: Iterable[str], project: Path) -> tuple[int, str]:
    """Its exit code and what it printed. Where it does not end, the ranks that it started are ended with it."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    offline = {"PYTHONPATH": str(project), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    with subprocess.Popen(
        command,
        cwd=project,
        env={**os.environ, **offline},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output


def try_all(mutants: list[Mutant], jobs: int) -> Iterator[Outcome]:
    """The outcomes in the order of the mutants; ``jobs`` of them at a time, each in a copy of its own."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(jobs):
            copies.put(Path(folder) / str(job))
            copy_project(Path(folder) / str(job))

        def in_a_copy(mutant: Mutant) -> Outcome:
            project = copies.get()
            try:
                return try_mutant(mutant, project)
            finally:
                copies.put(project)

        yield from pool.map(in_a_copy, mutants)


def main() -> int:
    """Try the chosen mutants and print what became of each."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="*", default=[], metavar="ID")
    arguments.add_argument("--jobs", type=int, default=1)
    arguments.add_argument("--file", type=Path, default=MUTANTS)
    given = arguments.parse_args()
    mutants = [mutant for mutant in read_mutants(given.file) if not given.only or mutant.id in given.only]
    killed = 0
    for outcome in try_all(mutants, given.jobs):
        print(outcome, flush=True)
        killed += outcome.verdict == "killed"
    print(f"{killed} of {len(mutants)} killed")
    return int(killed < len(mutants) or not mutants)


if __name__ == "__main__":
    sys.exit(main())
