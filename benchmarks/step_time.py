"""``make benchmark``: seconds of a PPO step at several token budgets a row, beside the floor's (``floor.py``).

Floor and budgets take turns, round by round, on the same machine, so that their ratios mean something where seconds do
not. The first step of every process is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks import workload
from rlhf.storage.jsonl import read_lines

BUDGETS = (640, 1280, 2048, 5120, 8192)
FLOOR = "floor"
PHASES = {"generate": "time/rollout", "score": "time/score", "update": "time/update", "publish": "time/publish"}
"""The floor's parts, and the run's phases that do the same. Scoring begins during the rollout."""
Steps = list[dict[str, float]]


def time_floor(folder: Path, steps: int) -> Steps:
    """Seconds of the floor's steps."""
    output = _run(["-m", "benchmarks.floor", str(folder), str(steps + 1)], folder / "floor.log")
    seconds: Steps = json.loads(output.strip().splitlines()[-1])
    return seconds[1:]


def time_run(folder: Path, budget: int, steps: int) -> Steps:
    """Seconds of the steps of ``rlhf ppo`` with so many tokens a row."""
    name = f"rows-{budget}"
    shutil.rmtree(folder / "runs" / name, ignore_errors=True)  # a finished run would not be run again
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(workload.recipe(folder, name, budget, steps + 1)), encoding="utf-8")
    _run(["-m", "launch.cli", "ppo", str(path)], folder / f"{name}.log")
    lines = read_lines(folder / "runs" / name / "ppo" / "metrics.jsonl")
    for line in lines:
        assert line["rollout/length_mean"] == workload.NEW, "the work is not the floor's"
    return [{part: line[key] for part, key in {**PHASES, "step": "time/step"}.items()} for line in lines[1:]]


def _run(arguments: list[str], log: Path) -> str:
    """What a Python process wrote to its standard output; its errors go to the log."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout[-2000:]}\nSee {log}.")
    return done.stdout


def table(found: dict[str, Steps]) -> str:
    """Medians over all steps as Markdown, with the ratio to the floor's step and the spread of the steps."""
    parts = [*PHASES, "step"]
    lines = [f"| | {' | '.join(parts)} | of the floor | steps: least, most |", "|---" * (len(parts) + 3) + "|"]
    floor = statistics.median(each["step"] for each in found[FLOOR])
    for name, steps in found.items():
        medians = [statistics.median(each[part] for each in steps) for part in parts]
        whole = [each["step"] for each in steps]
        cells = [f"{median:.2f}" for median in medians] + [f"{medians[-1] / floor:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {min(whole):.2f}, {max(whole):.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time everything; print the table, and write the seconds of every step to ``--out``."""
    parser = argparse.ArgumentParser(
        description="Seconds of a PPO step at several token budgets, beside bare vLLM and torch."
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that each is started")
    parser.add_argument("--steps", type=int, default=3, help="steps of each start, after one that is left out")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="micro_batch_tokens of every role")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"), help="for models, prompts and runs")
    parser.add_argument("--out", type=Path, help="a JSON file for the seconds of every step")
    options = parser.parse_args()
    workload.make(options.folder)
    found: dict[str, Steps] = {FLOOR: [], **{f"{budget} tokens a row": [] for budget in options.budgets}}
    for number in range(1, options.rounds + 1):
        found[FLOOR] += time_floor(options.folder, options.steps)
        for budget in options.budgets:
            found[f"{budget} tokens a row"] += time_run(options.folder, budget, options.steps)
        print(f"After round {number} of {options.rounds}, seconds:\n\n{table(found)}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
