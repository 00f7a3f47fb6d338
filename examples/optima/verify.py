"""Run the problems and write what came of them: ``python -m examples.optima.verify --out docs/verification.md``.

A run that is finished is not run again, so that an interrupted verification resumes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from examples.optima.measure import Check, checks
from examples.optima.problems import PROBLEMS, Problem, recipe

ENDED = "ended without an error"
LIBRARIES = ("torch", "vllm", "deepspeed", "ray", "transformers")


def solve(problem: Problem, folder: Path, seed: int) -> None:
    """Run the problem's stages by the command line, as a user would.

    Raises:
        RuntimeError: a stage failed; the message holds the end of its output.
    """
    path = recipe(problem, folder, seed)
    for stage in ("reward", "ppo") if problem.letter == "D" else ("ppo",):
        command = [sys.executable, "-m", "launch.cli", stage, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"rlhf {stage} {path} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def verify(problem: Problem, seed: int, root: Path) -> list[Check]:
    """The checks of one problem and seed; run now unless that was done before.

    A run that failed is one check that does not hold, and is tried again the next time.
    """
    folder = root / f"{problem.name}-{seed}"
    result = folder / "result.json"
    if not result.exists():
        begin = time.perf_counter()
        try:
            solve(problem, folder, seed)
        except RuntimeError as error:
            print(error, flush=True)
            return [Check(name=ENDED, measured=0.0, low=1.0)]
        result.write_text(json.dumps({"seconds": time.perf_counter() - begin}), encoding="utf-8")
    return checks(problem, folder)


def page(results: dict[str, list[list[Check]]], seeds: Sequence[int], root: Path) -> str:
    """The results as Markdown: one table a problem, one column a seed."""
    libraries = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    lines = [
        "# Verification",
        "",
        "<!-- Written by `make verify` (examples/optima/verify.py). -->",
        "",
        "Problems whose best policy is known in closed form (`examples/optima/`), solved by `rlhf ppo` through Ray,",
        "vLLM and DeepSpeed. Each number stands beside the range that it must be in; a number outside it is marked.",
        f"Seeds {', '.join(map(str, seeds))}; {libraries}.",
        "",
        *_summary(results),
    ]
    for name, columns in results.items():
        lines += ["", *_table(PROBLEMS[name], columns, seeds, root)]
    return "\n".join(lines) + "\n"


def _version(name: str) -> str:
    for distribution in (name, f"{name}-cpu"):
        try:
            return version(distribution)
        except ModuleNotFoundError:
            continue
    return "unknown"


def _summary(results: dict[str, list[list[Check]]]) -> list[str]:
    every = [check for columns in results.values() for column in columns for check in column]
    held = sum(check.holds for check in every)
    return [f"**{held} of {len(every)} checks hold.**"]


def _table(problem: Problem, columns: list[list[Check]], seeds: Sequence[int], root: Path) -> list[str]:
    title = f"## {problem.name}: problem {problem.letter}, {problem.algorithm}, {problem.family}, β = {problem.beta:g}"
    header = " | ".join(f"seed {seed}" for seed in seeds)
    lines = [title, "", f"| | range | {header} |", "|---|---|" + "---|" * len(seeds)]
    by_name = [{check.name: check for check in column} for column in columns]
    for name in dict.fromkeys(name for column in by_name for name in column):
        row = [column.get(name) for column in by_name]
        allowed = next(_range(check) for check in row if check is not None)
        lines.append(f"| {name} | {allowed} | {' | '.join(map(_cell, row))} |")
    files = [root / f"{problem.name}-{seed}" / "result.json" for seed in seeds]
    seconds = [f"{json.loads(file.read_text())['seconds']:.0f}" if file.exists() else "none" for file in files]
    return [*lines, "", f"Seconds: {', '.join(seconds)}."]


def _cell(check: Check | None) -> str:
    if check is None:
        return ""
    return f"{check.measured:.4g}" if check.holds else f"**{check.measured:.4g} ✗**"


def _range(check: Check) -> str:
    low, high = (f"{bound:.4g}" if abs(bound) < float("inf") else "" for bound in (check.low, check.high))
    if not low:
        return f"at most {high}"
    return f"{low} to {high}" if high else f"at least {low}"


def main() -> int:
    """Returns 0 when every check holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=sorted(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/verify"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    results: dict[str, list[list[Check]]] = {}
    for name in options.problems:
        results[name] = []
        for seed in options.seeds:
            print(f"{name}, seed {seed}: ", end="", flush=True)
            found = verify(PROBLEMS[name], seed, options.runs)
            results[name].append(found)
            failed = [f"{check.name} = {check.measured:.4g}, {_range(check)}" for check in found if not check.holds]
            print("; ".join(failed) or "all checks hold", flush=True)
    text = page(results, options.seeds, options.runs)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print("\n".join(_summary(results)))
    return 0 if all(check.holds for columns in results.values() for column in columns for check in column) else 1


if __name__ == "__main__":
    sys.exit(main())
