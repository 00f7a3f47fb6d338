"""``python -m tests.end_to_end.matrix``: every fault to every role in every phase, and what came of it, as a page.

A run of PPO has the faults of one kind to one role, one in each phase. Results are kept in a JSON file as they come:
what it holds is not run again, unless asked for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rlhf.storage.durable import write_atomically
from tests.end_to_end.campaign import Result, Setting, by_outcome, make_data, run_plan
from tests.end_to_end.fault_plan import CONTROLLER, DEVICE, KILL, MEMBERS, MEMORY, PHASES, SAVE, STOP, Aim
from tests.end_to_end.matrix_page import insert, section
from tests.end_to_end.small import ROOT

FAULTS = (KILL, DEVICE, STOP, MEMORY)
ROLES = (*MEMBERS, CONTROLLER)
SETTINGS = tuple(Setting(staleness=staleness, zero_stage=stage) for stage in (1, 3) for staleness in (0, 1))
STEPS: Mapping[str, int] = {
    "policy": 8,
    "critic": 8,
    "reference": 12,
    "reward": 12,
    "judge": 13,
    "engine": 11,
    CONTROLLER: 6,
}
"""Of a run with faults to a role: what is done to an idle actor is noticed when it is used again, a step later."""
RESULTS = Path(__file__).with_name("matrix.json")
COMMAND_SECONDS = 400.0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run of the matrix: its cells are the phases."""

    setting: Setting
    role: str
    fault: str

    @property
    def name(self) -> str:
        return f"{self.setting.name}-{self.role}-{self.fault}"

    @property
    def steps(self) -> int:
        return STEPS[self.role]

    @property
    def plan(self) -> list[Aim]:
        """A fault in each phase; the last one comes when the model is saved at the end."""
        return [
            Aim(role=self.role, phase=phase, fault=self.fault, step=self.steps - 1 if phase == SAVE else 1)
            for phase in PHASES
        ]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A run that was tried: its results by phase, with which commit, and how long it took."""

    commit: str
    seconds: float
    cells: Mapping[str, Result]


def planned(settings: Sequence[str], only: Sequence[str]) -> Iterator[Planned]:
    """Runs of these settings; ``only`` are ``ROLE``, ``FAULT`` or ``ROLE/FAULT``, all if there are none."""
    for setting in SETTINGS:
        for fault in FAULTS:
            for role in ROLES:
                names = {role, fault, f"{role}/{fault}"}
                if setting.name in settings and (not only or names & set(only)):
                    yield Planned(setting=setting, role=role, fault=fault)


def read_results(file: Path) -> dict[str, Tried]:
    """Runs that were tried, by name."""
    if not file.exists():
        return {}
    found = {}
    for name, row in json.loads(file.read_text(encoding="utf-8")).items():
        cells = {phase: Result(**{**cell, "aim": Aim(**cell["aim"])}) for phase, cell in row["cells"].items()}
        found[name] = Tried(commit=row["commit"], seconds=row["seconds"], cells=cells)
    return found


def write_results(file: Path, results: Mapping[str, Tried]) -> None:
    """One line a run."""
    lines = [f"{json.dumps(name)}: {json.dumps(asdict(results[name]))}" for name in sorted(results)]
    write_atomically(file, "{\n" + ",\n".join(lines) + "\n}\n")


def try_run(run: Planned, folder: Path) -> Tried:
    """Do it; its folder stays if anything failed."""
    for left in (folder / "runs" / run.name, folder / f"{run.name}.marks"):
        shutil.rmtree(left, ignore_errors=True)
    begun = time.monotonic()
    ended = run_plan(folder, run.name, run.plan, run.steps, run.setting, COMMAND_SECONDS)
    results = ended.results()
    cells = {result.aim.phase: rounded(result) for result in results}
    if all(result.passed for result in results):
        shutil.rmtree(ended.path.parent)
        shutil.rmtree(ended.marks.folder)
    return Tried(commit=commit(), seconds=round(time.monotonic() - begun, 1), cells=cells)


def rounded(result: Result) -> Result:
    """For the file."""
    seconds = None if result.seconds is None else round(result.seconds, 1)
    return Result(aim=result.aim, code=result.code, seconds=seconds, why=result.why)


def commit() -> str:
    """Short hash of the checked out commit, with ``+`` if tracked files differ."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
        written = [":!docs", f":!{RESULTS.relative_to(ROOT)}"]  # by the matrix itself
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *written], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed else "")


def page(results: Mapping[str, Tried]) -> str:
    """The matrix as Markdown."""
    every = list(planned([setting.name for setting in SETTINGS], ()))
    tried = [cell for run in results.values() for cell in run.cells.values()]
    counts = ", ".join(f"{number} {name}" for name, number in by_outcome(tried).items())
    cells = len(every) * len(PHASES)
    commits = ", ".join(f"`{each}`" for each in sorted({run.commit for run in results.values()}))
    libraries = ", ".join(f"{name} {version(name)}" for name in ("ray", "deepspeed"))
    summary = f"**{len(tried)} of {cells} cells tried: {counts}.** Commits: {commits}. {libraries}; two cores, no GPU."
    tables = {
        str(setting): [
            (run.role, run.fault, results[run.name].cells if run.name in results else {})
            for run in every
            if run.setting == setting
        ]
        for setting in SETTINGS
    }
    return section(summary, tables)


def main() -> int:
    """Returns 0 if no cell that was tried failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="s0z1: staleness 0, ZeRO 1")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROLE[/FAULT]", help="a role, a fault, or both")
    parser.add_argument("--again", action="store_true", help="also what the results have of another commit")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file of all results")
    parser.add_argument("--runs", type=Path, default=Path("runs/matrix"), help="folder for data and runs")
    parser.add_argument("--out", type=Path, help="Markdown file whose part about the matrix is written")
    options = parser.parse_args()
    results, begun = read_results(options.results), time.monotonic()
    folder = options.runs.resolve()
    if not folder.exists():
        folder.mkdir(parents=True)
        make_data(folder)
    for run in planned(options.settings, options.only):
        if run.name in results and (not options.again or results[run.name].commit == commit()):
            continue
        if time.monotonic() - begun > options.seconds:
            break
        results[run.name] = try_run(run, folder)
        write_results(options.results, results)
        _show(run, results[run.name])
    if options.out:
        insert(options.out, page(results))
    return 1 if any(not cell.passed for run in results.values() for cell in run.cells.values()) else 0


def _show(run: Planned, tried: Tried) -> None:
    print(f"{run.name}: {tried.seconds:.0f} s; {dict(by_outcome(list(tried.cells.values())))}", flush=True)
    for phase, result in tried.cells.items():
        took = "" if result.seconds is None else f" {result.seconds:.1f} s"
        print(f"  {phase}: {result.why or result.code}{took}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
