"""``make bench``: this project, the floor and TRL's GRPO, side by side.

In every round each workload's programs take turns on the same machine, so that their ratios mean something where
seconds do not. The first step of every start is left out. The results are written after every workload.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine, models
from benchmarks.contestants import contestants
from benchmarks.processes import run_python
from benchmarks.results import FOLDER, Results
from benchmarks.table import ratio_table, step_table
from benchmarks.workload import WORKLOADS, Workload

BUDGETS = (320, 8192)
QUICK = ("fixed-ppo", "fixed-grpo", "real-grpo")
CONTROLLED = (25_000, 50_000)
"""Samples of the simulated steps of the controller; the last is reported."""
TRL_FOLDER = Path(".venv-bench")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__.replace("`", ""),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, metavar="NAME", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, default=2, help="times that each program is started")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each start")
    parser.add_argument(
        "--budgets", type=int, nargs="*", default=BUDGETS, help="micro_batch_tokens beside the default, in fixed-ppo"
    )
    parser.add_argument("--samples", type=int, help="samples of a step, to try the benchmark out: a multiple of 16")
    parser.add_argument("--quick", action="store_true", help=f"one round of one step of {', '.join(QUICK)}")
    parser.add_argument("--no-trl", dest="trl", action="store_false", help="leave TRL out")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="for models, prompts, runs and logs")
    parser.add_argument("--out", type=Path, help="the results' file, instead of one in benchmarks/results")
    options = parser.parse_args(arguments)
    if options.samples is not None and (options.samples < 16 or options.samples % 16):
        parser.error(f"--samples {options.samples} is no multiple of 16")
    if options.rounds < 1 or options.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    if options.quick:
        options.rounds, options.steps, options.budgets = 1, 1, ()
        options.only = options.only or QUICK
    return options


def make_folders(options: argparse.Namespace) -> None:
    """Make the folders that are written to, before anything is timed.

    Raises:
        SystemExit: one cannot be made.
    """
    for folder in [options.folder, *([options.out.parent] if options.out else [])]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(
                f"{folder}: {error.strerror}\n  fix: --folder and --out name places to write to"
            ) from error


def chosen_workloads(options: argparse.Namespace) -> list[Workload]:
    """The workloads of a run."""
    found = [WORKLOADS[name] for name in options.only or WORKLOADS]
    return [replace(work, samples=options.samples or work.samples) for work in found]


def trl_packages(options: argparse.Namespace) -> Path | None:
    """The folder of TRL's package, or None if it is left out.

    Raises:
        SystemExit: it is not there.
    """
    if options.trl and not (TRL_FOLDER / "trl").is_dir():
        raise SystemExit(f"{TRL_FOLDER} has no TRL.\n  fix: make bench installs it; --no-trl leaves it out")
    return TRL_FOLDER if options.trl else None


def time_controller(folder: Path) -> dict[str, Any]:
    """The controller's time for each sample of a large step, simulated."""
    arguments = ["-m", "benchmarks.controller", "--samples", *map(str, CONTROLLED)]
    found: dict[str, Any] = run_python(arguments, folder / "controller.log").last_json()
    return found


def main() -> None:
    """Time everything, write the results and print the tables."""
    options = parse()
    works, packages = chosen_workloads(options), trl_packages(options)
    make_folders(options)
    results = Results(
        date=datetime.date.today().isoformat(),
        machine=machine.describe(packages),
        options={name: getattr(options, name) for name in ("rounds", "steps", "samples")},
        workloads={work.name: work for work in works},
    )
    path = options.out or FOLDER / f"{results.date}-{machine.short_name(results.machine)}.json"
    for number in range(1, options.rounds + 1):
        for work in works:
            _time(work, results, options, packages)
            results.save(path)
        if number == options.rounds and not options.only:
            results.controller = time_controller(options.folder)
            results.save(path)
        print(f"After round {number} of {options.rounds}:\n\n{step_table(results)}\n{ratio_table(results)}", flush=True)


def _time(work: Workload, results: Results, options: argparse.Namespace, packages: Path | None) -> None:
    """Start each program of a workload once."""
    models.make(work, options.folder)
    for contestant in contestants(work, tuple(options.budgets), packages):
        measured = contestant.measure(options.folder, options.steps)
        results.entry(work, contestant.name).add(measured)
        seconds = ", ".join(f"{step['step']:.2f}" for step in measured.steps)
        print(f"{work.name}, {contestant.name}: {seconds} s", flush=True)


if __name__ == "__main__":
    main()
