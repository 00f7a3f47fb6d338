"""``make bench-gpu``: Qwen2.5's shapes with random weights on one GPU, colocated, beside bare vLLM and PyTorch.

Every part is a process of its own, and every figure is printed as one line of JSON as soon as it is known, so that a
time limit loses nothing that was measured. ``--device cpu`` runs the same parts with a tiny model, to try them out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from benchmarks.contestants import read_steps
from benchmarks.processes import run_python
from benchmarks.workload import Workload, recipe, rollout
from launch.plan.members import ROLES
from rlhf.device import Device
from rlhf.storage.jsonl import append_line, read_lines

STEPS = 3
"""Steps of every part; the first is left out."""
ROW_TOKENS = 8192
"""``micro_batch_tokens`` of every role on a GPU."""


ALGORITHMS: dict[str, Literal["ppo", "grpo"]] = {"0.5B": "ppo", "1.5B": "grpo"}
"""Size → algorithm. At 1.5B, policy and critic do not fit 80 GB together, and would share the GPU's time, which hides
the update's MFU."""


def workload(size: str) -> Workload:
    """The work of a size: 256 responses of 512 tokens, an epoch of 4 updates."""
    return Workload(
        name=f"gpu-{size}",
        algorithm=ALGORITHMS[size],
        size=size,
        dtype="bfloat16",
        samples=256,
        new=512,
        epochs=1,
        minibatches=4,
        micro=8,
    )


TINY = Workload(name="gpu-tiny", size="tiny", dtype="bfloat16", samples=16, new=16, epochs=1, minibatches=4, micro=4)
"""The work of ``--device cpu``."""


def gpu_recipe(work: Workload, folder: Path, device: Device) -> dict[str, Any]:
    """The workload as a recipe: on a GPU with all roles colocated, so that the engine sleeps while they compute."""
    made = recipe(work, folder, work.name, None, STEPS)
    if device == "cpu":
        return made
    role = {"micro_batch_tokens": ROW_TOKENS}
    roles = dict.fromkeys(ROLES, role)
    return {
        **made,
        "rollout": rollout(work, device),
        "placement": {"device": "cuda", "strategy": "colocated", **roles},
    }


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one size. Each returns its figures."""

    work: Workload
    folder: Path
    device: Device

    def make(self) -> dict[str, Any]:
        """Write the models."""
        return self._part("make")

    def copy(self) -> dict[str, Any]:
        """Bytes per second of a copy within the device's memory."""
        return self._part("copy")

    def generate(self) -> dict[str, Any]:
        """Seconds and tokens of bare vLLM."""
        return self._part("generate")

    def train(self) -> dict[str, Any]:
        """Seconds of scoring and updates in bare PyTorch."""
        return self._part("train")

    def run(self) -> dict[str, Any]:
        """This project's last step: its metrics."""
        results = self.folder / "runs" / self.work.name / "ppo"
        shutil.rmtree(results.parent, ignore_errors=True)
        path = self.folder / f"{self.work.name}.yaml"
        path.write_text(yaml.safe_dump(gpu_recipe(self.work, self.folder, self.device)), encoding="utf-8")
        run_python(["-m", "launch.cli", "ppo", str(path)], self.folder / f"{self.work.name}-run.log")
        chosen = ("perf/", "weights/sync", "memory/", "time/", "rollout/logprob_gap")
        last = {
            key: value for key, value in read_lines(results / "metrics.jsonl")[-1].items() if key.startswith(chosen)
        }
        return {"step": read_steps(results, self.work)[-1]["step"], **last}

    def _part(self, name: str) -> dict[str, Any]:
        arguments = ["-m", "benchmarks.gpu_parts", name, str(self.folder), self.work.to_argument(), self.device]
        found: dict[str, Any] = run_python(arguments, self.folder / f"{self.work.name}-{name}.log").last_json()
        return found


def measure(parts: Parts, report: Callable[[dict[str, Any]], None]) -> None:
    """Run all parts of a size in turn, and report each as ``{"part": ..., figures}``. A part that fails is reported
    with its error; the others follow."""
    for name in ("make", "copy", "generate", "train", "run"):
        begin = time.monotonic()
        try:
            found = getattr(parts, name)()
        except SystemExit as error:
            found = {"error": str(error)[-1000:]}
        wall = round(time.monotonic() - begin, 1)
        report({"size": parts.work.size, "part": name, "wall_seconds": wall, **found})


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--sizes", nargs="+", choices=ALGORITHMS, default=("1.5B", "0.5B"), help="in this order; not with cpu"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-gpu"), help="for models, runs and logs")
    parser.add_argument("--out", type=Path, help="a file to which the lines are added too")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure every size and print the lines."""
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU here.\n  fix: --device cpu tries the same parts with a tiny model")
    options.folder.mkdir(parents=True, exist_ok=True)

    def report(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        if options.out:
            append_line(options.out, line)

    for work in [TINY] if options.device == "cpu" else map(workload, options.sizes):
        measure(Parts(work=work, folder=options.folder, device=options.device), report)


if __name__ == "__main__":
    main()
