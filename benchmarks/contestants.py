"""The programs that are timed on a workload: the floor, TRL's GRPO, and this project at several row sizes.

Each starts as a process of its own, takes one step that is left out, and then the steps that are timed.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.processes import Finished, run_python
from benchmarks.workload import Workload, recipe
from rlhf.storage.jsonl import read_lines

Step = dict[str, float]
"""Seconds of a step's parts and of the whole ``step``, with the numbers of its ``samples`` and response ``tokens``."""
PHASES = {"generate": "time/rollout", "score": "time/score", "update": "time/update", "publish": "time/publish"}
"""The floor's parts, and the phases of a run that do the same. A run's scoring overlaps with its rollout."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The steps of one start."""

    steps: list[Step]
    peak_pss: int
    """Bytes; see ``Finished``."""
    controller_us_per_sample: float | None = None
    """CPU microseconds of a run's controller process, all its threads, for each sample of its steps."""


@dataclass(frozen=True)
class Contestant(ABC):
    """A program that takes the steps of a workload."""

    work: Workload

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in tables."""

    @abstractmethod
    def measure(self, folder: Path, steps: int) -> Measured:
        """Start it; returns ``steps`` steps, after one that is left out."""

    def _log(self, folder: Path) -> Path:
        return folder / f"{self.work.name}-{self.name.replace(' ', '-')}.log"


@dataclass(frozen=True)
class FloorContestant(Contestant):
    """Bare vLLM and PyTorch."""

    name = "floor"

    def measure(self, folder: Path, steps: int) -> Measured:
        """See ``Contestant.measure``."""
        arguments = ["-m", "benchmarks.floor", str(folder), self.work.to_argument(), str(steps + 1)]
        return _measured(run_python(arguments, self._log(folder)))


@dataclass(frozen=True)
class TRLContestant(Contestant):
    """TRL's GRPO, from the folder into which its package is installed."""

    packages: Path
    name = "TRL"

    def measure(self, folder: Path, steps: int) -> Measured:
        """See ``Contestant.measure``."""
        arguments = ["-m", "benchmarks.trl_grpo", str(folder), self.work.to_argument(), str(steps + 1)]
        return _measured(run_python(arguments, self._log(folder), {"PYTHONPATH": str(self.packages.resolve())}))


@dataclass(frozen=True)
class RunContestant(Contestant):
    """``rlhf ppo`` of this project."""

    budget: int | None = None
    """``micro_batch_tokens`` of every role; None for the default."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        return "rlhf" if self.budget is None else f"rlhf {self.budget}"

    def measure(self, folder: Path, steps: int) -> Measured:
        """See ``Contestant.measure``."""
        name = f"{self.work.name}-{self.name.replace(' ', '-')}"
        shutil.rmtree(folder / "runs" / name, ignore_errors=True)  # a finished run would not be run again
        total = 1 + steps + self.work.staleness  # the last step of a stale run generates nothing, and is left out too
        path, results = folder / f"{name}.yaml", folder / "runs" / name / "ppo"
        path.write_text(yaml.safe_dump(recipe(self.work, folder, name, self.budget, total)), encoding="utf-8")
        clock = ControllerClock(results / "metrics.jsonl")
        finished = run_python(["-m", "launch.cli", "ppo", str(path)], self._log(folder), observe=clock.observe)
        return Measured(
            steps=read_steps(results, self.work)[1 : steps + 1],
            peak_pss=finished.peak_pss,
            controller_us_per_sample=clock.us_per_sample(self.work.samples),
        )


@dataclass
class ControllerClock:
    """CPU seconds of a run's controller after each of its steps, as far as samples fell between them."""

    metrics: Path
    seconds: dict[int, float] = field(default_factory=dict)
    """Completed steps → CPU seconds of the process when they were first seen."""

    def observe(self, cpu_seconds: float) -> None:
        """Note the CPU seconds if another step is complete."""
        done = self.metrics.read_bytes().count(b"\n") if self.metrics.exists() else 0
        if done and cpu_seconds:
            self.seconds.setdefault(done, cpu_seconds)

    def us_per_sample(self, samples: int) -> float | None:
        """CPU microseconds a sample between the first and the last of these steps; None if there is only one."""
        first, last = min(self.seconds, default=0), max(self.seconds, default=0)
        if first == last:
            return None
        return 1e6 * (self.seconds[last] - self.seconds[first]) / ((last - first) * samples)


def _measured(finished: Finished) -> Measured:
    return Measured(steps=finished.last_json()[1:], peak_pss=finished.peak_pss)


def read_steps(results: Path, work: Workload) -> list[Step]:
    """The steps of a finished run. ``step`` also contains what the run does between two steps, such as snapshots.

    Raises:
        SystemExit: responses do not have the workload's length.
    """
    ends, found = _step_ends(results / "trace.json"), []
    for line in read_lines(results / "metrics.jsonl"):
        if work.mean is None and line["rollout/length_mean"] != work.new:
            raise SystemExit(f"{results}: responses of {line['rollout/length_mean']} tokens, not {work.new}")
        number = int(line["step"])
        whole = ends[number] - ends[number - 1] if number else line["time/step"]
        parts = {part: line[key] for part, key in PHASES.items()}
        found.append({**parts, "step": whole, "samples": work.samples, "tokens": line["rollout/tokens"]})
    return found


def _step_ends(trace: Path) -> dict[int, float]:
    """The second at which each step ended, by the run's timeline."""
    events = json.loads(trace.read_text(encoding="utf-8"))
    return {
        event["args"]["step"]: (event["ts"] + event["dur"]) / 1e6
        for event in events
        if event["ph"] == "X" and event["name"] == "step"
    }


def contestants(work: Workload, budgets: tuple[int, ...], packages: Path | None) -> list[Contestant]:
    """What takes turns on a workload, the floor first.

    Args:
        budgets: row sizes of this project beside its default, for ``fixed-ppo``.
        packages: folder of TRL's package; None leaves TRL out.
    """
    found: list[Contestant] = []
    if work.name in FLOORS:
        found.append(FloorContestant(work))
    found.append(RunContestant(work))
    found += [RunContestant(work, budget) for budget in budgets if work.name == "fixed-ppo"]
    if packages is not None and work.algorithm == "grpo":
        found.append(TRLContestant(work, packages))
    return found


FLOORS = {"fixed-ppo", "fixed-grpo", "real-ppo", "real-grpo", "25m-ppo", "bf16-ppo"}
"""Workloads with a floor of their own."""
SAME_FLOOR = {"stale-ppo": "fixed-ppo"}
"""Workloads whose floor does the work of another."""
