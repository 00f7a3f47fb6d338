"""``python -m tests.end_to_end.matrix``: every fault to every role in every phase, and what came of it, as a page.

A run of PPO has many faults of one kind, one after another. The results of all cells are kept in a JSON file as they
come: a cell that passed is not tried again, unless asked for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from rlhf.storage.durable import write_atomically
from tests.end_to_end.campaign import NOT_DONE, Result, Setting, by_outcome, make_data, run_plan
from tests.end_to_end.fault_plan import CONTROLLER, DEVICE, KILL, MEMBERS, MEMORY, PHASES, START, STOP, Aim
from tests.end_to_end.matrix_page import Rows, insert, section
from tests.end_to_end.small import ROOT

FAULTS = (KILL, DEVICE, STOP, MEMORY)
ROLES = (*MEMBERS, CONTROLLER)
SETTINGS = tuple(Setting(staleness=staleness, zero_stage=stage) for stage in (1, 3) for staleness in (0, 1))
STEPS: Mapping[str, float] = {"policy": 0.7, "critic": 0.7, CONTROLLER: 0.5}
"""Steps of a run that a fault to a role takes; 1.2 for the others, which are missed when they are used again."""
RESULTS = Path(__file__).with_name("matrix.json")
COMMAND_SECONDS = 900.0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One fault under one setting."""

    setting: Setting
    aim: Aim

    @property
    def name(self) -> str:
        return "/".join([self.setting.name, self.aim.role, self.aim.phase, self.aim.fault])

    @property
    def group(self) -> tuple[str, str, str]:
        """Cells of one group may share a run: those that end a command have others."""
        kind = START if self.aim.phase == START else CONTROLLER if self.aim.role == CONTROLLER else "actors"
        return self.setting.name, self.aim.fault, kind


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a cell, and with which commit."""

    commit: str
    result: Result


def every_cell(settings: Sequence[str], only: Sequence[str] = ()) -> Iterator[Cell]:
    """Cells of these settings whose names have one of ``only`` as a part, such as ``policy`` or ``policy/update``."""
    for setting in SETTINGS:
        for fault in FAULTS:
            for role in ROLES:
                for phase in PHASES:
                    cell = Cell(setting=setting, aim=Aim(role=role, phase=phase, fault=fault))
                    if setting.name in settings and (not only or any(f"/{part}/" in f"/{cell.name}/" for part in only)):
                        yield cell


def runs_of(cells: Sequence[Cell], most: int) -> Iterator[Sequence[Cell]]:
    """Cells that share a run: of one group, in the order of roles and phases, at most ``most``."""
    for _, same in groupby(sorted(cells, key=lambda cell: cell.group), lambda cell: cell.group):
        group = list(same)
        yield from (group[first : first + most] for first in range(0, len(group), most))


def steps_for(cells: Sequence[Cell]) -> int:
    """Steps of a run in which these faults find their phases."""
    return 3 + round(sum(0.0 if cell.aim.phase == START else STEPS.get(cell.aim.role, 1.2) for cell in cells))


def read_results(file: Path) -> dict[str, Tried]:
    """Results by the names of cells."""
    rows: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = {}
    for name, (commit, code, seconds, why) in rows.items():
        _, role, phase, fault = name.split("/")
        result = Result(aim=Aim(role=role, phase=phase, fault=fault), code=code, seconds=seconds, why=why)
        found[name] = Tried(commit=commit, result=result)
    return found


def write_results(file: Path, results: Mapping[str, Tried]) -> None:
    """One line a cell: commit, exit code, seconds, and why it failed."""
    rows = {
        name: [each.commit, each.result.code, each.result.seconds, each.result.why] for name, each in results.items()
    }
    lines = [f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows)]
    write_atomically(file, "{\n" + ",\n".join(lines) + "\n}\n")


def try_cells(cells: Sequence[Cell], folder: Path) -> dict[str, Tried]:
    """A run with these faults; its folder stays if anything failed. Faults for which it was too short are left out."""
    name, setting = "-".join(cells[0].group), cells[0].setting
    shutil.rmtree(folder / "runs" / name, ignore_errors=True)
    shutil.rmtree(folder / f"{name}.marks", ignore_errors=True)
    plan = [cell.aim for cell in cells]
    ended = run_plan(folder, name, plan, steps_for(cells), setting, COMMAND_SECONDS)
    results = [result for result in ended.results() if result.why != NOT_DONE]
    if all(result.passed for result in results):
        shutil.rmtree(ended.path.parent)
        shutil.rmtree(ended.marks.folder)
    return {Cell(setting=setting, aim=each.aim).name: Tried(commit=commit(), result=rounded(each)) for each in results}


def rounded(result: Result) -> Result:
    """For the file."""
    seconds = None if result.seconds is None else round(result.seconds, 1)
    return Result(aim=result.aim, code=result.code, seconds=seconds, why=result.why)


def commit() -> str:
    """Short hash of the checked out commit, with ``+`` if tracked files differ."""
    git = ["git", "-C", str(ROOT)]
    written = [":!docs", f":!{RESULTS.relative_to(ROOT)}"]  # by the matrix itself
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *written], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed else "")


def page(results: Mapping[str, Tried]) -> str:
    """The matrix as Markdown."""
    every = list(every_cell([setting.name for setting in SETTINGS]))
    counts = ", ".join(f"{number} {name}" for name, number in by_outcome([t.result for t in results.values()]).items())
    commits = ", ".join(f"`{each}`" for each in sorted({tried.commit for tried in results.values()}))
    libraries = ", ".join(f"{name} {version(name)}" for name in ("ray", "deepspeed"))
    summary = (
        f"**{len(results)} of {len(every)} cells tried: {counts}.** Commits: {commits}. {libraries}; two cores, no GPU."
    )
    tables: dict[str, Rows] = {str(setting): {} for setting in SETTINGS}
    for cell in every:
        row = tables[str(cell.setting)].setdefault((cell.aim.role, cell.aim.fault), {})
        if cell.name in results:
            row[cell.aim.phase] = results[cell.name].result
    return section(summary, tables)


def main() -> int:
    """Returns 0 if no cell that was tried failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="s0z1: staleness 0, ZeRO 1")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="parts of the cells' names: policy/update"
    )
    parser.add_argument("--again", action="store_true", help="also what passed with another commit")
    parser.add_argument("--cells", type=int, default=30, help="most faults in a run")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file of all results")
    parser.add_argument("--runs", type=Path, default=Path("runs/matrix"), help="folder for data and runs")
    parser.add_argument("--out", type=Path, help="Markdown file whose part about the matrix is written")
    options = parser.parse_args()
    results, begun, now = read_results(options.results), time.monotonic(), commit()
    folder = options.runs.resolve()
    if not folder.exists():
        folder.mkdir(parents=True)
        make_data(folder, rises=True)
    passed = {name: tried for name, tried in results.items() if tried.result.passed}
    done = {name for name, tried in passed.items() if not options.again or tried.commit == now}
    cells = [cell for cell in every_cell(options.settings, options.only) if cell.name not in done]
    for run in runs_of(cells, options.cells):
        if time.monotonic() - begun > options.seconds:
            break
        tried = try_cells(run, folder)
        results |= tried
        write_results(options.results, results)
        _show(tried, time.monotonic() - begun)
    if options.out:
        insert(options.out, page(results))
    return 0 if all(tried.result.passed for tried in results.values()) else 1


def _show(tried: Mapping[str, Tried], seconds: float) -> None:
    print(f"{seconds:.0f} s: {dict(by_outcome([each.result for each in tried.values()]))}", flush=True)
    for name, each in tried.items():
        took = "" if each.result.seconds is None else f" {each.result.seconds:.1f} s"
        print(f"  {name}: {each.result.why or each.result.code}{took}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
