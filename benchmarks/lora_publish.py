"""Times publishing of merged weights against adapters: ``python -m benchmarks.lora_publish``.

GRPO steps with a model of 25 million weights, whose adapters of rank 16 train; each setting is a run of its own. The
first step of a run is left out. Prints a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml

from benchmarks import models
from benchmarks.contestants import Step, read_steps
from benchmarks.processes import run_python
from benchmarks.workload import Workload, recipe

WORK = Workload(name="lora", algorithm="grpo", size="25M", samples=32, epochs=1, minibatches=1)
PUBLISHES = ("merged", "adapter")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table."""

    dtype: Literal["float32", "bfloat16"]
    quantization: str | None
    publish: str

    @property
    def name(self) -> str:
        """Name of its run."""
        return f"lora-{self.dtype}-{self.quantization}-{self.publish}"

    def recipe(self, work: Workload, folder: Path, steps: int) -> dict[str, Any]:
        """Its recipe."""
        made = recipe(work, folder, self.name, None, steps)
        made["model"]["lora"] = {"rank": 16, "quantization": self.quantization, "publish": self.publish}
        return made


def settings() -> Iterator[Setting]:
    """All rows."""
    for publish in PUBLISHES:
        yield Setting(dtype="float32", quantization=None, publish=publish)
    for publish in PUBLISHES:
        yield Setting(dtype="bfloat16", quantization=None, publish=publish)
    for publish in PUBLISHES:
        yield Setting(dtype="float32", quantization="nf4", publish=publish)


def measure(setting: Setting, folder: Path, steps: int) -> list[Step]:
    """The steps of a run of this setting, without the first."""
    work = replace(WORK, dtype=setting.dtype)
    models.make(work, folder)
    shutil.rmtree(folder / "runs" / setting.name, ignore_errors=True)  # a finished run would not be run again
    path = folder / f"{setting.name}.yaml"
    path.write_text(yaml.safe_dump(setting.recipe(work, folder, steps + 1)), encoding="utf-8")
    run_python(["-m", "launch.cli", "ppo", str(path)], folder / f"{setting.name}.log")
    return read_steps(folder / "runs" / setting.name / "ppo", work)[1:]


def main() -> None:
    """Run all settings and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_publish", description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each run")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-lora"), help="for models, runs and logs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| dtype | base | publish | publish, s | generation, s | tokens per second |\n|---|---|---|---|---|---|")
    for setting in settings():
        steps = measure(setting, options.folder, options.steps)
        publish, generate = (median(step[part] for step in steps) for part in ("publish", "generate"))
        numbers = f"{publish:.2f} | {generate:.2f} | {steps[0]['tokens'] / generate:.0f}"
        base = setting.quantization or setting.dtype
        print(f"| {setting.dtype} | {base} | {setting.publish} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
